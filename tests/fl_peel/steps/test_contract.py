"""What every step keeps to, whatever its question: shapes, parts, bounds, closed rows, noise, words, refusals."""

import dataclasses
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from fl_peel.array_specs import ArrayChecker, MessageContext
from fl_peel.data.interactions import UserItems
from fl_peel.errors import MessageError
from fl_peel.pretraining.stage1 import PooledDevices
from fl_peel.privacy.noise_plan import NOISED_PARTS
from fl_peel.secure.vector import Mask, MaskWords, without
from fl_peel.steps import STEPS
from fl_peel.steps.base import (
    UNIT_SCALE,
    ContributionBounds,
    ContributorsStep,
    HeldItems,
    StepTerms,
    StepVector,
    Units,
    opened_rows,
    unit_vectors,
)
from fl_peel.steps.choice import ChoiceStep, FilterGrid
from fl_peel.steps.passes import CountsStep, PassStep
from fl_peel.steps.user_groups import GroupsStep, MomentsStep

M, K, G, C, N = 30, 7, 3, 4, 12
"""Items, columns, user groups, leading columns, devices."""
OPEN = StepTerms(M, 0.3)
TERMS = {
    "open": OPEN,
    "counted": dataclasses.replace(OPEN, counts_contributors=True, all_rows=True),
    "32 bits": dataclasses.replace(OPEN, units=Units(2.0**16, 2.0**10, 32)),
    "L2": dataclasses.replace(OPEN, bounds=ContributionBounds(1.5)),
    "L1": dataclasses.replace(OPEN, bounds=ContributionBounds(1.5, l1=True)),
}
BOUNDED = ("L2", "L1")


def devices_of(rng, count, most=M):
    """Devices of random items; the last one has none."""
    sizes = [*rng.integers(1, most, count - 1).tolist(), 0] if count > 1 else [int(rng.integers(1, most))]
    items = [np.sort(rng.permutation(M)[:size]) for size in sizes]
    rows = UserItems(np.cumsum([0, *sizes]), np.concatenate(items).astype(np.int32))
    wanted = UserItems(
        4 * np.arange(count + 1), np.concatenate([rng.permutation(M)[:4] for _ in sizes]).astype(np.int32)
    )
    vectors = unit_vectors(rng.standard_normal((count, K)).astype(np.float32)) * (rows.counts() > 0)[:, None]
    return PooledDevices(rows, wanted, None, vectors)


def some(devices, places):
    """Some of the devices."""
    rows = (part.select(np.array(places)) for part in (devices.contributed, devices.validation))
    return PooledDevices(*rows, None, devices.made[places])


def questions(rng, terms):
    """Every step whose devices answer, with a hostile table, weights and centroids."""
    table = (10.0 ** rng.integers(-3, 4) * rng.standard_normal((M, K))).astype(np.float32)
    if not terms.bounded:
        table /= np.abs(table).max() * M
    weights = np.abs(rng.standard_normal(M) * 10.0 ** rng.integers(-6, 6, M)).astype(np.float32)
    grid = FilterGrid.from_exponents((0.3, 0.4, 0.5), (0.0, 0.5), (K // 2, K))
    choice = {
        "directions": table,
        "values": np.ones(K),
        "counts": np.arange(1.0, M + 1),
        "drawn": np.arange(M),
        **vars(grid),
    }
    centroids = {"centroids": rng.standard_normal((G, C)).astype(np.float32)}
    return {
        "counts": (CountsStep(), {}),
        "pass": (PassStep(K), {"table": table} | ({"weights": weights} if terms.bounded else {})),
        "choice": (ChoiceStep(K, M, 5, 12, 100), choice),
        "groups": (GroupsStep(G, C), centroids),
        "moments": (MomentsStep(G, C, K), centroids),
    }


ANSWERED = ("counts", "pass", "choice", "groups", "moments")
CASES = [(name, terms) for name in ANSWERED for terms in TERMS]
every_case = pytest.mark.parametrize(("name", "key"), CASES)


@cache
def case(name, key, seed=0, count=N):
    """Step, what is sent, devices, terms."""
    rng = np.random.default_rng(seed)
    devices = devices_of(rng, count)
    return *questions(rng, TERMS[key])[name], devices, TERMS[key]


def summed_up(step, sent, devices, terms, parts=None, opened=None):
    """The whole sum, from some parts."""
    parts = [(0, step.num_pieces)] if parts is None else parts
    each = (step.contribute(devices, step.cut(sent, part, terms), part, terms, opened) for part in parts)
    return step.whole(terms, zip(parts, each, strict=True))


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_all_steps_are_tried():
    silent = {name for name, step in STEPS.items() if name in ("vectors", "maps", "contributors")}
    assert {step.name for step, _ in questions(np.random.default_rng(0), OPEN).values()} | silent == STEPS.keys()


@every_case
def test_sums_have_the_declared_shapes_and_are_whole_numbers(name, key):
    step, sent, devices, terms = case(name, key)
    sums = summed_up(step, sent, devices, terms)
    assert {one.name: one.shape for one in step.sums(terms)} == {name: array.shape for name, array in sums.items()}
    assert all(array.dtype.kind == "i" for array in sums.values())
    several = (summed_up(*case(name, key, seed)) for seed in range(9))
    assert any(array.any() for each in several for array in each.values())
    assert {field.bits for field in step.fields(terms, (0, step.num_pieces))} == {
        64 if name == "choice" else terms.units.bits
    }


@every_case
def test_parts_and_devices_one_by_one_add_up_to_the_same(name, key):
    step, sent, devices, terms = case(name, key)
    whole = summed_up(step, sent, devices, terms)
    for most in (1, 2 * 8 * M, 10**6):
        parts = step.parts(terms, most)
        assert [parts[0][0], *(stop for _, stop in parts)] == [first for first, _ in parts] + [step.num_pieces]
        assert same(summed_up(step, sent, devices, terms, parts), whole)
    each = [summed_up(step, sent, some(devices, [place]), terms) for place in range(N)]
    assert same({one: sum(sums[one] for sums in each) for one in whole}, whole)
    assert len(step.parts(terms, 1)) == step.num_pieces, "one piece at least"


@pytest.mark.parametrize("key", BOUNDED)
@pytest.mark.parametrize("name", ANSWERED)
def test_every_noised_part_is_within_its_bound_and_comes_near(name, key):
    """Of a device, whatever it has and whatever it is sent: also of numbers that are none."""
    most = {}
    for seed in range(60):
        step, sent, device, terms = case(name, key, seed, 1)
        sums = summed_up(step, sent, device, terms)
        for part in step.noised:
            whole = sums[part.field].astype(np.float64) / part.unit
            if part.name == "moment products":
                group = int(sums["sizes"].argmax())
                square = np.zeros((K, K))
                square[np.tril_indices(K)] = whole[group]
                whole = square + np.tril(square, -1).T
            length = np.abs(whole).sum() if key == "L1" else np.sqrt((whole * whole).sum())
            bound = terms.bounds.counts if part.bound is None else part.bound
            assert length <= bound, f"{part.name}, seed {seed}"
            most[part.name] = max(most.get(part.name, 0.0), length / bound)
    assert min(most.values()) > 0.99, most
    assert most.keys() == {part.name for part in step.noised}
    for worst in (np.nan, np.inf):
        if name == "pass":
            wrong = {"table": np.full((M, K), worst, np.float32), "weights": np.ones(M, np.float32)}
            assert not summed_up(step, wrong, device, terms)["columns"].any()
            unknown = {"table": sent["table"], "weights": np.zeros(M, np.float32)}
            assert not summed_up(step, unknown, device, terms)["columns"].any(), "of unknown items alone"


@pytest.mark.parametrize("name", ["pass", "choice", "moments"])
def test_what_stays_closed_looks_as_if_nobody_were_there(name):
    step, sent, devices, terms = case(name, "counted")
    counted = summed_up(ContributorsStep(step), sent, devices, terms)["contributors"]
    assert counted.shape == (step.num_rows(terms),)
    alone = [summed_up(ContributorsStep(step), sent, some(devices, [place]), terms) for place in range(N)]
    assert (counted == sum(one["contributors"] for one in alone)).all()
    least = int(np.median(counted[counted > 0])) + 1
    opened = opened_rows(counted, least)
    assert not opened.all()
    whole, sums = (summed_up(step, sent, devices, terms, opened=rows) for rows in (np.ones_like(opened), opened))
    assert same(whole, summed_up(step, sent, devices, terms))
    for array, every in zip(sums.values(), whole.values(), strict=True):
        rows = opened if len(array) == len(opened) else np.full(len(array), opened[0])
        assert not array[~rows].any()
        assert (array[rows] == every[rows]).all()


def test_nobody_contributes_to_a_row_of_a_step_without_rows():
    for step in (CountsStep(), GroupsStep(G, C), ContributorsStep(MomentsStep(G, C, K))):
        with pytest.raises(MessageError, match=f"nobody contributes to a row in step {step.name}"):
            ContributorsStep(step)


@every_case
def test_words_and_masks_of_parts_are_those_of_the_whole(name, key):
    """A part's mask goes on where the one before it ended; counters come with the first part."""
    step, sent, devices, terms = case(name, key)
    for classes in (0, 2):
        vector = StepVector(step, terms, classes, N)
        parts = step.parts(terms, 3 * 8 * M)
        layouts = [vector.part(part) for part in parts]
        assert sum(layout.num_bytes for layout in layouts) == vector.num_bytes
        assert [len(layout.fields) > len(layouts[-1].fields) for layout in layouts[:-1]] == [
            True,
            *[False] * (len(parts) - 2),
        ][: len(parts) - 1]
        for (before, _), (part, _) in pairwise(zip(parts, layouts, strict=True)):
            assert vector.start(part) == vector.start(before) + vector.part(before).num_bytes
        head = 8 + classes * 8 * 19
        assert vector.num_bytes == vector.contribution_bytes + head
    sums, mask = [], Mask(bytes(range(16)), added=False)
    for part in parts:
        layout = vector.part(part)
        values = step.contribute(devices, step.cut(sent, part, terms), part, terms, None)
        words = layout.words(values)
        masked = without(words, [mask], vector.start(part))
        assert not (masked.wide == words.wide).any()
        opened = without(masked, [dataclasses.replace(mask, added=True)], vector.start(part))
        assert isinstance(opened, MaskWords)
        sums.append((part, {one: array for one, array in layout.values(opened).items() if one in values}))
    assert same(step.whole(terms, sums), summed_up(step, sent, devices, terms))


@pytest.mark.parametrize("name", ANSWERED)
def test_noise_is_drawn_by_part_and_piece(name):
    step, _, _, terms = case(name, "L2")
    asked = []

    def draw(part, shape, piece):
        asked.append((part, piece))
        rng = np.random.default_rng([len(part), sum(map(ord, part)), piece])
        return np.rint(rng.standard_normal(shape) * NOISED_PARTS[part].unit).astype(np.int64)

    whole = step.noise(draw, terms, (0, step.num_pieces))
    assert len(set(asked)) == len(asked)
    assert {part for part, _ in asked} == {part.name for part in step.noised}
    shapes = {one.name: one.shape for one in step.sums(terms)}
    assert {one: array.shape for one, array in whole.items()} == {
        part.field: shapes[part.field] for part in step.noised
    }
    parts = [(part, step.noise(draw, terms, part)) for part in step.parts(terms, 2 * 8 * M)]
    if step.num_pieces > 1:
        assert same(step.whole(terms, parts), whole)
    assert all(len(np.unique(array)) == array.size for array in whole.values()), "no number is drawn twice"


@every_case
def test_a_malformed_reply_or_request_is_refused_by_what_the_step_declares(name, key):
    """Whatever the step: an array that lacks, another one, another type, another shape, too large a number."""
    step, sent, devices, terms = case(name, key)
    part = (0, step.num_pieces)
    replies = summed_up(step, sent, devices, terms)
    reply = step.reply_arrays(terms, part, N)
    for arrays, specs in ((replies, reply), (sent, step.sent_arrays(terms, part))):
        known = MessageContext({"total": 2**60}, arrays=specs)
        ArrayChecker.from_context(known).group(arrays, "message")
        wrong = [arrays | {"more": np.zeros(1, np.int64)}]
        for one, array in arrays.items():
            wrong += [
                {other: arrays[other] for other in arrays if other != one},
                arrays | {one: array.astype(np.int8)},
                arrays | {one: array[:-1]},
                arrays | {one: array[None]},
            ]
        wrong += [arrays | {one: np.full_like(array, 2**62)} for one, array in arrays.items() if arrays is replies]
        if arrays is replies and not terms.bounded:
            counted = [one.name for one in step.sums(terms) if one.counts]
            wrong += [arrays | {one: arrays[one] * 0 - 1} for one in counted]
        for each in wrong:
            with pytest.raises(MessageError, match=r"^message"):
                ArrayChecker.from_context(known).group(each, "message")


@every_case
def test_what_a_step_takes_is_never_negative_and_counting_adds_to_it(name, key):
    step, _, devices, terms = case(name, key)
    counts = devices.contributed.counts()
    items, budgets = HeldItems(counts, counts, devices.validation.counts()), np.full(N, 1 << 20)
    cost, poor = (step.whole_cost(terms, items, memory) for memory in (budgets, budgets * 0))
    for array in vars(cost).values():
        assert array.shape == (N,)
        assert (array >= 0).all()
    assert (poor.exchanges >= cost.exchanges).all()
    assert (poor.least_bytes == cost.least_bytes).all()
    bare = step.whole_cost(dataclasses.replace(terms, counts_contributors=False), items, budgets)
    counted = terms.counts_contributors and not step.counts_alone
    assert (cost.exchanges - bare.exchanges == int(counted)).all()
    assert ((cost.download_bytes > bare.download_bytes) == (counted and name != "choice")).all()


def test_a_place_that_no_drawn_item_has_is_refused():
    for place in (0, 31):
        with pytest.raises(MessageError, match=rf"ChoiceStep.place: {place} of 30"):
            ChoiceStep(K, 30, place, 6, 100)


def test_bounded_devices_of_few_items_count_fully():
    devices = PooledDevices(UserItems(np.array([0, 2]), np.array([3, 9], np.int32)), None, None)
    terms = dataclasses.replace(OPEN, bounds=ContributionBounds(3.0))
    assert summed_up(CountsStep(), {}, devices, terms)["items"][[3, 9]] == pytest.approx(UNIT_SCALE, rel=1e-6)


def test_a_bounded_pass_is_one_of_unit_vectors():
    rng = np.random.default_rng(1)
    devices = devices_of(rng, 1)
    weights, table = np.linspace(0.5, 2.0, M).astype(np.float32), np.linalg.qr(rng.standard_normal((M, 4)))[0]
    row = np.zeros(M)
    row[devices.contributed.items] = weights[devices.contributed.items]
    row /= np.linalg.norm(row)
    sent = {"table": table.astype(np.float32), "weights": weights}
    sums = PassStep(4).contribute(devices, sent, (1, 3), TERMS["L2"], None)["columns"]
    y = row @ table
    assert np.allclose(sums / 2.0**36, np.outer(row, y / np.linalg.norm(y))[:, 1:3], atol=1e-4)
    tiny = sent | {"table": 1e-6 * sent["table"]}
    again = PassStep(4).contribute(devices, tiny, (1, 3), TERMS["L2"], None)["columns"]
    assert np.allclose(again, sums, atol=2.0**19), "a device says as much as its bound lets it, whatever it is sent"
