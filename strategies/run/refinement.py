"""Refinement: settings are selected, devices join, learn their user group, and go through its rounds.

What is chosen: the filter of spectral pretraining, the controller, and how many rounds of refinement are kept. The last
stage 1 and those rounds take validation items for train items; nothing is left to choose on, and nothing is chosen.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.device_storage import device_splits
from fl_peel.events import Event, OnEvent, figures_under, silent
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario import settings
from fl_peel.scenario.scenario import Scenario
from strategies.groups.state import UserGroupState
from strategies.nodes import Members, NodeRequest, some_devices
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.contents import BucketedServerContents, OpenServerContents, ServerContents
from strategies.rounds.federation import ClearServerChannel, Federation, RoundRecord
from strategies.rounds.masked import MaskedServerChannel
from strategies.rounds.noised import NoisedServerContents
from strategies.rounds.step_channels import SumsRecord
from strategies.rounds.strategy import PeelStrategy
from strategies.run.prepare import ChosenFilter, choose_by_sums, prepare
from strategies.run.run import RoundCheckpoints, Run
from strategies.run.stage1_outcome import Stage1Outcome

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller

AT_ONCE = 1 << 16
"""Devices of a node that join at a time: 16 MB of embeddings of 64 numbers."""

logger = logging.getLogger("fl_peel")


def join(run: Run, prepared: Stage1Outcome) -> Members:
    """Devices take part: those whose data was collected get their embedding, the others find it locally.

    Raises:
        EngineError, MessageError: a node failed, or what its devices answer makes no sense.
    """
    nodes = run.nodes
    num_devices = device_splits(run.scenario, run.paths.data_dir, run.paths.run_dir).num_users
    setting = run.setting(num_devices)

    hosted = [nodes.hosted(partition, num_devices) for partition in range(len(nodes.ids))]
    most = max(map(len, hosted), default=0)
    at_once = AT_ONCE if prepared.sends_own_embeddings else max(most, 1)
    replies: list[wire.JoinReply] = []
    for first in range(0, max(most, 1), at_once):

        def request(partition: int, first: int = first) -> NodeRequest:
            some = hosted[partition][first : first + at_once]
            whole = len(some) == len(hosted[partition])
            payload = prepared.join_request(setting, some)
            if not whole:  # a node that has all of its devices in earlier parts joins nobody
                payload = replace(payload, first=min(first, len(hosted[partition])), count=len(some))
            return NodeRequest(
                payload,
                MessageContext(
                    {"N": len(some), "G": len(payload.centroids)}, {"devices": some}, agreed=("class_names",)
                ),
            )

        replies += nodes.ask(wire.JOIN, request)
    devices = np.concatenate([reply.devices for reply in replies])
    order = np.argsort(devices, kind="stable")
    order = order[~np.isin(nodes.partitions_of(devices[order]), [*nodes.excluded])]
    return Members(
        devices[order],
        np.concatenate([reply.groups for reply in replies])[order],
        np.max([reply.ceilings for reply in replies], axis=0),
        tuple(replies[0].class_names.split("\n")),
    )


def warn_of_small_groups(scenario: Scenario, members: Members) -> None:
    """Tell of rounds that every user group would sit out: how large groups are is known once devices have joined."""
    secure, largest = scenario.secure_aggregation, int(np.bincount(members.groups).max(initial=0))
    if secure.enabled and scenario.refinement.rounds and largest < secure.min_devices:
        logger.warning(
            "secure_aggregation.min_devices is %d and the largest user group has %d devices: all rounds are void and "
            "nothing is refined; lower it, or user_groups.count",
            secure.min_devices,
            largest,
        )


Kind = TypeVar("Kind", bound=PeelStrategy)
Refine = Callable[[Scenario], PeelStrategy]
"""Refine once more from the same start, under another scenario."""


def contents_kind(scenario: Scenario) -> type[ServerContents]:
    """Return the class of a scenario's contents; see :func:`fl_peel.scenario.settings.contents_kind`."""
    kinds = ServerContents, OpenServerContents, NoisedServerContents, BucketedServerContents
    return cast(type[ServerContents], settings.contents_kind(scenario, settings.SERVER_CONTENTS, *kinds))


def put_together(
    kind: type[Kind],
    federation: Federation,
    plan: Plan | None,
    *,
    traced: NDArray[np.int64] | None = None,
    on_event: OnEvent = silent,
) -> Kind:
    """A strategy with the channel and the contents that its scenario asks for. plan: of the scenario's noise."""
    scenario, nobody = federation.scenario, federation.members.devices[:0]
    return kind(
        federation,
        (MaskedServerChannel if scenario.secure_aggregation.enabled else ClearServerChannel)(federation),
        contents_kind(scenario)(federation, plan),
        traced=nobody if traced is None else traced,
        on_event=on_event,
    )


@dataclass(frozen=True)
class Refiner:
    """Refines from the same pretrained tables on the same nodes, once or more often; devices keep a state of their own
    for each refinement. controller: that refinements start with, None for one that knows nothing yet; begin: rounds of
    the fleet's clock that are over by then.
    """

    run: Run
    prepared: Stage1Outcome
    controller: Controller | None = None
    begin: int = 0

    def joined(self, num_traced: int = 0) -> PeelStrategy:
        """Devices take part; a strategy before its first round, of which the report follows ``num_traced`` devices."""
        scenario = self.run.scenario
        federation = self.federation(join(self.run, self.prepared))
        warn_of_small_groups(scenario, federation.members)
        traced = some_devices(scenario, federation.members, "traced", num_traced)
        strategy = put_together(PeelStrategy, federation, self.run.plan, traced=traced, on_event=self.run.on_event)
        if self.controller is not None:
            strategy.controller = copy.deepcopy(self.controller)
        return strategy

    def federation(self, members: Members, states: list[UserGroupState] | None = None) -> Federation:
        """The parties of a refinement; states: by default what pretraining gives each user group to start with."""
        start, run = self.prepared, self.run
        return Federation(
            run.scenario,
            run.setting(len(members.devices)),
            start.layout,
            start.states(run.scenario, run.paths.run_dir) if states is None else states,
            members,
            run.nodes,
            start.temperature,
            self.begin,
        )

    def refine(self, strategy: PeelStrategy) -> AcceptanceTest | None:
        """Run all rounds; return which rounds groups accepted, None where no device was asked."""
        scenario = strategy.scenario
        acceptance = AcceptanceTest(strategy, self.run.paths.run_dir) if scenario.compares else None
        after = [] if acceptance is None else [acceptance.after]
        if self.run.checkpoints.folder is not None:
            kept = RoundCheckpoints(self.run.checkpoints, strategy, acceptance)
            strategy.completed_rounds = kept.resume()
            after.append(kept.after)

        def after_round(server_round: int) -> None:
            for listener in after:
                listener(server_round)

        strategy.after_round, before = after_round, strategy.after_round
        try:
            rounds, timeout_s = scenario.refinement.rounds, scenario.engine.reply_timeout_s
            strategy.start(self.run.grid, ArrayRecord(), num_rounds=rounds, timeout=timeout_s)
        finally:  # tables of gigabytes: nobody holds them in a circle, waiting to be found
            strategy.after_round = before
        if acceptance is not None:
            acceptance.forget()
        if len(strategy.rounds) < rounds:
            text = f"ended after round {len(strategy.rounds)}: no better on validation items"
            self.run.on_event(Event("refinement", rounds, rounds, text))
        return acceptance

    def refine_again(self, scenario: Scenario) -> PeelStrategy:
        """Refine once more, under another scenario and its noise; its events are those of a comparison."""

        def on_comparison(event: Event) -> None:
            self.run.on_event(Event("comparison", event.done, event.total, event.text))

        other = replace(self, run=self.run.under(scenario, on_comparison))
        strategy = other.joined()
        other.refine(strategy)
        return strategy


@dataclass(frozen=True)
class SettingsSelection:
    """The selection run's result. scenario: of the refit; controller: as trained; the rest: what it took."""

    scenario: Scenario
    controller: Controller | None
    acceptance: AcceptanceTest | None
    records: tuple[RoundRecord, ...]
    prepared: Stage1Outcome | ChosenFilter

    @property
    def steps(self) -> tuple[SumsRecord, ...]:
        """Return the records of the steps that devices took part in, in stage 1 of the selection run."""
        return self.prepared.steps


def select_settings(run: Run) -> SettingsSelection:
    """Run both stages on train items, measure on validation items alone, and choose the settings of the refit."""
    scenario, checkpoints = run.scenario, run.checkpoints
    run = replace(run, on_event=figures_under("rehearsal", run.on_event))
    if scenario.pretraining.model == "spectral" and not scenario.refinement.rounds:  # the filter is all there is
        chosen = choose_by_sums(run)
        return SettingsSelection(refitting(scenario, chosen, 0), None, None, (), chosen)
    prepared = checkpoints.stage("rehearsal-stage-1", lambda: prepare(run), disks=True)
    strategy, keeping, rounds = try_rounds(Refiner(run, prepared))
    run.on_event(Event("refinement", 1, 1, f"refit with {rounds} rounds"))
    return SettingsSelection(
        refitting(scenario, prepared, rounds), strategy.controller, keeping, tuple(strategy.rounds), prepared
    )


def try_rounds(refiner: Refiner) -> tuple[PeelStrategy, AcceptanceTest | None, int]:
    """Refine in all rounds of the run's scenario; return how they went, and how many of them to keep."""
    with refiner.run.stages("joining"):
        strategy = refiner.joined()
    with refiner.run.stages("refinement"):
        keeping = refiner.refine(strategy)
    tried = refiner.run.scenario.refinement.rounds
    return strategy, keeping, tried if keeping is None else kept_by_most(keeping, strategy.members)


def kept_by_most(acceptance: AcceptanceTest, members: Members) -> int:
    """Rounds of refinement that the median device kept; the refit has user groups of its own."""
    return int(np.median(acceptance.accepted_rounds[members.groups])) if len(members.groups) else 0


def refitting(scenario: Scenario, prepared: Stage1Outcome | ChosenFilter, rounds: int) -> Scenario:
    """Return the scenario of the refit, with everything that was chosen."""
    parts = {
        "data": {"validation_share": 0.0, "refit": False},
        "pretraining": prepared.chosen(),
        "fairness": {"tiers": ()},  # that are chosen on validation items
    }
    return with_parts(with_rounds(scenario, rounds), parts)


def with_rounds(scenario: Scenario, rounds: int) -> Scenario:
    """Return a scenario with so many rounds of refinement, all of which are kept: nothing is left to compare on."""
    acceptance = scenario.refinement.acceptance.model_copy(update={"rule": "always"})
    parts = {
        "refinement": {"rounds": rounds, "acceptance": acceptance},
        "controller": {"every": rounds + 1},  # no validation items, no signals
    }
    return with_parts(scenario, parts)


def with_parts(scenario: Scenario, parts: Mapping[str, Any]) -> Scenario:
    """Return a scenario with some keys of some of its parts changed."""
    changed = {name: getattr(scenario, name).model_copy(update=part) for name, part in parts.items()}
    return scenario.model_copy(update=changed)
