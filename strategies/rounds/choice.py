"""Choice of a scenario's channel and contents on the server: the one place where its keys are asked."""

from __future__ import annotations

from typing import cast

from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario import registered
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
    """Return the class of a scenario's contents; see :func:`fl_peel.scenario.registered.contents_kind`."""
    kinds = ServerContents, OpenServerContents, NoisedServerContents, BucketedServerContents
    return cast(type[ServerContents], registered.contents_kind(scenario, registered.SERVER_CONTENTS, *kinds))


def contents_of(federation: Federation, plan: Plan | None) -> ServerContents:
    """Return the contents of a scenario, which say what is made of the sums. plan: plan of the noise, None where no
    mechanism is named.
    """
    return contents_kind(federation.scenario)(federation, plan)


__all__ = ["channel_of", "contents_kind", "contents_of"]
