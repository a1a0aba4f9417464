"""What a node does for its devices when a message comes: join, train a round, evaluate.

Each device is treated by itself: it has its own budget, selection, randomness and user embedding. Only then are
updates, signals and metrics added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.accounts import Accounts
from clients.buckets import buckets_of, merged
from clients.cohort import Cohort, DeviceState
from clients.group_round import GroupDevices, Traffic, train_in_time
from clients.moving import RoundMemory
from clients.poison import Malice, evaluation_items
from clients.private_round import answered_groups, as_sent, clipped, hiding, private_sums
from clients.serving import Held
from fl_peel.blocks import BlockLayout
from fl_peel.config import Scenario
from fl_peel.grouping import choose_group, fit_user_embeddings
from fl_peel.interactions import IntArray, UserItems
from fl_peel.local_training import GroupUpdate, LocalTraining, holders_of, signals_of_group
from fl_peel.ondevice import overhead_bytes
from fl_peel.precision import PRECISIONS, Precision
from fl_peel.randomness import device_seeds, device_uniforms
from fl_peel.ranking import SUM_SCALE, MetricSums, evaluate, recall_ndcg
from fl_peel.selection import ElasticEmbedding, RankedBlocks, check_budget
from fl_peel.spread import NUM_BINS, Histogram
from fl_peel.wire import (
    EVERYBODY,
    Arrays,
    ClockColumn,
    EvaluateReply,
    EvaluateRequest,
    JoinReply,
    JoinRequest,
    RoundReply,
    RoundRequest,
)


def join(cohort: Cohort, request: JoinRequest) -> JoinReply:
    """Devices take their user embedding and group: given by the server, or found locally from the item table.

    Raises:
        BudgetError: a device's budget can never hold one block.
    """
    scenario = cohort.scenario
    layout = BlockLayout(request.item_group, scenario.pretraining.embedding_dim, scenario.blocks.num_slices)
    num_devices = len(cohort.devices)
    users = np.zeros((num_devices, layout.embedding_dim), np.float32)
    groups = np.full(num_devices, -1, np.int32)
    known = cohort.places(request.devices)
    users[known], groups[known] = request.users, request.groups
    alone = np.flatnonzero(groups < 0)
    if len(alone):
        users[alone] = fit_user_embeddings(request.item_table, cohort.splits.train.select(alone))
        groups[alone] = answered_groups(cohort, alone, choose_group(users[alone], request.centroids), request.centroids)
    ceilings = cohort.budgets.ceiling()
    if num_devices:
        poorest = int(ceilings.argmin())
        name = cohort.fleet.names[cohort.classes[poorest]]
        usual = int(ceilings[poorest] / scenario.budget_factor)  # what a fall leaves may be too little for some
        check_budget(layout, scenario.blocks.precision, usual, f"device profile {name}")
    cohort.save_layout(layout)
    DeviceState.create(cohort.folder, users, groups)
    by_group = stated_ceilings(cohort, np.arange(num_devices), groups, len(request.centroids))
    return JoinReply("\n".join(cohort.fleet.names), cohort.devices, groups, by_group)


def stated_ceilings(cohort: Cohort, places: IntArray, groups: NDArray[np.int32], num_groups: int) -> NDArray[np.int64]:
    """The largest budget of each user group (G,) as devices at these places (N,), of these groups (N,), state it: their
    own, which names a lone device's class, or where requests are hidden what any device of the fleet may have.
    """
    if cohort.scenario.privacy.requests == "group-prefix":
        return np.full(num_groups, cohort.largest_budget, np.int64)
    by_group = np.zeros(num_groups, np.int64)
    np.maximum.at(by_group, groups, cohort.budgets.ceiling()[places])
    return by_group


def train_round(cohort: Cohort, request: RoundRequest, noise_devices: Mapping[int, int] | None = None) -> RoundReply:
    """One round for the sampled devices of this node. noise_devices: of user groups whose devices add central noise,
    see :func:`clients.private_round.private_sums`.
    """
    state, accounts = cohort.state(), Accounts.empty(len(cohort.fleet.names))
    world = RoundWorld.of(cohort, request)
    reached = world.reached(cohort.places(request.devices), accounts)
    groups = np.asarray(state.groups)
    replies: dict[int, Arrays] = {}
    sums = np.zeros(5, np.int64)
    slowest_us = 0
    traces: list[list[int]] = []
    done: list[MembersRound] = []
    for group, payload in request.groups.items():
        members = reached[groups[reached] == group]
        if not len(members):
            continue
        ranked = RankedBlocks.unpack(cohort.layout(), cohort.scenario.blocks.precision, payload)
        part = train_group_members(world, ranked, members, accounts, (noise_devices or {}).get(int(group)))
        replies[int(group)] = part.arrays
        sums += [part.trained, part.loss, part.recall, part.ndcg, part.evaluated]
        slowest_us = max(slowest_us, part.slowest_us)
        traces += part.traces
        done.append(part)
    for part in done:  # last, so that a round that fails half-way leaves devices as they were
        part.remember(state)
    trained, loss, recall, ndcg, evaluated = sums.tolist()
    reply = RoundReply(
        replies,
        accounts.classes,
        accounts.clock,
        slowest_us,
        trained,
        loss,
        recall,
        ndcg,
        evaluated,
        np.array(traces, np.int64).reshape(len(traces), 5),
    )
    return as_sent(cohort.scenario, reply)


@dataclass(frozen=True)
class RoundWorld:
    """What a round's devices share, whatever their user group. For all N hosted devices: budgets (T, N) bytes at T
    steps of the round; seeds (N,).
    """

    cohort: Cohort
    request: RoundRequest
    budgets: IntArray
    seeds: NDArray[np.uint64]
    how: LocalTraining
    list_length: int | None

    @staticmethod
    def of(cohort: Cohort, request: RoundRequest) -> RoundWorld:
        """The world of one request."""
        scenario = cohort.scenario
        return RoundWorld(
            cohort,
            request,
            cohort.budgets.during(request.server_round),
            device_seeds(scenario.seed, "local-training", request.server_round, devices=cohort.devices),
            _node_bounded(scenario, clipped(scenario, scenario.refinement.local.config(request.temperature), request)),
            max(scenario.controller.list_length, 20) if request.signals else None,
        )

    def reached(self, places: IntArray, accounts: Accounts) -> IntArray:
        """Of the sampled devices at ``places``, those that are available and let in; the others are counted."""
        return reached_devices(self.cohort, places, self.budgets[0], self.request.server_round, accounts)


@dataclass(frozen=True)
class MembersRound:
    """What devices of one user group did. arrays, trained .. evaluated, slowest_us, traces: as in a RoundReply.

    kept: (M,) places of the devices that count, and their new user embeddings (M, d); members: (N,) places of all
    that were reached, and the blocks they hold in the end (N,).
    """

    arrays: Arrays
    trained: int
    loss: int
    recall: int
    ndcg: int
    evaluated: int
    slowest_us: int
    traces: list[list[int]]
    kept: IntArray
    users: NDArray[np.float32]
    members: IntArray
    last: IntArray

    def remember(self, state: DeviceState) -> None:
        """Let the devices keep what they learned."""
        state.users[self.kept] = self.users
        state.kept_blocks[self.members] = self.last


def _node_bounded(scenario: Scenario, how: LocalTraining) -> LocalTraining:
    """Local training whose updates the node bounds, where the scenario asks for robust aggregation."""
    bound = scenario.refinement.aggregation.robust.norm_bound
    return how if bound is None else replace(how, max_norm=min(how.max_norm, bound))


def train_group_members(
    world: RoundWorld,
    ranked: RankedBlocks,
    members: IntArray,
    accounts: Accounts,
    noise_devices: int | None = None,
) -> MembersRound:
    """One round for all devices of one user group, (N,) at least one: together, or in sub-cohorts."""
    scenario = world.cohort.scenario
    robust = scenario.refinement.aggregation.robust
    if not robust.in_buckets:
        return train_members(world, ranked, members, accounts, noise_devices=noise_devices)
    buckets = buckets_of(scenario, world.cohort.devices[members])
    numbers = np.unique(buckets).tolist()
    parts = {number: train_members(world, ranked, members[buckets == number], accounts) for number in numbers}
    return merged(parts, robust.buckets)


def train_members(
    world: RoundWorld,
    ranked: RankedBlocks,
    members: IntArray,
    accounts: Accounts,
    traffic: Traffic | None = None,
    noise_devices: int | None = None,
) -> MembersRound:
    """One round for some devices of one user group, by their places (N,). No device's state changes yet."""
    cohort, request = world.cohort, world.request
    state = cohort.state("r")
    memory = RoundMemory.of(ranked, world.budgets[:, members])
    users = np.asarray(state.users[members])
    devices = GroupDevices(
        users,
        cohort.splits.train.select(members),
        world.seeds[members],
        cohort.rates.select(members),
        Malice.among(cohort, members),
    )
    deadline_s = cohort.scenario.refinement.deadline_s
    done = train_in_time(
        ranked,
        memory,
        devices,
        world.how,
        list_length=world.list_length,
        deadline_s=deadline_s,
        traffic=traffic,
        hiding=hiding(cohort.scenario, request),
        device=cohort.scenario.engine.device,
    )
    kept, update = members[done.kept], done.update
    private = cohort.scenario.privacy.sums_only
    reply = private_sums(cohort, request, ranked, kept, done, noise_devices) if private else _update_arrays(update)
    recall = ndcg = evaluated = 0
    if done.best is not None:
        validation = cohort.splits.validation.select(kept)
        if devices.malice is not None:
            validation = devices.malice.select(done.kept).claimed(validation)
        if not private:
            hits, shown = signals_of_group(ranked, done.cutoffs, done.users, done.best, validation)
            reply |= {"hits": hits, "shown": shown, "exposed": holders_of(done.cutoffs, len(ranked.blocks))}
        per_device = recall_ndcg(ranked, done.best, validation, 20)
        sums = MetricSums.of(cohort.classes[kept], len(cohort.fleet.names), *per_device, validation.counts() > 0)
        recall, ndcg, evaluated = (int(column.sum()) for column in (sums.recall, sums.ndcg, sums.devices))
        accounts.clock[:, ClockColumn.RECALL] += sums.recall
        accounts.clock[:, ClockColumn.EVALUATED] += sums.devices
    learned = update.examples > 0
    accounts.group(done, memory, cohort.classes[members], np.asarray(state.kept_blocks[members]))
    traces = []
    for i in np.flatnonzero(np.isin(cohort.devices[members], request.traced)):
        who = members[i]
        device = (cohort.devices[who], cohort.classes[who], memory.budgets[i], memory.stored[i], memory.first[i])
        traces.append([int(x) for x in device])
    return MembersRound(
        reply,
        int(learned.sum()),
        int(np.rint(update.loss[learned] * SUM_SCALE).astype(np.int64).sum()),
        recall,
        ndcg,
        evaluated,
        int(done.spent.time_us[done.kept].max(initial=0)),
        traces,
        kept,
        done.users,
        members,
        memory.last,
    )


def reached_devices(
    cohort: Cohort, places: IntArray, budgets: IntArray, server_round: int, accounts: Accounts
) -> IntArray:
    """Of the sampled devices, those that are available and let in; the others are counted. budgets: (N,), of all."""
    classes = cohort.classes[places]
    accounts.count(ClockColumn.SAMPLED, classes)
    available = answering(cohort, places, server_round)
    accounts.count(ClockColumn.UNAVAILABLE, classes, ~available)
    smallest = cohort.scenario.refinement.min_budget_share * cohort.layout().full_table_bytes
    too_small = available & (budgets[places] < smallest)
    accounts.count(ClockColumn.EXCLUDED, classes, too_small)
    return places[available & ~too_small]


def answering(cohort: Cohort, places: IntArray, server_round: int) -> NDArray[np.bool_]:
    """Of the devices at these places (N,), those that are available and answer, see ``privacy.answer_share``."""
    available = cohort.available(places, server_round)
    share = cohort.scenario.privacy.answer_share
    if share is None:
        return available
    coin = device_uniforms(cohort.scenario.seed, "answers", server_round, devices=cohort.devices[places])
    return available & (coin * cohort.usual_availability[places] < share)


def _update_arrays(update: GroupUpdate) -> Arrays:
    changed = update.changed()
    rows = changed["rows"]
    return {
        **changed,
        "touched": update.touched[rows].astype(np.int32),
        "row_loss": update.row_loss[rows],
        "row_examples": update.row_examples[rows].astype(np.int32),
        "holders": update.holders.astype(np.int32),
    }


def evaluate_budgets(cohort: Cohort, request: EvaluateRequest) -> EvaluateReply:
    """Every hosted device ranks all items under each budget, with what it would have stored."""
    scenario, state, layout = cohort.scenario, cohort.state("r"), cohort.layout()
    assert request.precision in PRECISIONS
    precision: Precision = request.precision
    groups = np.asarray(state.groups)
    num_groups, num_classes, num_budgets = (
        int(groups.max(initial=-1)) + 1,
        len(cohort.fleet.names),
        len(request.budgets),
    )
    wanted, exclude = evaluation_items(cohort, request.split)
    num_groups = max([num_groups, *(group + 1 for group in request.groups)])
    shape = (num_budgets, num_classes * num_groups)
    recall, ndcg, devices = (np.zeros(shape, np.int64) for _ in range(3))
    stored_max = np.zeros(num_budgets, np.int64)
    owned = np.zeros((num_budgets, num_classes, 4), np.int64)
    own_budgets = cohort.budgets.at(request.server_round)
    histogram = np.zeros((2, num_budgets, num_classes, NUM_BINS), np.int64)  # counts, sums
    for group, payload in request.groups.items():
        members = np.arange(len(groups)) if group == EVERYBODY else np.flatnonzero(groups == group)
        if not len(members):
            continue
        ranked = RankedBlocks.unpack(layout, precision, payload)
        users = np.asarray(state.users[members])
        mine, hidden = wanted.select(members), exclude.select(members)
        cells = cohort.classes[members].astype(np.int64) * num_groups + groups[members]
        own = own_budgets[members]
        classes, counted = cohort.classes[members], mine.counts() > 0
        for i, budget in enumerate(request.budgets.tolist()):
            held = Held.under(ranked, budget, float(request.factors[i]), float(request.rooms[i]), own, hidden)
            columns = [np.ones(len(members), np.int64), held.budgets, held.stored, held.violations]
            np.add.at(owned[i], classes, np.stack(columns, axis=1))
            stored_max[i] = max(stored_max[i], int(held.stored.max(initial=0)))
            per_device = evaluate(
                ranked, held.cutoffs, users, hidden, mine, scenario.evaluation.top_n, scenario.engine.device
            )
            sums = MetricSums.of(cells, shape[1], *per_device, counted)
            recall[i] += sums.recall
            ndcg[i] += sums.ndcg
            devices[i] += sums.devices
            spread = Histogram.of(classes, num_classes, per_device[0], counted)
            histogram[0, i] += spread.counts
            histogram[1, i] += spread.sums
        _write_artifacts(cohort, request, ranked, members, users, hidden)
    full = (num_budgets, num_classes, num_groups)
    return EvaluateReply(
        *(recall.reshape(full), ndcg.reshape(full), devices.reshape(full)), stored_max, owned, *histogram
    )


def _write_artifacts(
    cohort: Cohort,
    request: EvaluateRequest,
    ranked: RankedBlocks,
    members: NDArray[np.int64],
    users: NDArray[np.float32],
    hidden: UserItems,
) -> None:
    folder = cohort.folder.parent.parent / "artifacts"
    for i in np.flatnonzero(np.isin(cohort.devices[members], request.artifacts)):
        folder.mkdir(parents=True, exist_ok=True)
        elastic = ElasticEmbedding(ranked, users[i], hidden.row(int(i)))
        for budget in request.budgets.tolist():
            if budget >= overhead_bytes(ranked.layout.embedding_dim):
                name = f"device-{cohort.devices[members[i]]}-{request.label}-{budget}.safetensors"
                (folder / name).write_bytes(elastic.at(budget).to_bytes())
