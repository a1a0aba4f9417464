"""Federated rivals: steps are those of their papers, the server sees sums alone, and planted taste is found."""

import dataclasses
import inspect

import numpy as np
import pytest

from fl_peel.blocks.compression import DenseTable, stored_bytes
from fl_peel.data.interactions import Splits, UserItems, split
from fl_peel.pretraining.central_training import pretrain
from strategies.rivals import bpr, pfedrec
from strategies.rivals.base import best_lists
from strategies.rivals.bpr import BprSetting, FedAvgBpr
from strategies.rivals.colr import Colr, ColrSetting
from strategies.rivals.fcf import Fcf, FcfServer, FcfSetting, solved, sum_gradients
from strategies.rivals.federated import (
    UNITS,
    Effort,
    FederatedContext,
    FederatedRound,
    Popularity,
    RoundSums,
    RowUpdates,
    ServedTables,
    held_bytes,
    own_scores,
    quality,
    train,
    tuned,
)
from strategies.rivals.hetefedrec import HeteFedRec, HeteSetting, decorrelated, distilled
from strategies.rivals.pfedrec import PFedRec, PFedRecSetting
from tests.helpers.planted import planted_interactions
from tests.helpers.settings import PRETRAINING

EFFORT = Effort(rounds=60, every=10, patience=6, panel=1000)
BPR = BprSetting(0.1, 0.01, 0.2, num_negatives=4)
SETTINGS = (
    (FedAvgBpr(), BPR),
    (Colr(), ColrSetting(BPR, 2)),
    (Fcf(), FcfSetting(1.0, 1.0, 0.02)),
    (PFedRec(), PFedRecSetting(1.0, 10.0, 0.0, 0.1)),
    (HeteFedRec(), HeteSetting(BPR, 1.0, 1.0)),
)
NAMES = [method.name for method, _ in SETTINGS]


def three_in_four(number):
    """Ids of those who are there."""
    return np.array([device for device in range(120) if (device + number) % 4])


@pytest.fixture(scope="module")
def world():
    """120 devices in 2 taste groups, 100 items of which each group likes 50; one device in four is away."""
    data = planted_interactions(3, 60, 50, 2, 16, noise=0.05, exponent=0.5)
    splits = split(data, seed=0, validation_share=0.2, test_share=0.25)
    return FederatedContext(splits, 8, 0, np.arange(120)[::-1] + 1, three_in_four)


def sums_of(method, server, kept, devices, now):
    """What some devices contribute in a round."""
    sums = RoundSums.nothing(now.context)
    method.contribute(server, kept, devices, now, sums)
    return sums


def rows_of(method, setting, world, numbers=(1, 2, 3), order=lambda devices: devices):
    """The server after some rounds."""
    server, kept = method.server(world, setting), method.device_states(world, setting)
    for number in numbers:
        sums = RoundSums.nothing(world)
        for some in world.chunks(order(world.present(number))):
            method.contribute(server, kept, some, FederatedRound(world, setting, number), sums)
        server = method.merged(server, sums, setting)
    return server


def arrays(server):
    """All arrays of a server's state."""
    if isinstance(server, np.ndarray):
        return [server]
    values = [getattr(server, field.name) for field in dataclasses.fields(server)]
    return [part for value in values for part in (value if isinstance(value, tuple) else [value]) if np.ndim(part)]


# what the server sees


@pytest.mark.slow
@pytest.mark.parametrize(("method", "setting"), [*SETTINGS, (Popularity(), None)], ids=[*NAMES, "popularity"])
def test_the_server_is_given_sums_and_nothing_of_a_single_device(method, setting, world):
    assert list(inspect.signature(type(method).merged).parameters) == ["self", "server", "sums", "setting"]
    server, kept = method.server(world, setting), method.device_states(world, setting)
    sums = sums_of(method, server, kept, world.present(1), FederatedRound(world, setting, 1))
    assert (sums.rows.shape, sums.moments.shape) == ((world.num_items, 8), (8, 8))
    assert all(np.ndim(value) == 0 for name, value in vars(sums).items() if name not in ("rows", "moments"))
    for part in arrays(rows_of(method, setting, world)):
        assert len(part) == world.num_items  # never one row a device


@pytest.mark.parametrize(("method", "setting"), [*SETTINGS, (Popularity(), None)], ids=[*NAMES, "popularity"])
def test_order_and_chunks_of_devices_do_not_matter(method, setting, world):
    whole = arrays(rows_of(method, setting, world))
    cut = arrays(rows_of(method, setting, dataclasses.replace(world, chunk=7)))
    turned = arrays(rows_of(method, setting, dataclasses.replace(world, chunk=11), order=lambda ids: ids[::-1].copy()))
    for one, two, three in zip(whole, cut, turned, strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)
    assert any(not np.array_equal(a, b) for a, b in zip(whole, arrays(method.server(world, setting)), strict=True))


def test_who_is_away_says_and_learns_nothing(world):
    method, kept = FedAvgBpr(), FedAvgBpr().device_states(world, BPR)
    before = kept.copy()
    devices = world.present(1)
    sums = sums_of(method, method.server(world, BPR), kept, devices, FederatedRound(world, BPR, 1))
    away = np.setdiff1d(np.arange(120), devices)
    assert np.array_equal(kept[away], before[away])
    assert not np.array_equal(kept[devices], before[devices])
    assert sums.devices == len(devices) == 90


def test_bytes_are_those_of_the_arrays(world):
    method = FedAvgBpr()
    server, now = method.server(world, BPR), FederatedRound(world, BPR, 1)
    devices = np.array([3, 7])
    kept = method.device_states(world, BPR)
    _, updates = bpr.STEPS.train(now, server, kept[devices], devices, BPR.learning_rate, np.array([8]))
    sums = sums_of(method, server, kept, devices, now)
    assert sums.up == updates.items.nbytes + updates.rows.nbytes
    assert sums.down == 2 * server.nbytes
    fcf, setting = Fcf(), FcfSetting(1.0, 1.0, 0.02)
    sums = sums_of(fcf, fcf.server(world, setting), None, devices, FederatedRound(world, setting, 1))
    assert sums.up == sums.down == 2 * 4 * 100 * 8
    hete, setting = HeteFedRec(), HeteSetting(BPR, 0.0, 0.0)
    now, devices = FederatedRound(world, setting, 1), np.array([0, 119, 40])
    together, *alone = (
        sums_of(hete, hete.server(world, setting), hete.device_states(world, setting), some, now)
        for some in (devices, *devices[:, None])
    )
    assert [one.down for one in alone] == [4 * 100 * (2, 4, 8)[tier] for tier in hete.tiers(world)[devices]]
    assert together.down == sum(one.down for one in alone)
    assert together.up == sum(one.up for one in alone)


# steps


def alone_with(items, num_items, dim=3):
    """A world of one device."""
    one = UserItems(np.array([0, len(items)]), np.array(items, np.int32))
    none = UserItems(np.array([0, 0]), np.zeros(0, np.int32))
    return FederatedContext(
        Splits(one, none, none, num_items), dim, 0, np.ones(1, np.int64), lambda number: np.array([0])
    )


def log_loss(user, positive, negative, widths):
    """BPR, summed over the first columns of each width."""
    return sum(np.log1p(np.exp(-user[:w] @ (positive[:w] - negative[:w]))) for w in widths)


def numeric(function, point, step=1e-5):
    """Gradient by central differences."""
    point = point.astype(np.float64)
    result = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        up, down = point.copy(), point.copy()
        up[index] += step
        down[index] -= step
        result[index] = (function(up) - function(down)) / (2 * step)
    return result


@pytest.mark.parametrize("widths", [(3,), (1, 3), (1, 2, 3)])
def test_a_step_goes_down_the_pairwise_loss_of_every_width(widths):
    world = alone_with([1], 2)
    rng = np.random.default_rng(0)
    table, user = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(1, 3)).astype(np.float32)
    setting = BprSetting(0.1, 0.02, 1.0, num_negatives=1)
    after, updates = bpr.STEPS.train(
        FederatedRound(world, setting, 1), table, user.copy(), np.array([0]), 0.3, np.array(widths)
    )
    pull = numeric(lambda x: log_loss(x, table[1], table[0], widths), user[0])
    np.testing.assert_allclose(after[0], user[0] - 0.1 * (pull + 0.02 * user[0]), rtol=1e-4)
    rows = numeric(lambda t: log_loss(user[0], t[1], t[0], widths), table)
    order = updates.items
    assert sorted(order.tolist()) == [0, 1]
    np.testing.assert_allclose(updates.rows, -0.3 * (rows + 0.02 * table)[order], rtol=1e-3, atol=1e-6)


def test_negatives_are_never_a_devices_own_items():
    world = alone_with([0, 2, 4, 5], 7)
    table = np.ones((7, 3), np.float32)
    for number in range(20):
        setting = BprSetting(0.1, 0.0, 1.0, epochs=2, num_negatives=3)
        user = np.full((1, 3), 0.5, np.float32)
        _, updates = bpr.STEPS.train(
            FederatedRound(world, setting, number), table, user, np.array([0]), 0.1, np.array([3])
        )
        up = updates.items[updates.rows[:, 0] > 0]
        assert set(up.tolist()) <= {0, 2, 4, 5}
        assert set(updates.items[updates.rows[:, 0] < 0].tolist()) <= {1, 3, 6}


def test_the_score_function_steps_first_then_rows_under_it():
    """Published PFedRec on a batch of two positives, no item drawn."""
    world = alone_with([0, 2], 3)
    rng = np.random.default_rng(1)
    table, score = rng.normal(size=(3, 3)).astype(np.float32), rng.normal(size=(1, 4)).astype(np.float32)
    setting = PFedRecSetting(0.5, 2.0, 0.01, None, num_negatives=0)
    after, updates = pfedrec.STEPS.train(
        FederatedRound(world, setting, 1), table, score.copy(), np.array([0]), 2.0, pfedrec.BATCH_SIZE
    )
    rows = table[[0, 2]].astype(np.float64)

    def loss(function, rows):
        return np.mean(np.log1p(np.exp(-(rows @ function[:3] + function[3]))))

    stepped = score[0] - 0.5 * (numeric(lambda f: loss(f, rows), score[0]) + 0.01 * score[0])
    np.testing.assert_allclose(after[0], stepped, rtol=1e-4)
    change = -2.0 * (numeric(lambda r: loss(stepped, r), rows) + 0.01 / 2 * rows)
    order = np.argsort(updates.items)
    assert updates.items[order].tolist() == [0, 2]
    np.testing.assert_allclose(updates.rows[order], change, rtol=1e-3, atol=1e-6)


def test_the_mean_of_devices_tables_is_what_the_server_of_pfedrec_has(world):
    method, setting = PFedRec(), PFedRecSetting(1.0, 10.0, 0.0, None)
    server, kept, devices = method.server(world, setting), method.device_states(world, setting), world.present(1)
    now = FederatedRound(world, setting, 1)
    _, updates = pfedrec.STEPS.train(now, server, kept[devices], devices, setting.row_rate, pfedrec.BATCH_SIZE)
    tables = np.repeat(server[None].astype(np.float64), len(devices), axis=0)
    for place in range(len(devices)):
        some = slice(updates.indptr[place], updates.indptr[place + 1])
        tables[place, updates.items[some]] += updates.rows[some]
    sums = sums_of(method, server, kept, devices, now)
    np.testing.assert_allclose(method.merged(server, sums, setting), tables.mean(axis=0), atol=1e-5)


def implicit_loss(table, factors, train, alpha):
    """Squared errors of all items, interactions at 1 + alpha (Hu, Koren and Volinsky), without regularization."""
    preference = np.zeros((len(factors), len(table)))
    preference[train.users(), train.items] = 1
    return float(((1 + alpha * preference) * (preference - factors @ table.T) ** 2).sum())


def test_a_device_of_fcf_solves_its_least_squares_and_sends_the_gradient(world):
    setting = FcfSetting(3.0, 0.7, 0.02)
    devices = np.arange(0, 30)
    table = np.random.default_rng(2).normal(size=(100, 8)) * 0.3
    train_items = world.train.select(devices)
    factors = solved(table, train_items, setting)

    def regularized(flat):
        return implicit_loss(table, flat, train_items, 3.0) + 0.7 * (flat**2).sum()

    assert np.abs(numeric(regularized, factors)).max() < 1e-3
    method = Fcf()
    server = FcfServer(table, np.zeros_like(table), np.zeros_like(table))
    sums = sums_of(method, server, None, devices, FederatedRound(world, setting, 1))
    # device by device, as it would be said: a dense gradient of (I, d) each
    output = np.zeros_like(table)
    for place in range(len(devices)):
        preference = np.zeros(100)
        preference[train_items.row(place)] = 1
        confidence = 1 + 3.0 * preference
        output += (confidence * (table @ factors[place] - preference))[:, None] * factors[place]
    np.testing.assert_allclose(sum_gradients(table, sums), output, atol=1e-4)
    wanted = numeric(lambda t: implicit_loss(t, factors, train_items, 3.0), table)
    np.testing.assert_allclose(2 * sum_gradients(table, sums), wanted, atol=1e-3)


def test_the_server_of_fcf_steps_as_adam_does():
    import torch

    method, setting = Fcf(), FcfSetting(1.0, 0.5, 0.1)
    rng = np.random.default_rng(3)
    server = FcfServer(rng.normal(size=(5, 2)), np.zeros((5, 2)), np.zeros((5, 2)))
    twin = torch.tensor(server.table, requires_grad=True)
    optimizer = torch.optim.Adam([twin], lr=0.1, betas=(0.1, 0.99))
    for _ in range(4):
        rows = rng.normal(size=(5, 2))
        sums = RoundSums(np.rint(rows * UNITS).astype(np.int64), np.zeros((2, 2), np.int64))
        twin.grad = 2 * (torch.tensor(rows) + 0.5 * twin.detach())
        optimizer.step()
        server = method.merged(server, sums, setting)
    np.testing.assert_allclose(server.table, twin.detach().numpy(), atol=1e-5)


# CoLR


def test_updates_of_colr_lie_in_the_subspace_of_the_round_and_at_full_rank_are_those_of_fedavg(world):
    """A round's change of the table has the rank of the setting; without a subspace it is FedAvg's."""
    plain = FedAvgBpr()
    wanted = rows_of(plain, BPR, world, (1,)) - plain.server(world, BPR)
    method = Colr()
    for rank in (2, 8):
        setting = ColrSetting(BPR, rank)
        start, once, twice = (rows_of(method, setting, world, range(1, 1 + rounds)) for rounds in (0, 1, 2))
        change, second = once.table - start.table, twice.table - once.table
        assert np.linalg.matrix_rank(change, tol=1e-4) == np.linalg.matrix_rank(second, tol=1e-4) == rank
        if rank == 8:
            np.testing.assert_allclose(change, wanted, atol=1e-4)
        else:  # every round has directions of its own
            assert np.linalg.matrix_rank(np.concatenate([change, second]), tol=1e-4) == 4
        assert (once.rounds, twice.rounds) == (1, 2)
        assert not np.array_equal(once.basis, twice.basis)


def test_a_device_of_colr_sends_the_rank_and_downloads_the_rounds_that_it_missed(world):
    method, setting = Colr(), ColrSetting(BPR, 2)
    server, kept = method.server(world, setting), method.device_states(world, setting)
    _, updates = bpr.STEPS.train(
        FederatedRound(world, BPR, 1), server.table, kept.users[[3, 7]], np.array([3, 7]), 0.1, np.array([8])
    )
    for number, devices, columns in ((1, [3, 7], 0), (2, [3], 2), (3, [3, 7], 2 + 4), (9, [7], 8)):
        server = dataclasses.replace(server, rounds=number - 1)  # 9: six rounds of 2 columns, more than the whole table
        sums = sums_of(method, server, kept, np.array(devices), FederatedRound(world, setting, number))
        assert sums.down == columns * world.num_items * 4
    sums = sums_of(
        method,
        method.server(world, setting),
        method.device_states(world, setting),
        np.array([3, 7]),
        FederatedRound(world, setting, 1),
    )
    assert 0 < sums.up <= len(updates.items) * (1 + 2) * 4 * 1.3
    assert not sums.rows[:, 2:].any()


# HeteFedRec


def test_the_devices_with_the_most_memory_have_the_widest_tables(world):
    method = HeteFedRec()
    tiers = method.tiers(world)
    assert method.widths(world) == (2, 4, 8)
    assert np.bincount(tiers).tolist() == [60, 36, 24]
    assert world.memory[tiers == 2].min() > world.memory[tiers == 1].max()
    assert world.memory[tiers == 1].min() > world.memory[tiers == 0].max()


def test_narrow_changes_are_padded_and_each_width_takes_its_columns(world):
    method, setting = HeteFedRec(), HeteSetting(BPR, 0.0, 0.0)
    server, kept = method.server(world, setting), method.device_states(world, setting)
    tiers, wanted, widths = method.tiers(world), np.zeros((100, 8)), np.array([2, 4, 8])
    now = FederatedRound(world, BPR, 1)
    for place, width in enumerate(widths):
        some = np.flatnonzero(tiers == place)
        table, users = server.tables[place], kept[some, :width]
        _, part = bpr.STEPS.train(now, table, users, some, BPR.learning_rate, widths[: place + 1])
        np.add.at(wanted, part.items, np.pad(part.rows, ((0, 0), (0, 8 - width))))
    sums = sums_of(method, server, kept, np.arange(120), FederatedRound(world, setting, 1))
    after = method.merged(server, sums, setting)
    for table, before, width in zip(after.tables, server.tables, (2, 4, 8), strict=True):
        np.testing.assert_allclose(table, before + 0.2 * wanted[:, :width], atol=1e-5)


def test_the_servers_own_steps_do_what_they_are_for():
    rng = np.random.default_rng(4)
    table = rng.normal(size=(50, 4))
    table[:, 1] = table[:, 0] + 0.1 * table[:, 1]

    def correlation(table):
        return np.linalg.norm(np.corrcoef(table.T))

    assert correlation(decorrelated(table, 100.0)) < correlation(table) - 0.02

    def apart(tables):
        cosines = []
        for part in tables:
            scaled = part[:20] / np.linalg.norm(part[:20], axis=1, keepdims=True)
            cosines.append(scaled @ scaled.T)
        return np.abs(np.stack(cosines) - np.mean(cosines, axis=0)).sum()

    tables = [rng.normal(size=(50, width)) for width in (2, 4, 8)]
    after = distilled(tables, np.arange(20), 2.0)
    assert apart(after) < 0.97 * apart(tables)
    for one, two in zip(tables, after, strict=True):
        assert np.array_equal(one[20:], two[20:])


def test_a_device_trains_its_first_columns_by_themselves_for_every_narrower_width(world):
    method, setting = HeteFedRec(), HeteSetting(BPR, 0.0, 0.0)
    server, kept = method.server(world, setting), method.device_states(world, setting)
    tiers = method.tiers(world)
    for place, widths in enumerate(((2,), (2, 4), (2, 4, 8))):
        devices = np.flatnonzero(tiers == place)[:3]
        vectors = kept[devices, : widths[-1]]  # a copy
        after, updates = bpr.STEPS.train(
            FederatedRound(world, BPR, 1), server.tables[place], vectors, devices, BPR.learning_rate, np.array(widths)
        )
        changed, alone = kept.copy(), RoundSums.nothing(world)
        alone.add(updates, server.tables[place].size)
        sums = sums_of(method, server, changed, devices, FederatedRound(world, setting, 1))
        assert np.array_equal(sums.rows, alone.rows)
        assert np.array_equal(changed[devices, : widths[-1]], after)
        assert np.array_equal(changed[devices, widths[-1] :], kept[devices, widths[-1] :])


def test_everybody_can_have_a_table_of_another_width(world):
    method, setting = HeteFedRec(), HeteSetting(BPR, 0.0, 1.0)
    best = train(method, setting, world, EFFORT)
    for place, width in enumerate((2, 4, 8)):
        served = method.at_width(best.served, place, world, setting)
        assert served.users.shape == (120, width)
        assert (
            held_bytes(served, "int8").tolist()
            == [stored_bytes(DenseTable.from_table(best.served.tables[place], "int8"))] * 120
        )
    # devices of the narrowest table have never trained the other columns; they find them
    widest = method.at_width(best.served, 2, world, setting)
    random = ServedTables((best.served.tables[2],), np.zeros(120, np.int64), best.served.users)
    small = np.flatnonzero(method.tiers(world) == 0)
    result, lost = (quality(one, world, "test", among=small)["recall@20"] for one in (widest, random))
    assert result > lost


# measuring and choosing


def test_rows_of_a_devices_own_are_ranked_with_all_others():
    rng = np.random.default_rng(5)
    table, users = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    hidden = UserItems.from_pairs(
        np.repeat(np.arange(6), 3), rng.permuted(np.tile(np.arange(30), (6, 1)), axis=1)[:, :3].ravel(), 6
    )
    own_items = np.concatenate([np.sort(rng.permutation(30)[:5]) for _ in range(6)]).astype(np.int32)
    own = RowUpdates(np.arange(7) * 5, own_items, rng.normal(size=(30, 4)).astype(np.float32))
    wanted = np.empty((6, 20), np.int64)
    for k in range(6):
        mine = table.copy()
        some = slice(5 * k, 5 * k + 5)
        mine[own_items[some]] += own.rows[some]
        scores = mine @ users[k]
        scores[hidden.row(k)] = -np.inf
        wanted[k] = np.argsort(-scores)[:20]
    scores_of = own_scores(own, table, DenseTable.from_table(table, "fp32"), users, np.arange(6))
    assert np.array_equal(best_lists(scores_of, hidden, 30), wanted)
    some = np.array([4, 1])
    scores_of = own_scores(own, table, DenseTable.from_table(table, "fp32"), users[some], some)
    assert np.array_equal(best_lists(scores_of, hidden.select(some), 30), wanted[some])


def test_a_device_is_not_shown_on_the_test_what_it_has_in_validation(world):
    splits = world.splits
    table = np.zeros((world.num_items, 120), np.float32)
    table[splits.test.items, splits.test.users()] = 1
    table[splits.validation.items, splits.validation.users()] = 2
    table[splits.train.items, splits.train.users()] = 3
    served = ServedTables((table,), np.zeros(120, np.int64), np.eye(120, dtype=np.float32))
    assert quality(served, world, "test")["recall@20"] == 1
    assert quality(served, world, "test")["ndcg@20"] == 1
    assert quality(served, world, "validation")["ndcg@20"] == 1
    none = UserItems(np.zeros(121, np.int64), np.zeros(0, np.int32))
    own = RowUpdates(none.indptr, none.items, np.zeros((0, 120), np.float32))
    assert quality(dataclasses.replace(served, own=own), world, "test")["ndcg@20"] == 1


class Told:
    """Ranks an item of every device first, a validation item or a test item, as its setting says."""

    name = "told"
    grid = ("test", "validation", "test")

    def __init__(self, splits):
        self.splits = splits

    def server(self, world, setting):
        return np.zeros((world.num_items, 1), np.float32)

    def device_states(self, world, setting):
        return None

    def contribute(self, server, kept, devices, now, sums):
        sums.count(len(devices), 25, 0)

    def merged(self, server, sums, setting):
        return server + 1

    def served(self, server, kept, world, setting):
        """From round 30 on it knows nothing."""
        wanted = self.splits.test if setting == "test" else self.splits.validation
        table = np.zeros((world.num_items, 120), np.float32)
        if server[0, 0] < 30:
            table[wanted.items, wanted.users()] = 1
        return ServedTables((table,), np.zeros(120, np.int64), np.eye(120, dtype=np.float32))


def test_setting_and_round_are_chosen_on_validation(world):
    result = tuned(Told(world.splits), world, ("fp32",), Effort(rounds=50, every=5, patience=3))
    assert [one["round"] for one in result["tried"]][1] == 5
    assert [one["last"] for one in result["tried"]][1] == 20
    (row,) = result["rows"]
    assert row["validation_recall@20"] == pytest.approx(1.0)
    assert row["recall@20"] < 0.6  # the other setting has all test items first
    assert row["trials"] == len(result["tried"]) == 3
    assert row["rounds"] == 5
    held = row["stored_bytes_mean"]
    assert row["bytes_down_mean"] == pytest.approx(held + 100 * 5 * 0.75, rel=0.01)


def test_what_validation_liked_is_kept_though_training_goes_on(world):
    """The vectors of the best round, not of the last."""
    effort = Effort(rounds=40, every=5, patience=8)
    best = train(FedAvgBpr(), BprSetting(0.3, 0.0, 0.3), world, effort)
    assert best.last > best.round
    assert quality(best.served, world, "validation")["recall@20"] == pytest.approx(best.recall)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_setting_that_diverges_is_not_chosen_and_ends_early(world):
    grid = (BprSetting(50.0, 0.0, 50.0), BPR)
    result = tuned(dataclasses.replace(FedAvgBpr(), grid=grid), world, ("fp32",), EFFORT)
    assert result["tried"][0]["validation"] < 0.5 * result["tried"][1]["validation"]
    assert result["tried"][0]["last"] < EFFORT.rounds
    assert result["setting"]["learning_rate"] == BPR.learning_rate


def test_all_rivals_are_tuned_with_equal_effort():
    sizes = {len(method.grid) for method, _ in SETTINGS}
    assert len(sizes) == 1
    for method, _ in SETTINGS:
        assert isinstance(method.name, str)
        assert len(set(method.grid)) == len(method.grid)


# planted taste


@pytest.fixture(scope="module")
def popular(world):
    return tuned(Popularity(), world, ("fp32",), EFFORT)["rows"][0]


def test_popularity_is_that_of_all_devices(world):
    server = rows_of(Popularity(), None, world, range(1, 6))
    assert np.array_equal(server[:, 0], world.splits.train.popularity(100))


@pytest.mark.parametrize(("method", "setting"), SETTINGS, ids=NAMES)
def test_planted_taste_is_found(method, setting, world, popular):
    """Of the 100 items a device likes 50: what is popular everywhere is half of the time of the other taste."""
    row = tuned(dataclasses.replace(method, grid=(setting,)), world, ("fp32", "int8"), EFFORT)["rows"]
    assert row[0]["recall@20"] > 1.4 * popular["recall@20"]
    assert row[1]["recall@20"] > 1.4 * popular["recall@20"]
    assert row[1]["stored_bytes_max"] < row[0]["stored_bytes_max"]


def test_federated_bpr_comes_near_central_bpr(world, popular):
    shape = {"model": "matrix-factorization", "embedding_dim": 8, "num_slices": 1}
    config = dataclasses.replace(
        PRETRAINING, **shape, loss="bpr", num_negatives=4, learning_rate=0.03, l2=0.1, temperature=1.0
    )
    central = max(
        quality(ServedTables((result.items,), np.zeros(120, np.int64), result.users), world, "test")["recall@20"]
        for result in (
            pretrain(world.splits.train, 100, dataclasses.replace(config, epochs=e), seed=0) for e in (5, 15, 60)
        )
    )
    federated = tuned(dataclasses.replace(FedAvgBpr(), grid=(BPR,)), world, ("fp32",), EFFORT)["rows"][0]
    assert federated["recall@20"] > 0.92 * central
    assert central > 1.4 * popular["recall@20"]
