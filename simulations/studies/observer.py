"""What an audit observes of devices: messages of rounds and of the steps of stage 1.

User groups, and so who is watched, are known when stage 1 is over. The contribution of a device in a step follows from
the request and its data alone, so requests are kept, with the devices whose answers came, and each watched device is
asked them by the same code when its view is made: in the clear alone, as on a node of its own; under secure aggregation
all devices that are in the opened sum answer as one.

The run goes its way on its nodes. Before a round's messages leave, each watched device is asked the same by a node of
its own, as in deployment where a node is one device: the same message to the same code with the same state, so that
its answer is bit for bit what it adds to its real node's sums. Under secure aggregation the server sees sums over the
devices of a user group alone; so the group answers as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from clients.node.channel import ChannelTerms, clear_round, train_members
from clients.node.cohort import Cohort, DeviceState, open_cohort
from clients.node.joining import stated_ceilings
from clients.node.masked import announce_keys, opened_slices
from clients.node.round_context import RoundContext, extra_bytes
from clients.node.step_round import NodeDevices, StepParticipants, contribute
from fl_peel import wire
from fl_peel.array_specs import Counters
from fl_peel.attacks.base import DeviceView, IntArray, RoundView, StepView
from fl_peel.attacks.decoder import (
    Differencing,
    GroupSums,
    ItemCounts,
    PassView,
    Reconstruction,
    absences,
    difference,
    reconstruct,
)
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import Splits
from fl_peel.exchange.release import closed, dense, spare_devices, sparse
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.randomness import rng_for
from fl_peel.scenario.fleet_files import fleet_files
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import DropoutStage, needed_of, vanishing
from fl_peel.steps.base import UNIT_SCALE, ContributorsStep, unpacked_rows
from fl_peel.steps.choice import ChoiceStep
from fl_peel.steps.passes import CountsStep, PassStep
from fl_peel.steps.user_groups import MapsStep, MomentsStep, VectorsStep, nearest_groups
from fl_peel.wire import RoundReply, RoundRequest, SecureKeysRequest
from simulations.engine.passing_grid import PassingGrid

COLUMNS = 16
"""Columns of a pass that are looked at: a device adds the same numbers to each of its rows, so a few columns tell which
rows those are.
"""

LARGEST_PASS = 1 << 22
"""Numbers in the table of a pass up to which the decoder is tried."""


@dataclass(frozen=True)
class _SeenRequest:
    """A request, and the devices (N,) whose answer to it came."""

    request: wire.StepRequest
    devices: IntArray


@dataclass
class StepObserver:
    """Records stage 1 of a run; sums_alone: the server sees the sum over all devices of a step."""

    data_dir: str
    run_dir: str
    sums_alone: bool
    _seen: list[_SeenRequest] = field(default_factory=list)
    _passes: list[list[_SeenRequest]] = field(default_factory=list)
    _sums: list[StepView] | None = None
    _cohort: Cohort | None = None
    _vectors: bool = False
    _table: NDArray[np.float32] | None = None

    def see(self, request: wire.StepRequest, devices: IntArray | None = None) -> None:
        """Keep a request. devices: whose answers came, where the messages say so; else those that the step reaches.

        Of a pass the first columns are enough; a second stage 1 is not looked at.
        """
        step, first = request.step, request.first
        if self._seen and self._seen[0].request.setting != request.setting:
            return
        if isinstance(step, ContributorsStep | MapsStep):
            return
        if self.sums_alone and isinstance(step, PassStep):
            assert devices is not None, "masked replies say whose they are"
            self._keep_pass(request, step, np.sort(devices))
        if isinstance(step, PassStep):
            if first > 0:
                return
            stop = min(request.stop, COLUMNS)
            terms = self._everybody(request.setting).terms
            request = dataclasses.replace(request, stop=stop, sent=step.cut(request.sent, (0, stop), terms))
        if devices is None:
            # all devices are hosted, so places are numbers
            devices = StepParticipants.from_cohort(self._everybody(request.setting), step, request.time).places
        self._seen.append(_SeenRequest(request, np.sort(devices)))

    def _keep_pass(self, request: wire.StepRequest, step: PassStep, devices: IntArray) -> None:
        """Keep all columns of a pass for the decoder, where it is neither bounded nor too large."""
        size = request.sent["table"].shape[0] * step.columns
        if "weights" not in request.sent and size <= LARGEST_PASS:
            if request.first == 0:
                self._passes.append([])
            self._passes[-1].append(_SeenRequest(request, devices))

    def reconstruction(self) -> Reconstruction | None:
        """Return what the decoder finds in the sums of the passes; None where it can be tried on none."""
        if not self._passes:
            return None
        cohort = self._everybody(self._passes[0][0].request.setting)
        passes = []
        for parts in self._passes:
            requests = [one.request for one in parts]
            answers = [contribute(cohort, parts[0].devices, request)["columns"] for request in requests]
            table = np.concatenate([request.sent["table"] for request in requests], axis=1)
            passes.append(PassView(table, np.concatenate(answers, axis=1)))
        return reconstruct(
            passes,
            cohort.splits.contributed_items,
            cohort.scenario.pretraining.user_exponent,
            scale=cohort.terms.units.passes,
        )

    def differencing(self) -> Differencing | None:
        """Return what differences of sums of vectors tell; None where the server sees more, or noised sums alone."""
        parts = self._parts() if self.sums_alone else []
        asked = [part for part in parts if isinstance(part[0].request.step, MomentsStep)]
        made = [one.request for part in parts for one in part if isinstance(one.request.step, VectorsStep)]
        if not asked or not made:
            return None
        cohort = self._everybody(made[0].setting)
        if cohort.terms.bounded:
            return None
        replies = [self._view(part, part[0].devices).reply for part in asked]
        rounds = [GroupSums(reply["sizes"], reply["first"]) for reply in replies]
        return difference(rounds, self._own(made), cohort.splits.contributed_items, cohort.terms.units.moments)

    def absences(self) -> Differencing | None:
        """Return what item counts of everybody, less those of all user groups, tell of who is in one of the two alone;
        None where nobody is, and as in :meth:`differencing`.
        """
        parts = self._parts() if self.sums_alone else []
        counted = [part for part in parts if isinstance(part[0].request.step, CountsStep)]
        asked = [part for part in parts if isinstance(part[0].request.step, MomentsStep)]
        if not counted or not asked:
            return None
        first, moments = counted[0][0], asked[0][0]
        cohort = self._everybody(first.request.setting)
        if cohort.terms.bounded:
            return None
        rows = cohort.splits.contributed_items
        before = ItemCounts(first.devices, self._view(counted[0], first.devices).reply["items"], rows)
        items = self._view(asked[0], moments.devices).reply["items"].sum(axis=0)
        # members of groups that stay closed are in no count of a group; nor is who has no item
        known, groups = nearest_groups(NodeDevices(cohort, moments.devices), moments.request.sent["centroids"])
        some = np.ones(moments.request.step.num_rows(cohort.terms), np.bool_)
        if cohort.terms.counts_contributors:
            some = unpacked_rows(moments.request.opened, len(some))
        after = ItemCounts(moments.devices[known[some[groups]]], items, rows)
        return absences([(before, after)])

    @property
    def any(self) -> bool:
        return bool(self._seen)

    def steps(self, device: int) -> tuple[StepView, ...]:
        """Return what was seen of a device, oldest first."""
        if self.sums_alone:
            if self._sums is None:
                self._sums = [self._view(part, part[0].devices) for part in self._parts()]
            views = []
            for part, view in zip(self._parts(), self._sums, strict=True):
                views.append(view if device in part[0].devices else dataclasses.replace(view, reply={}))
            return tuple(views)
        alone = np.array([device], np.int64)
        return tuple(self._view(part, alone[np.isin(alone, part[0].devices)]) for part in self._parts())

    def _parts(self) -> list[list[_SeenRequest]]:
        """Requests by step: vectors and moments go in several messages."""
        parts: list[list[_SeenRequest]] = []
        for one in self._seen:
            if one.request.first > 0:
                parts[-1].append(one)
            else:
                parts.append([one])
        return parts

    def _view(self, part: Sequence[_SeenRequest], devices: IntArray) -> StepView:
        requests = [one.request for one in part]
        step, sent = requests[0].step, requests[0].sent
        cohort = self._everybody(requests[0].setting)
        if isinstance(step, VectorsStep):
            return StepView(step.name, {"own": self._own(requests)}, {}, len(devices))
        if isinstance(step, PassStep):
            sent = {}
        if isinstance(step, ChoiceStep):
            exponent = np.array([cohort.scenario.pretraining.item_exponent])
            sent = sent | {"place": np.array([step.place]), "item_exponent": exponent}
        if not len(devices):
            return StepView(step.name, sent, {}, 0)
        if not isinstance(step, ChoiceStep):
            self._make_vectors()
        answers = (((one.first, one.stop), contribute(cohort, devices, one)) for one in requests)
        seen = dataclasses.replace(step, columns=requests[0].stop) if isinstance(step, PassStep) else step
        reply = seen.whole(cohort.terms, answers)
        if isinstance(step, PassStep):
            reply = {"norms": np.linalg.norm(reply["columns"].astype(np.float64), axis=1)}
        if isinstance(step, ChoiceStep):
            reply["won"] = reply["won"] / UNIT_SCALE
        return StepView(step.name, sent, reply, len(devices))

    def _own(self, requests: Sequence[wire.StepRequest]) -> NDArray[np.float32]:
        """Rows that vectors are made of (I, K): one array for all devices."""
        if self._table is None:
            self._table = np.concatenate([request.sent["table"] for request in requests], axis=1)
        return self._table

    def _make_vectors(self) -> None:
        """Let all devices make their vectors, as they do when they are sent the rows."""
        if self._vectors:
            return
        for one in self._seen:
            if isinstance(one.request.step, VectorsStep):
                contribute(self._everybody(one.request.setting), one.devices, one.request)
        self._vectors = True

    def _everybody(self, setting: wire.RunSetting) -> Cohort:
        if self._cohort is None:
            whole = open_cohort(replace(setting, data_dir=self.data_dir, run_dir=self.run_dir), 0, 1)
            self._cohort = dataclasses.replace(whole, folder=Path(self.run_dir) / "observer" / "stage1")
        return self._cohort


PER_GROUP = 25
"""Devices watched in a user group, where the audit watches fewer than all."""


@dataclass(frozen=True)
class WatchedDevices:
    """The devices under audit and the truth about them, which no attack sees.

    devices (N,); groups, classes (N,) numbers; on_device (N, I): items whose row the device held in a round seen;
    accomplices (N,): whose secrets the attacker knows; splits: N rows.
    """

    devices: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: NDArray[np.int64]
    on_device: NDArray[np.bool_]
    accomplices: NDArray[np.bool_]
    splits: Splits
    num_groups: int
    num_classes: int


@dataclass
class Observer:
    """Records views of ``count`` devices of a run under ``scenario`` on ``num_nodes`` nodes; sums_alone: see above.

    stage1: what was seen of stage 1, where devices took part in it.
    """

    scenario: Scenario
    data_dir: str
    run_dir: str
    num_nodes: int
    count: int
    rounds: int
    sums_alone: bool = False
    views: dict[int, list[RoundView]] = field(default_factory=dict)
    stage1: StepObserver = field(init=False)
    _announced: dict[int, int] = field(default_factory=dict)
    _owners: dict[int, list[ItemCounts]] = field(default_factory=dict)
    _spare: dict[int, int] = field(default_factory=dict)
    _watched: WatchedDevices | None = None
    _cohort: Cohort | None = None

    def __post_init__(self) -> None:
        self.stage1 = StepObserver(self.data_dir, self.run_dir, self.sums_alone)

    def finish(self) -> None:
        """Choose who is watched where no round was seen but stage 1 was, once devices have joined."""
        if self._watched is None and self.stage1.any:
            cohort = self._everybody(self.scenario.to_json())
            self._copy_state(cohort)
            self._watched = self._choose(cohort)

    def see_directories(self, requests: list[wire.SecureSharesRequest]) -> None:
        """Note how many devices of each user group announced keys: what devices divide their noise by."""
        self._announced = {
            group: len(content.directory) for request in requests for group, content in request.groups.items()
        }

    def see_owners(self, requests: list[wire.SecureRoundRequest], replies: list[wire.SecureRoundReply]) -> None:
        """Count the owners that devices counted before a round, of whom the replies are. requests: of one round."""
        if requests[0].server_round > self.rounds:
            return
        cohort = self._everybody(requests[0].setting.scenario)
        self._copy_state(cohort)
        context, num_items = RoundContext.from_request(cohort, requests[0]), cohort.splits.num_items
        terms = ChannelTerms(counts=True)
        for group in {group for one in requests for group in one.groups}:
            payload = next(one.groups[group] for one in requests if group in one.groups)
            ranked = RankedBlocks.unpack(cohort.layout(), self.scenario.blocks.precision, payload)
            devices = np.concatenate([reply.groups[group].devices for reply in replies if group in reply.groups])
            items = np.zeros(num_items, np.int64)
            for place in cohort.places(np.sort(devices)).tolist():
                part = train_members(context, ranked, np.array([place]), terms)
                items[ranked.items] += part.arrays["owners"].max(axis=1)
            self._owners.setdefault(group, []).append(ItemCounts(np.sort(devices), items, cohort.splits.train))
            asked = sum(len(one.secure[group].devices) for one in requests if group in one.secure)
            self._spare[group] = spare_devices(asked - len(devices))

    def absences(self) -> Differencing | None:
        """Return what counts of owners in a round, less those of the next one, tell of who is in one of them alone."""
        return absences(pair for counts in self._owners.values() for pair in pairwise(counts))

    def see(self, requests: list[wire.RoundRequest]) -> None:
        """Ask the watched devices what their nodes are about to be asked. requests: of one round."""
        if requests[0].server_round > self.rounds:
            return
        cohort = self._everybody(requests[0].setting.scenario)
        self._copy_state(cohort)
        if self._watched is None:
            self._watched = self._choose(cohort)
        watched = self._watched
        by_group: dict[int, list[wire.RoundRequest]] = {}
        for request in requests:
            for group in request.groups:
                by_group.setdefault(group, []).append(request)
        for group, mine in by_group.items():
            sampled = np.sort(np.concatenate([one.devices for one in mine]))
            groups = np.asarray(cohort.state("r").groups)
            sampled = sampled[groups[sampled] == group]
            here = np.intersect1d(watched.devices[watched.groups == group], sampled)
            if not len(here):
                continue
            alone = dataclasses.replace(mine[0], groups={group: mine[0].groups[group]}, traced=np.zeros(0, np.int64))
            ranked = RankedBlocks.unpack(cohort.layout(), self.scenario.blocks.precision, alone.groups[group])
            self._mark_present(cohort, alone, ranked, here)
            whole = None  # of the sum, which is all that is seen of each device in it
            if self.sums_alone:
                lost = vanishing(self.scenario, alone.server_round, sampled) == DropoutStage.VECTOR
                total = dataclasses.replace(alone, devices=sampled[~lost])
                needed = len(sampled) - self._spare.get(group, len(sampled))
                if len(total.devices) < max(needed, needed_of(self.scenario, self._announced[group])[1]):
                    continue  # void: nothing is opened
                whole = self._answer(cohort, total, ranked, group, len(total.devices))
            for device in here.tolist():
                one = dataclasses.replace(alone, devices=np.array([device], np.int64))
                view = whole or self._answer(cohort, one, ranked, group, 1)
                figures = dict(view.figures)
                if self.sums_alone:
                    figures |= self._figures_of_stages(cohort, one, ranked)
                figures |= self._figures_of_joining(cohort, device, group)
                self.views[device].append(dataclasses.replace(view, figures=figures))

    def _figures_of_joining(self, cohort: Cohort, device: int, group: int) -> dict[str, float]:
        """Return the reply of a lone device when it joined, but for its user group, which the server needs."""
        place, groups = np.array([device], np.int64), np.array([group], np.int32)
        return {"join.ceiling": float(stated_ceilings(cohort, place, groups, group + 1)[group])}

    def _figures_of_stages(self, cohort: Cohort, request: wire.RoundRequest, ranked: RankedBlocks) -> dict[str, float]:
        """Return the figures in the messages of secure aggregation about one device that are outside its masked vector:
        the keys reply, but for keys, which are random numbers; whether it sends a vector, whether it opens shares.

        Devices that never got as far as to be asked for their vector have no view of the round.
        """
        keys = announce_keys(cohort, SecureKeysRequest(request.setting, request.server_round, request.devices))
        when = int(vanishing(cohort.scenario, request.server_round, request.devices)[0])
        if when == DropoutStage.NEVER and not _sends(cohort, request, ranked):
            when = int(DropoutStage.VECTOR)
        sends = when != DropoutStage.VECTOR
        figures = _cells("keys.clock", keys.clock) | {"keys.announced": float(len(keys.devices))}
        return figures | {"vector.sent": float(sends), "opening.sent": float(sends and when != DropoutStage.OPENING)}

    def watched(self) -> WatchedDevices:
        """The devices, once a round was seen."""
        assert self._watched is not None, "no round was observed"
        return self._watched

    def view(self, device: int) -> DeviceView:
        steps = self.stage1.steps(device)
        return DeviceView(device, self.watched().splits.num_items, tuple(self.views[device]), steps)

    @cached_property
    def _fleet(self) -> str:
        return fleet_files(self.scenario.fleet)

    def _setting(self, scenario: str) -> wire.RunSetting:
        return wire.RunSetting(scenario, self.data_dir, self.run_dir, fleet=self._fleet)

    def _everybody(self, scenario: str) -> Cohort:
        if self._cohort is None:
            whole = open_cohort(self._setting(scenario), 0, 1)
            self._cohort = dataclasses.replace(whole, folder=Path(self.run_dir) / "observer")
        return self._cohort

    def _copy_state(self, cohort: Cohort) -> None:
        """The state of all devices as it is on their real nodes."""
        num_devices = len(cohort.devices)
        parts = [open_cohort(self._setting(self.scenario.to_json()), p, self.num_nodes) for p in range(self.num_nodes)]
        states = [part.state("r") for part in parts]
        users = np.empty((num_devices, states[0].users.shape[1]), np.float32)
        groups, kept = np.empty(num_devices, np.int32), np.empty(num_devices, np.int32)
        for p, state in enumerate(states):
            users[p :: self.num_nodes] = state.users
            groups[p :: self.num_nodes] = state.groups
            kept[p :: self.num_nodes] = state.kept_blocks
        cohort.save_layout(parts[0].layout())
        DeviceState.begin(cohort.folder, len(groups), 0, users, groups)
        cohort.state().kept_blocks[:] = kept

    def _choose(self, cohort: Cohort) -> WatchedDevices:
        """Choose some user groups, and of each some devices: a quarter of them accomplices."""
        groups = np.asarray(cohort.state("r").groups)
        rng = rng_for(self.scenario.seed, "audit", "watched")
        sizes = np.bincount(groups)
        order = rng.permutation(np.flatnonzero(sizes >= 2))
        some = order[: max(1, -(-self.count // PER_GROUP))]
        share = max(2, -(-self.count // len(some)))
        while sizes[some].clip(max=share).sum() < self.count and share < sizes[some].max():
            share += 1
        chosen = [np.sort(rng.permutation(np.flatnonzero(groups == g))[:share]) for g in np.sort(some)]
        devices = np.concatenate(chosen).astype(np.int64)
        accomplices = np.concatenate([np.arange(len(part)) % 4 == 3 for part in chosen])
        self.views = {device: [] for device in devices.tolist()}
        return WatchedDevices(
            devices,
            groups[devices].astype(np.int64),
            cohort.classes[devices].astype(np.int64),
            np.zeros((len(devices), cohort.splits.num_items), np.bool_),
            accomplices,
            cohort.splits.select(devices),
            int(groups.max()) + 1,
            len(cohort.fleet.names),
        )

    def _mark_present(
        self, cohort: Cohort, request: wire.RoundRequest, ranked: RankedBlocks, here: NDArray[np.int64]
    ) -> None:
        watched = self.watched()
        present = present_rows(cohort, request.server_round, ranked, here)
        for device, rows in zip(here.tolist(), present.tolist(), strict=True):
            place = int(np.flatnonzero(watched.devices == device)[0])
            watched.on_device[place, ranked.items[:rows]] = True

    def _answer(
        self, cohort: Cohort, request: wire.RoundRequest, ranked: RankedBlocks, group: int, num_devices: int
    ) -> RoundView:
        reply = answer_alone(cohort, request, {group: self._announced[group]} if self.sums_alone else None)
        content = dict(reply.groups.get(group, {}))
        if isinstance(request, wire.SecureRoundRequest) and self.scenario.counts_owners and content:
            values = dense(content, len(ranked.items), ranked.layout.embedding_dim)
            content = sparse(closed(values, opened_slices(request.secure[group], ranked)))
        # figures that are the simulation's own measurement, which no device sends
        measured_only = self.scenario.privacy.sums_only and self.scenario.privacy.counters == "measured"
        return RoundView(
            request.server_round,
            ranked.items.astype(np.int64),
            ranked.table,
            ranked.position,
            ranked.blocks,
            self.scenario.refinement.local.config(request.temperature),
            content,
            {} if measured_only else figures_of(reply),
            num_devices,
        )


def figures_of(reply: wire.RoundReply) -> Mapping[str, float]:
    """The single numbers of a reply by name."""
    counts = reply.counts
    totals = {name: float(getattr(counts.totals, name)) for name in counts.totals.names()}
    figures = _cells("classes", counts.classes) | _cells("clock", counts.clock)
    return figures | {"slowest_us": float(counts.slowest_us)} | totals


def _cells(name: str, counts: Counters) -> dict[str, float]:
    return {
        f"{name}.{row}.{column}": float(getattr(counts, column)[row])
        for row in range(len(counts.stacked()))
        for column in counts.names()
    }


def _requests(messages: Iterable[Message], *kinds: wire.MessageKind[Any]) -> list[Any]:
    return [
        wire.unpack(kind.request, one.content)
        for one in messages
        for kind in kinds
        if one.metadata.message_type == kind
    ]


class TapGrid(PassingGrid):
    """Shows the observer every round's requests before they leave."""

    def __init__(self, grid: Grid, observer: Observer) -> None:
        super().__init__(grid)
        self._observer = observer

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Show, send, and wait for replies."""
        sent = list(messages)
        shares = _requests(sent, wire.SECURE_SHARES)
        if shares:
            self._observer.see_directories(shares)
        rounds = _requests(sent, wire.ROUND, wire.SECURE_ROUND)
        if rounds:
            self._observer.see(rounds)
        replies = list(super().send_and_receive(sent, timeout=timeout))
        owners = _requests(sent, wire.SECURE_OWNERS)
        if owners:
            whole = [wire.unpack(wire.SecureRoundReply, one.content) for one in replies if one.has_content()]
            self._observer.see_owners(owners, whole)
        self._see_stage1(sent, replies)
        return replies

    def _see_stage1(self, sent: list[Message], replies: list[Message]) -> None:
        """Show a step of stage 1, which is one request to all nodes, with the devices that masked replies name."""
        asked = _requests(sent[:1], wire.STEP, wire.SECURE_SUMS)
        if not asked:
            return
        devices = None
        if isinstance(asked[0], wire.SecureSumsRequest):
            whole = [wire.unpack(wire.SecureSumsReply, reply.content) for reply in replies if reply.has_content()]
            devices = np.concatenate([np.zeros(0, np.int64), *(reply.sum.devices for reply in whole)])
        self._observer.stage1.see(asked[0], devices)


# ---- Contribution of a single device in a round, as if its node hosted it alone


def answer_alone(cohort: Cohort, request: RoundRequest, announced: Mapping[int, int] | None = None) -> RoundReply:
    """The reply for the request's devices. announced: of masked groups, how many their shares of noise are of."""
    shared = in_masked_sums(cohort.scenario, find_mechanism(cohort.scenario.privacy.mechanism))
    numbers = (announced or {}).items() if shared else ()
    return clear_round(cohort, request, {group: noise_devices_of(cohort.scenario, number) for group, number in numbers})


def _sends(cohort: Cohort, request: RoundRequest, ranked: RankedBlocks) -> bool:
    """Whether memory and time let the device end the round."""
    world, places = RoundContext.from_request(cohort, request), cohort.places(request.devices)
    if world.memory(ranked, places, world.working(places)).dropped_out.all():
        return False
    if cohort.scenario.refinement.deadline_s is None:
        return True
    return len(train_members(world, ranked, places).state_update.places) > 0


def present_rows(
    cohort: Cohort, server_round: int, ranked: RankedBlocks, places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows (N,) that devices at these places hold when the round ends: the first ones of the ranked blocks."""
    lowest = cohort.budgets.during(server_round)[:, places].min(axis=0)
    return ranked.num_present(ranked.cutoffs(lowest - extra_bytes(cohort.scenario)))
