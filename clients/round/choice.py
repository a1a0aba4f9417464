"""Choice of the device contents of a scenario: the one place where its keys are asked."""

from __future__ import annotations

from clients.round.bounded import BoundedDeviceContents
from clients.round.bucketed import BucketedDeviceContents
from clients.round.contents import DeviceContents
from clients.round.open import OpenDeviceContents
from fl_peel.scenario.registered import DEVICE_CONTENTS, named_contents
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import RoundRequest


def contents_kind(scenario: Scenario) -> type[DeviceContents]:
    """The kind that the scenario names or, where the named contents have no device half, that its other keys ask for.

    Raises:
        ScenarioError: what is registered is none, or does not keep the privacy or know the sub-cohorts
            that the scenario asks for.
    """
    bounded, robust = scenario.privacy.sums_only, scenario.refinement.aggregation.robust
    named = named_contents(
        scenario.refinement.contribution,
        DEVICE_CONTENTS,
        DeviceContents,
        bounded=BoundedDeviceContents if bounded else None,
        bucketed=BucketedDeviceContents if robust.in_buckets else None,
        rule=robust.rule,
    )
    if named is not None:
        return named
    if bounded:
        return BoundedDeviceContents
    return BucketedDeviceContents if robust.in_buckets else OpenDeviceContents


def contents_of(scenario: Scenario, request: RoundRequest) -> DeviceContents:
    """The contents of one round."""
    return contents_kind(scenario)(scenario, request)


__all__ = ["contents_kind", "contents_of"]
