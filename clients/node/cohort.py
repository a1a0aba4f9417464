"""The devices that one node hosts, and their state between rounds.

Node p of P hosts the devices p, p + P, p + 2P, ..., or those whose interactions it has (:class:`OwnData`).
Their state (user embedding, user group, what they kept last) lies in memory-mapped files in the node's folder, not in
Flower's context, which is pickled with every message; so whichever process answers a message finds it. In simulation,
the devices' interactions lie in the same way in the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import Context
from numpy.typing import NDArray

from clients.fleet.fleet import Fleet, FleetBudgets, held_once, load_sent_fleet
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.device_storage import device_splits, hosted_splits, keep_catalogue, own_splits
from fl_peel.errors import EngineError
from fl_peel.files import file_kind
from fl_peel.privacy.noise_plan import contribution_bounds
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import StepTerms
from fl_peel.wire import RunSetting

# ---- The virtual clock: how long a round takes on a device, at its profile's rates, and what it costs the battery
# time = latency + download bytes / downlink + samples / samples_per_s + upload bytes / uplink
#
# in this order, one after the other; choosing blocks is part of the training rate. A deadline cuts the work off where
# it stands: a straggler has moved, computed and burnt what fits in the time, and its update counts for nothing (the
# reporting window of Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019). No real clock is read, so
# the figures are those of the simulated devices whatever machine simulates them.
#
# Sums over devices are integers (microseconds, millijoules, bytes), so that they do not depend on order or nodes.


FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BYTES_PER_MEGABIT = 125_000
MICROSECONDS = 1e6
MILLIJOULES = 1e3
MOST = 1 << 43
"""Microseconds (101 days) and millijoules of a device in a round, at most, so that sums over a million fit 64 bits."""


@dataclass(frozen=True)
class DeviceRates:
    """Rates of devices, (N,) each: seconds, bytes per second, samples per second, watts, joules per 10^6 bytes."""

    latency_s: FloatArray
    downlink_bytes_per_s: FloatArray
    uplink_bytes_per_s: FloatArray
    samples_per_s: FloatArray
    train_watts: FloatArray
    radio_joules_per_mb: FloatArray

    @staticmethod
    def from_rates(rates: Mapping[str, FloatArray]) -> DeviceRates:
        return DeviceRates(
            held_once(rates["latency_ms"] / 1e3),
            held_once(rates["downlink_mbps"] * BYTES_PER_MEGABIT),
            held_once(rates["uplink_mbps"] * BYTES_PER_MEGABIT),
            held_once(rates["samples_per_s"]),
            held_once(rates["train_watts"]),
            held_once(rates["radio_joules_per_mb"]),
        )

    def select(self, index: NDArray[np.integer]) -> DeviceRates:
        return DeviceRates(
            self.latency_s[index],
            self.downlink_bytes_per_s[index],
            self.uplink_bytes_per_s[index],
            self.samples_per_s[index],
            self.train_watts[index],
            self.radio_joules_per_mb[index],
        )


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round for each device, (N,) each; late: whether it missed the deadline and was cut off there."""

    time_us: IntArray
    energy_mj: IntArray
    download_bytes: IntArray
    upload_bytes: IntArray
    late: NDArray[np.bool_]


def round_seconds(
    rates: DeviceRates, download_bytes: IntArray, samples: IntArray, upload_bytes: IntArray
) -> FloatArray:
    """Virtual seconds (N,) from the request to the last byte of the reply, without a deadline."""
    return (
        rates.latency_s
        + download_bytes / rates.downlink_bytes_per_s
        + samples / rates.samples_per_s
        + upload_bytes / rates.uplink_bytes_per_s
    )


def spend(
    rates: DeviceRates,
    download_bytes: IntArray,
    samples: IntArray,
    upload_bytes: IntArray,
    deadline_s: float | None = None,
) -> RoundCost:
    """Return what devices spend on a round, each stopping at the deadline.

    download_bytes, samples, upload_bytes: (N,), the work of the whole round. Energy is train_watts over the training
    time plus radio_joules_per_mb over the bytes moved either way. Neither is reported beyond :data:`MOST`.
    """
    limit = np.inf if deadline_s is None else deadline_s
    left = np.full(len(download_bytes), limit) - np.minimum(rates.latency_s, limit)
    down_s = np.minimum(download_bytes / rates.downlink_bytes_per_s, left)
    left = left - down_s
    train_s = np.minimum(samples / rates.samples_per_s, left)
    left = left - train_s
    up_s = np.minimum(upload_bytes / rates.uplink_bytes_per_s, left)
    seconds = round_seconds(rates, download_bytes, samples, upload_bytes)
    late = seconds > limit
    moved_down = np.where(
        late, np.minimum(np.floor(down_s * rates.downlink_bytes_per_s), download_bytes), download_bytes
    )
    moved_up = np.where(late, np.minimum(np.floor(up_s * rates.uplink_bytes_per_s), upload_bytes), upload_bytes)
    joules = rates.train_watts * train_s + rates.radio_joules_per_mb * (moved_down + moved_up) / 1e6
    return RoundCost(
        _whole(np.minimum(seconds, limit) * MICROSECONDS),
        _whole(joules * MILLIJOULES),
        moved_down.astype(np.int64),
        moved_up.astype(np.int64),
        late,
    )


def _whole(values: FloatArray) -> IntArray:
    return np.rint(np.minimum(values, MOST)).astype(np.int64)


def never_within_deadline(
    rates: DeviceRates, download_bytes: IntArray, samples: IntArray, deadline_s: float | None
) -> NDArray[np.bool_]:
    """Devices (N,) that miss the deadline before they upload anything: there is no need to simulate their training."""
    if deadline_s is None:
        return np.zeros(len(download_bytes), np.bool_)
    return round_seconds(rates, download_bytes, samples, np.zeros_like(download_bytes)) > deadline_s


NAMES = ("users", "groups", "kept_blocks", "kept_users")


@dataclass(frozen=True)
class DeviceState:
    """Memory-mapped, one entry per hosted device: users (N, d), as fp16 stores them; groups, kept_blocks (N,) int32;
    kept_users (N, d), likewise, the user embedding that a device goes back to where a refinement is not kept.
    """

    users: NDArray[np.float32]
    groups: NDArray[np.int32]
    kept_blocks: NDArray[np.int32]
    kept_users: NDArray[np.float32]

    @staticmethod
    def open(folder: Path, mode: Literal["r", "r+"]) -> DeviceState:
        """Open the state of the node in ``folder``; mode "r+" to change it.

        Raises:
            EngineError: the node has not joined the run, or what it keeps is damaged.
        """
        try:
            state = DeviceState(*(np.load(folder / f"{name}.npy", mmap_mode=mode) for name in NAMES))
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise EngineError(
                f"{folder}: this node's devices have not joined the run ({why}); start it again"
            ) from error
        users, devices = state.users, state.groups.shape
        shapes = users.shape[:1], state.kept_blocks.shape, state.kept_users.shape[:1]
        if len(devices) != 1 or any(shape != devices for shape in shapes) or state.kept_users.shape != users.shape:
            raise EngineError(f"{folder}: the stored state of this node's devices is damaged; start the run again")
        return state

    @staticmethod
    def begin(
        folder: Path, num_devices: int, first: int, users: NDArray[np.float32], groups: NDArray[np.int32]
    ) -> None:
        """Write the first state of some devices: those from the place ``first`` on, of ``num_devices``. The first part
        makes the files anew.

        Raises:
            EngineError: the parts before it are not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stored, here = stored_user(users), slice(first, first + len(groups))
        parts = {
            "users": stored,
            "groups": groups,
            "kept_blocks": np.full(len(groups), -1, np.int32),
            "kept_users": stored,
        }
        for name, part in parts.items():
            path = folder / f"{name}.npy"
            if here == slice(0, num_devices):
                np.save(path, part)
                continue
            if first == 0:
                np.lib.format.open_memmap(path, "w+", part.dtype, (num_devices, *part.shape[1:]))
            try:
                np.load(path, mmap_mode="r+")[here] = part
            except (OSError, ValueError) as error:
                raise EngineError(
                    f"{path}: devices with smaller numbers have not joined the run; start it again"
                ) from error


USUAL_ROUNDS = 400
"""Rounds that a device's usual availability is taken over."""


@dataclass(frozen=True)
class Cohort:
    """The devices of a node: their numbers, interactions and profiles, and the block layout."""

    scenario: Scenario
    folder: Path
    run_dir: Path
    partition: int
    num_partitions: int
    devices: NDArray[np.int64]
    splits: Splits
    fleet: Fleet
    """All classes: their order is that of every sum per class."""
    own_fleet: Fleet
    """The classes that are hosted here: all of them, or the one that the node was started with."""
    classes: NDArray[np.int16]
    budgets: FleetBudgets
    """``budgets.at(server_round)``: memory budget of every hosted device, (N,) bytes."""
    population: int
    """Devices of all nodes together."""
    own: bool = False
    """Whether the node has these devices' interactions itself, so that their numbers follow one another."""

    @cached_property
    def seen(self) -> UserItems:
        """Return the items that devices interacted with before the test: train and validation items."""
        return self.splits.train.merged(self.splits.validation)

    @cached_property
    def rows(self) -> UserItems:
        """Return the train items that tables have a row of: not those that nobody had used when a period began."""
        return self.splits.train.below(self.splits.num_items)

    @cached_property
    def terms(self) -> StepTerms:
        """Return what the devices and the server know alike in steps of stage 1."""
        return StepTerms.from_scenario(
            self.scenario, self.splits.num_items, self.population, contribution_bounds(self.scenario)
        )

    @cached_property
    def _contributed(self) -> dict[bytes, UserItems]:
        return {}

    def contributed_by(self, places: IntArray) -> UserItems:
        """Return the items that the devices at these places (N,) contribute; of the same places again, as for the next
        part of a step, the same object, which knows them in ascending order.
        """
        kept, whose = self._contributed, places.tobytes()
        if whose not in kept:
            kept.clear()
            kept[whose] = self.splits.contributed_items.select(places)
        return kept[whose]

    @property
    def fading(self) -> float | None:
        """Return how fast interactions fade in vectors, in a timeline; see :class:`fl_peel.scenario.method`."""
        timeline = self.scenario.data.timeline
        return None if timeline is None else timeline.decay_interactions

    @cached_property
    def joining(self) -> NDArray[np.bool_]:
        """Return which hosted devices (N,) take part for the first time: all, or in a period those new to it."""
        timeline = self.scenario.data.timeline
        everybody = np.ones(len(self.devices), np.bool_)
        return self.splits.train.counts() > 0 if timeline is not None and timeline.phase == "join" else everybody

    @cached_property
    def contributing(self) -> NDArray[np.bool_]:
        """Return which of the joining devices (N,) are asked for sums: in a timeline, not those that have left."""
        contributed = self.splits.contributed
        return self.joining if contributed is None else self.joining & (contributed.counts() > 0)

    @cached_property
    def ceilings(self) -> NDArray[np.int64]:
        """Bytes (N,) that the budget of each hosted device never exceeds."""
        return held_once(self.budgets.ceiling())

    @cached_property
    def largest_budget(self) -> int:
        """Bytes that no device of the fleet ever exceeds: what its makers publish, the same on every node."""
        full_table_bytes = 4 * self.splits.num_items * self.scenario.pretraining.embedding_dim
        everybody = np.arange(self.population, dtype=np.int64)
        return int(FleetBudgets(self.fleet, self.scenario.seed, everybody, full_table_bytes).ceiling().max(initial=0))

    @cached_property
    def rates(self) -> DeviceRates:
        """Compute, link and energy rates of every hosted device."""
        return DeviceRates.from_rates(self.own_fleet.rates(self.scenario.seed, self.devices))

    def available(self, places: NDArray[np.int64], server_round: float) -> NDArray[np.bool_]:
        """Return which of the hosted devices at ``places`` can take part at a time, in rounds."""
        return self.own_fleet.available(self.scenario.seed, self.devices[places], server_round)

    @cached_property
    def usual_availability(self) -> NDArray[np.float64]:
        """Return each device's (N,) share of rounds in which it is available: what it knows of itself from before."""
        everybody = np.arange(len(self.devices))
        times = sum(self.available(everybody, number).astype(np.int64) for number in range(1, USUAL_ROUNDS + 1))
        return np.asarray(times, np.float64) / USUAL_ROUNDS

    def places(self, devices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each hosted device in this cohort's arrays.

        Raises:
            EngineError: a device that this node does not host.
        """
        hosted = np.isin(devices, self.devices) if self.own else devices % self.num_partitions == self.partition
        if not hosted.all():
            raise EngineError(
                f"node {self.partition} of {self.num_partitions} was asked for devices that it does not host"
            )
        if self.own:
            return np.asarray(devices - self.devices[:1])
        return (devices - self.partition) // self.num_partitions

    @property
    def vectors_file(self) -> Path:
        """Return the file in which devices keep the vectors (N, K) that they made in stage 1."""
        return self.run_dir / "nodes" / f"{self.partition}-of-{self.num_partitions}-vectors{_moment(self.scenario)}.npy"

    @property
    def held_file(self) -> Path:
        """Return the file of what devices hold between periods; see :mod:`clients.node.following`."""
        return self.run_dir / "nodes" / f"{self.partition}-of-{self.num_partitions}-held.npz"

    def save_layout(self, layout: BlockLayout) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / "item_group.npy", layout.item_group)

    def layout(self) -> BlockLayout:
        """The layout of :meth:`save_layout`.

        Raises:
            EngineError: the server has announced none, or what is left of it is damaged.
        """
        path = self.folder / "item_group.npy"
        try:
            return _layout(
                str(path),
                path.stat().st_mtime_ns,
                self.scenario.pretraining.embedding_dim,
                self.scenario.blocks.num_slices,
            )
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise EngineError(f"{path}: this node's devices have not joined the run ({why}); start it again") from error

    def state(self, mode: Literal["r", "r+"] = "r+") -> DeviceState:
        """The devices' state.

        Raises:
            EngineError: they have not joined the run, or what they keep is damaged.
        """
        state = DeviceState.open(self.folder, mode)
        if state.users.shape != (len(self.devices), self.scenario.pretraining.embedding_dim):
            raise EngineError(f"{self.folder}: the stored state of this node's devices is damaged; start the run again")
        return state


@lru_cache(maxsize=2)
def _layout(path: str, stamp: int, embedding_dim: int, num_slices: int) -> BlockLayout:
    """``stamp`` keeps the cache from answering with an older file."""
    return BlockLayout(np.load(path), embedding_dim, num_slices)


@lru_cache(maxsize=64)
def open_cohort(setting: RunSetting, partition: int, num_partitions: int, profile: str = "") -> Cohort:
    """The cohort of node ``partition``: everything but the state that changes, so it may be kept in memory.

    profile: the class of the fleet that all devices here belong to; "" draws each device's by population share.

    Raises:
        ProfileError: the fleet has no such class.
    """
    scenario, place = Scenario.from_json(setting.scenario), (partition, num_partitions)
    num_devices = device_splits(scenario, setting.data_dir, setting.run_dir).num_users
    devices = np.arange(partition, num_devices, num_partitions, dtype=np.int64)
    mine = hosted_splits(scenario, setting.data_dir, setting.run_dir, devices, place)
    return _cohort(replace(setting, num_devices=num_devices), place, profile, devices, mine)


@lru_cache(maxsize=64)
def open_own_cohort(
    setting: RunSetting, data: OwnData, partition: int, num_partitions: int, profile: str = ""
) -> Cohort:
    """The same of a node that has its devices' interactions itself, and keeps what they change beside them.

    Raises:
        DataError: as for :func:`fl_peel.device_storage.own_splits`.
        ProfileError: the fleet has no such class.
    """
    scenario = Scenario.from_json(setting.scenario)
    splits = own_splits(scenario, data.path, data.first, data.folder)
    devices = np.arange(data.first, data.first + splits.num_users, dtype=np.int64)
    own = replace(setting, run_dir=str(data.folder))
    return replace(_cohort(own, (partition, num_partitions), profile, devices, splits), own=True)


def _cohort(
    setting: RunSetting, place: tuple[int, int], profile: str, devices: NDArray[np.int64], splits: Splits
) -> Cohort:
    scenario, run_dir, (partition, num_partitions) = Scenario.from_json(setting.scenario), Path(setting.run_dir), place
    fleet = load_sent_fleet(scenario.fleet, setting.fleet)
    if scenario.budget_factor != 1:
        fleet = fleet.with_shock(at_round=0, factor=scenario.budget_factor)
    own_fleet = fleet.only(profile) if profile else fleet
    classes = np.array([fleet.names.index(name) for name in own_fleet.names], np.int16)
    full_table_bytes = 4 * splits.num_items * scenario.pretraining.embedding_dim
    return Cohort(
        scenario,
        run_dir / "nodes" / f"{partition}-of-{num_partitions}{_variant(scenario)}",
        run_dir,
        partition,
        num_partitions,
        devices,
        splits,
        fleet,
        own_fleet,
        classes[own_fleet.classes(scenario.seed, devices)],
        FleetBudgets(own_fleet, scenario.seed, devices, full_table_bytes),
        setting.num_devices,
    )


def _moment(scenario: Scenario) -> str:
    """Return the suffix of the state's name in a timeline: devices begin each period and phase anew."""
    timeline = scenario.data.timeline
    return "" if timeline is None else f"-{timeline.period}-{timeline.phase}"


def _variant(scenario: Scenario) -> str:
    """A run may refine more than once, to compare; each refinement has its own state on every device."""
    changed = {"factor": scenario.budget_factor, "from": scenario.refinement.min_budget_share}
    usual = {"factor": 1.0, "from": 0.0}
    name = "".join(f"-{key}-{value:g}" for key, value in changed.items() if value != usual[key]) + _moment(scenario)
    robust, poisoning = scenario.refinement.aggregation.robust, scenario.poisoning
    if poisoning.largest_share > 0:
        name += f"-{poisoning.kind}-{poisoning.share:g}-{robust.rule}-{robust.norm_bound or 0:g}"
    return name


# ---- A node that has its own interactions: a file that the node alone reads, of one device or several
# ``--node-config 'partition-id=0 num-partitions=3 data="mine.csv" first-device=0'``. Users of the file are devices,
# in the order of their ids. The first of them has the number ``first-device`` among all devices of the federation,
# from which follows whatever is drawn for it. What they keep lies in ``run-dir``, by default beside the file, in a
# folder of the run.


DATA, FIRST_DEVICE, RUN_DIR = "data", "first-device", "run-dir"


@dataclass(frozen=True)
class OwnData:
    """The data of a node that has its own. first: its first device; folder: where devices keep their state."""

    path: Path
    first: int
    folder: Path

    @staticmethod
    def from_context(context: Context, partition: int) -> OwnData | None:
        """Read what the node was started with; return None where no file was named. By default the device of a node
        that has one device is numbered as the node is.

        Raises:
            EngineError: there is no such file, or the number is none.
        """
        config = context.node_config
        if DATA not in config:
            return None
        path = Path(os.path.abspath(os.path.expanduser(str(config[DATA]))))
        if file_kind(path) != "file":
            raise EngineError(f"node config: {DATA}: {path}: no such file; start the node with the path of one")
        first = config.get(FIRST_DEVICE, partition)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise EngineError(f"node config: {FIRST_DEVICE}: {first!r} is not a device number; give 0, 1, 2, ...")
        place = os.path.abspath(os.path.expanduser(str(config.get(RUN_DIR, f"{path}.fl-peel"))))
        return OwnData(path, first, Path(place) / f"run-{context.run_id}")

    def hosted(self, scenario: Scenario, catalogue: str) -> int:
        """Prepare a run with these items; how many devices there are.

        Raises:
            DataError: as for :func:`fl_peel.device_storage.own_splits`.
        """
        keep_catalogue(catalogue, self.folder)
        return own_splits(scenario, self.path, self.first, self.folder).num_users
