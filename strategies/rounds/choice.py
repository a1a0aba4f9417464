"""Choice of a scenario's channel and contents on the server: the one place where its keys are asked."""

from __future__ import annotations

from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.registered import SERVER_CONTENTS, named_contents
from fl_peel.scenario.scenario import Scenario
from strategies.rounds.bucketed import BucketedServerContents
from strategies.rounds.channel import ServerChannel
from strategies.rounds.clear import ClearServerChannel
from strategies.rounds.contents import ServerContents
from strategies.rounds.federation import Federation
from strategies.rounds.masked import MaskedServerChannel
from strategies.rounds.noised import NoisedServerContents
from strategies.rounds.open import OpenServerContents


def channel_of(federation: Federation) -> ServerChannel:
    """Return the channel of a scenario."""
    return (MaskedServerChannel if federation.scenario.secure_aggregation.enabled else ClearServerChannel)(federation)


def contents_kind(scenario: Scenario) -> type[ServerContents]:
    """The kind that the scenario names or, where the named contents have no server half, that its other keys ask for.

    Raises:
        ScenarioError: what is registered is none, or does not keep the privacy or know the sub-cohorts
            that the scenario asks for.
    """
    bounded, robust = scenario.privacy.sums_only, scenario.refinement.aggregation.robust
    named = named_contents(
        scenario.refinement.contribution,
        SERVER_CONTENTS,
        ServerContents,
        bounded=NoisedServerContents if bounded else None,
        bucketed=BucketedServerContents if robust.in_buckets else None,
        rule=robust.rule,
    )
    if named is not None:
        return named
    if bounded:
        return NoisedServerContents
    return BucketedServerContents if robust.in_buckets else OpenServerContents


def contents_of(federation: Federation, plan: Plan | None) -> ServerContents:
    """Return the contents of a scenario, which say what is made of the sums. plan: plan of the noise, None where no
    mechanism is named.
    """
    return contents_kind(federation.scenario)(federation, plan)


__all__ = ["channel_of", "contents_kind", "contents_of"]
