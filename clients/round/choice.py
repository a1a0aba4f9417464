"""Choice of the device contents of a scenario: the one place where its keys are asked."""

from __future__ import annotations

from typing import cast

from clients.round.bounded import BoundedDeviceContents
from clients.round.bucketed import BucketedDeviceContents
from clients.round.contents import DeviceContents
from clients.round.open import OpenDeviceContents
from fl_peel.scenario import registered
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import RoundRequest


def contents_kind(scenario: Scenario) -> type[DeviceContents]:
    """Return the class of a scenario's contents; see :func:`fl_peel.scenario.registered.contents_kind`."""
    kinds = DeviceContents, OpenDeviceContents, BoundedDeviceContents, BucketedDeviceContents
    return cast(type[DeviceContents], registered.contents_kind(scenario, registered.DEVICE_CONTENTS, *kinds))


def contents_of(scenario: Scenario, request: RoundRequest) -> DeviceContents:
    """The contents of one round."""
    return contents_kind(scenario)(scenario, request)


__all__ = ["contents_kind", "contents_of"]
