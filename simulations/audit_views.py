"""What a server sees of single devices during a real run, recorded beside it.

The run goes its way on its nodes. Before a round's messages leave, each watched device is asked the same by a node of
its own, as in deployment where a node is one device: the same message to the same code with the same state, so that
its answer is bit for bit what it adds to its real node's sums. Under secure aggregation the server sees sums over the
devices of a user group alone; so the group answers as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from clients.accounts import Accounts
from clients.cohort import Cohort, DeviceState, open_cohort
from clients.moving import RoundMemory
from clients.secure_round import announce_keys
from clients.work import RoundWorld, stated_ceilings, train_members, train_round
from fl_peel import wire
from fl_peel.attacks.views import DeviceView, RoundView
from fl_peel.config import Scenario
from fl_peel.interactions import Splits
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.privacy.plan import in_masked_sums, noise_devices_of
from fl_peel.randomness import rng_for
from fl_peel.secure.plan import Vanishes, needed_of, vanishing
from fl_peel.selection import RankedBlocks

PER_GROUP = 25
"""Devices watched in a user group, where the audit watches fewer than all."""


@dataclass(frozen=True)
class Watched:
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
    """Records views of ``count`` devices of a run under ``scenario`` on ``num_nodes`` nodes; sums_only: see above."""

    scenario: Scenario
    data_dir: str
    run_dir: str
    num_nodes: int
    count: int
    rounds: int
    sums_only: bool = False
    views: dict[int, list[RoundView]] = field(default_factory=dict)
    _announced: dict[int, int] = field(default_factory=dict)
    _watched: Watched | None = None
    _cohort: Cohort | None = None

    def see_directories(self, requests: list[wire.SecureSharesRequest]) -> None:
        """Note how many devices of each user group announced keys: what devices divide their noise by."""
        self._announced = {
            group: len(content["directory"]) for request in requests for group, content in request.groups.items()
        }

    def see(self, requests: list[wire.RoundRequest]) -> None:
        """Ask the watched devices what their nodes are about to be asked. requests: of one round."""
        if requests[0].server_round > self.rounds:
            return
        cohort = self._everybody(requests[0].scenario)
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
            if self.sums_only:
                lost = vanishing(self.scenario, alone.server_round, sampled) == Vanishes.VECTOR
                total = dataclasses.replace(alone, devices=sampled[~lost])
                if len(total.devices) < needed_of(self.scenario, self._announced[group])[1]:
                    continue  # void: nothing is opened
                view = self._answer(cohort, total, ranked, group, len(total.devices))
                for device in here.tolist():
                    one = dataclasses.replace(alone, devices=np.array([device], np.int64))
                    figures = {**view.figures, **self._figures_of_stages(cohort, one, ranked)}
                    figures |= self._figures_of_joining(cohort, device, group)
                    self.views[device].append(dataclasses.replace(view, figures=figures))
                continue
            for device in here.tolist():
                one = dataclasses.replace(alone, devices=np.array([device], np.int64))
                view = self._answer(cohort, one, ranked, group, 1)
                figures = {**view.figures, **self._figures_of_joining(cohort, device, group)}
                self.views[device].append(dataclasses.replace(view, figures=figures))

    def _figures_of_joining(self, cohort: Cohort, device: int, group: int) -> dict[str, float]:
        """What a lone device said when it joined, but for its user group, which the server needs."""
        place, groups = np.array([device], np.int64), np.array([group], np.int32)
        return {"join.ceiling": float(stated_ceilings(cohort, place, groups, group + 1)[group])}

    def _figures_of_stages(self, cohort: Cohort, request: wire.RoundRequest, ranked: RankedBlocks) -> dict[str, float]:
        """What the messages of secure aggregation say of one device outside its masked vector: the keys reply, but for
        keys, which are random numbers; whether it shares, sends a vector, opens; what comes beside its vector.

        Devices that never got as far as to be asked for their vector have no view of the round.
        """
        keys = announce_keys(
            cohort,
            wire.SecureKeysRequest(
                request.scenario, request.data_dir, request.run_dir, request.server_round, request.devices
            ),
        )
        when = int(vanishing(self.scenario, request.server_round, request.devices)[0])
        world = RoundWorld.of(cohort, request)
        out = bool(RoundMemory.of(ranked, world.budgets[:, request.devices]).dropped_out.all())
        if not out and self.scenario.refinement.deadline_s is not None:
            alone = train_members(world, ranked, request.devices, Accounts.empty(len(cohort.fleet.names)))
            out = not len(alone.kept)
        when = int(Vanishes.VECTOR) if out and when == Vanishes.NEVER else when
        figures = _cells("keys.clock", keys.clock, wire.ClockColumn)
        figures |= {"keys.announced": float(len(keys.devices)), "vector.sent": float(when != Vanishes.VECTOR)}
        return figures | {"opening.sent": float(when not in (Vanishes.VECTOR, Vanishes.OPENING))}

    @property
    def _measured_only(self) -> bool:
        """Whether the reply's figures are the simulation's own measurement, which no device sends."""
        return self.scenario.privacy.sums_only and self.scenario.privacy.counters == "measured"

    def watched(self) -> Watched:
        """The devices, once a round was seen."""
        assert self._watched is not None, "no round was seen"
        return self._watched

    def view(self, device: int) -> DeviceView:
        """All that was seen of a device."""
        return DeviceView(device, self.watched().splits.num_items, tuple(self.views[device]))

    def _everybody(self, scenario: str) -> Cohort:
        if self._cohort is None:
            whole = open_cohort(scenario, self.data_dir, self.run_dir, 0, 1)
            self._cohort = dataclasses.replace(whole, folder=Path(self.run_dir) / "observer")
        return self._cohort

    def _copy_state(self, cohort: Cohort) -> None:
        """The state of all devices as it is on their real nodes."""
        num_devices = len(cohort.devices)
        parts = [
            open_cohort(self.scenario.to_json(), self.data_dir, self.run_dir, p, self.num_nodes)
            for p in range(self.num_nodes)
        ]
        states = [part.state("r") for part in parts]
        users = np.empty((num_devices, states[0].users.shape[1]), np.float32)
        groups, kept = np.empty(num_devices, np.int32), np.empty(num_devices, np.int32)
        for p, state in enumerate(states):
            users[p :: self.num_nodes] = state.users
            groups[p :: self.num_nodes] = state.groups
            kept[p :: self.num_nodes] = state.kept_blocks
        cohort.save_layout(parts[0].layout())
        DeviceState.create(cohort.folder, users, groups)
        cohort.state().kept_blocks[:] = kept

    def _choose(self, cohort: Cohort) -> Watched:
        """Some user groups, and of each some devices: a quarter of them accomplices."""
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
        return Watched(
            devices,
            groups[devices].astype(np.int64),
            cohort.classes[devices].astype(np.int64),
            np.zeros((len(devices), cohort.splits.num_items), np.bool_),
            accomplices,
            cohort.splits.of(devices),
            int(groups.max()) + 1,
            len(cohort.fleet.names),
        )

    def _mark_present(
        self, cohort: Cohort, request: wire.RoundRequest, ranked: RankedBlocks, here: NDArray[np.int64]
    ) -> None:
        watched = self.watched()
        memory = RoundMemory.of(ranked, cohort.budgets.during(request.server_round)[:, here])
        for device, rows in zip(here.tolist(), ranked.num_present(memory.last).tolist(), strict=True):
            place = int(np.flatnonzero(watched.devices == device)[0])
            watched.on_device[place, ranked.items[:rows]] = True

    def _answer(
        self, cohort: Cohort, request: wire.RoundRequest, ranked: RankedBlocks, group: int, num_devices: int
    ) -> RoundView:
        noise_devices = None
        if self.sums_only and in_masked_sums(self.scenario, find_mechanism(self.scenario.privacy.mechanism)):
            noise_devices = {group: noise_devices_of(self.scenario, self._announced[group])}
        reply = train_round(cohort, request, noise_devices)
        return RoundView(
            request.server_round,
            ranked.items.astype(np.int64),
            ranked.table,
            ranked.position,
            ranked.blocks,
            self.scenario.refinement.local.config(request.temperature),
            dict(reply.groups.get(group, {})),
            {} if self._measured_only else figures_of(reply),
            num_devices,
        )


def figures_of(reply: wire.RoundReply) -> Mapping[str, float]:
    """The single numbers of a reply by name."""
    figures: dict[str, float] = {}
    for name, columns in (("classes", wire.ClassColumn), ("clock", wire.ClockColumn)):
        figures |= _cells(name, getattr(reply, name), columns)
    return figures | {
        name: float(getattr(reply, name)) for name in ("slowest_us", "trained", "loss", "recall", "ndcg", "evaluated")
    }


def _cells(
    name: str, table: NDArray[np.int64], columns: type[wire.ClassColumn] | type[wire.ClockColumn]
) -> dict[str, float]:
    return {
        f"{name}.{row}.{column.name.lower()}": float(table[row, column])
        for row in range(len(table))
        for column in columns
    }


def _round_request(message: Message) -> wire.RoundRequest | None:
    """What a message asks devices to train; None where it asks for something else."""
    kinds = {wire.ROUND: wire.RoundRequest, wire.SECURE_ROUND: wire.SecureRoundRequest}
    kind = kinds.get(message.metadata.message_type)
    return None if kind is None else wire.unpack(kind, message.content)


class TapGrid(Grid):
    """Passes everything on to ``grid``, and shows the observer every round's requests before they leave."""

    def __init__(self, grid: Grid, observer: Observer) -> None:
        self._grid = grid
        self._observer = observer

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Pass on."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Pass on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Show, send, and wait for replies."""
        sent = list(messages)
        shares = [
            wire.unpack(wire.SecureSharesRequest, message.content)
            for message in sent
            if message.metadata.message_type == wire.SECURE_SHARES
        ]
        if shares:
            self._observer.see_directories(shares)
        rounds = [request for message in sent if (request := _round_request(message)) is not None]
        if rounds:
            self._observer.see(rounds)
        return self._grid.send_and_receive(sent, timeout=timeout)


__all__ = ["Observer", "TapGrid", "Watched", "figures_of"]
