"""Which contents a scenario's devices have: the one place where its keys are asked."""

from __future__ import annotations

from clients.round.bounded import BoundedDeviceContents
from clients.round.bucketed import BucketedDeviceContents
from clients.round.contents import DeviceContents
from clients.round.open import OpenDeviceContents
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.exchange.settings import DEVICE_CONTENTS
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import RoundRequest


def contents_kind(scenario: Scenario) -> type[DeviceContents]:
    """The kind that the scenario names or, where the named contents have no device half, that its other keys ask for.

    Raises:
        ScenarioError: what is registered is none, or does not keep the privacy that the scenario asks for.
    """
    name = scenario.refinement.contents
    if name is not None and name in DEVICE_CONTENTS.added():
        try:
            found = DEVICE_CONTENTS.get(name)
        except FieldError as error:
            raise ScenarioError(f"refinement.contents: {error}") from None
        if not (isinstance(found, type) and issubclass(found, DeviceContents)):
            raise ScenarioError(f"refinement.contents: {name!r} is no DeviceContents; subclass it")
        if scenario.privacy.sums_only and not issubclass(found, BoundedDeviceContents):
            raise ScenarioError(
                f"refinement.contents: {name!r} is not held to what privacy.* releases; subclass "
                "BoundedDeviceContents, or leave privacy.mechanism and privacy.rows as they are"
            )
        kind: type[DeviceContents] = found
        return kind
    if scenario.privacy.sums_only:
        return BoundedDeviceContents
    return BucketedDeviceContents if scenario.refinement.aggregation.robust.in_buckets else OpenDeviceContents


def contents_of(scenario: Scenario, request: RoundRequest) -> DeviceContents:
    """The contents of one round."""
    return contents_kind(scenario)(scenario, request)


__all__ = ["contents_kind", "contents_of"]
