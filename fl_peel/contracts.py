"""Contract suites of what packages add to the method, to be subclassed in your own tests: of block selectors, bounded
statistics, stages, mechanisms and attacks.

::

    from fl_peel import SelectorContract
    from my_package import newest_first

    class TestNewestFirst(SelectorContract):
        selector = staticmethod(newest_first)

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, MessageContext
from fl_peel.attacks.base import (
    ITEM_SECRETS,
    Accomplice,
    Attack,
    DeviceView,
    FloatArray,
    IntArray,
    RoundView,
    Secret,
    StepView,
    auc_of,
    checked_scores,
)
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, rank_blocks, ranking
from fl_peel.data.interactions import UserItems
from fl_peel.exchange.release import BoundedStatistic, GroupShape, TrainedDevices, bounded
from fl_peel.kernels import FIXED_POINT
from fl_peel.pretraining.stage1 import PooledDevices
from fl_peel.privacy.mechanisms import Mechanism, Schedule, SystemBits, calibrated, event_of, privacy_cost
from fl_peel.ranking.top import top_rows
from fl_peel.scenario.settings import LocalTraining
from fl_peel.secure.vector import CHECK
from fl_peel.steps import STEPS, Stage
from fl_peel.steps.base import AFTER, Arrays, ContributionBounds, Floats, HeldItems, StepTerms, unit_vectors
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.weighting.selectors import BlockSelector


def example_statistics(seed: int, num_blocks: int) -> BlockStatistics:
    """Statistics with many ties and zeros, as a small user group has them."""
    rng = np.random.default_rng(seed)
    group = BlockStatistics(
        popularity=(rng.integers(0, 4, num_blocks) / 8).astype(np.float32),
        shown=(rng.integers(0, 4, num_blocks) / 8).astype(np.float32),
        global_popularity=(rng.integers(0, 9, num_blocks) / 64).astype(np.float32),
        loss=np.where(rng.random(num_blocks) < 0.5, 0, rng.random(num_blocks)).astype(np.float32),
        energy=rng.exponential(size=num_blocks).astype(np.float32),
    )
    exposure = rng.integers(0, 9, num_blocks).astype(np.float64)
    group.add_signals(exposure * rng.random(num_blocks), exposure, 0.5)
    return group


class SelectorContract:
    """Contract suite of a selector: subclass it and set ``selector``; ``sizes``, ``seeds`` set how much is tested."""

    selector: ClassVar[BlockSelector]
    sizes: ClassVar[tuple[int, ...]] = (1, 2, 7, 300)
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2**31)

    def weights(self, statistics: BlockStatistics, seed: int = 0, user_group: int = 0) -> NDArray[np.floating[Any]]:
        """Return the weights of the selector under test."""
        return type(self).selector(statistics, seed, user_group)

    def test_one_finite_non_negative_weight_per_block(self) -> None:
        """Weights are finite and non-negative, one per block, also with ties and without observations."""
        for size in self.sizes:
            nothing = np.zeros(size, np.float32)
            unknown = BlockStatistics(nothing, nothing, nothing, nothing, nothing)
            for statistics in (*(example_statistics(seed, size) for seed in self.seeds), unknown):
                weights = np.asarray(self.weights(statistics))
                assert weights.shape == (size,), f"{size} blocks gave weights of shape {weights.shape}"
                assert np.isfinite(weights).all(), "weights must be finite"
                assert (weights >= 0).all(), "weights must not be negative"

    def test_the_same_question_has_the_same_answer(self) -> None:
        """Weights depend neither on earlier calls nor on the state of global randomness."""
        for seed in self.seeds:
            statistics = example_statistics(seed, 50)
            first = self.weights(statistics, seed, 3)
            self.weights(example_statistics(seed + 1, 50), seed + 1, 4)
            np.random.seed(seed % 97)  # noqa: NPY002
            assert np.array_equal(self.weights(copy.deepcopy(statistics), seed, 3), first), "the answer changed"

    def test_the_statistics_stay_as_they_are(self) -> None:
        """The statistics are not changed, since other selectors read them too."""
        statistics = example_statistics(0, 50)
        before = copy.deepcopy(statistics)
        self.weights(statistics)
        for name, values in vars(before).items():
            assert np.array_equal(getattr(statistics, name), values), f"{name} was changed"

    def test_weights_make_a_ranking_of_all_blocks(self) -> None:
        """The ranking by weight has every block once."""
        order = ranking(np.asarray(self.weights(example_statistics(0, 300))))
        assert np.array_equal(np.sort(order), np.arange(300)), "not a ranking of all blocks"


def example_devices(seed: int, num_devices: int = 9, num_items: int = 14) -> tuple[RankedBlocks, TrainedDevices]:
    """Devices of one user group after a round: some hold few blocks, one has no items."""
    rng = np.random.default_rng(seed)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), 4, 2)
    ranked = rank_blocks(
        layout, "fp32", rng.random(layout.num_blocks), rng.normal(size=(num_items, 4)).astype(np.float32)
    )
    who = np.repeat(np.arange(1, num_devices), 3)
    items = np.concatenate([rng.permutation(num_items)[:3] for _ in range(1, num_devices)]).astype(np.int32)
    train = UserItems.from_pairs(who, items, num_devices)
    cutoffs = rng.integers(1, layout.num_blocks + 1, num_devices)
    users = rng.normal(size=(num_devices, 4)).astype(np.float32)
    seeds = rng.integers(0, 2**62, num_devices).astype(np.uint64)
    users, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, LocalTraining()))
    best = top_rows(ranked, cutoffs, users, train, 5)
    return ranked, TrainedDevices(np.arange(num_devices), cutoffs, users, update, best, train, train)


class StatisticContract:
    """Contract suite of a statistic: subclass it and set ``statistic``; ``seeds`` sets how much is tested."""

    statistic: ClassVar[type[BoundedStatistic]]
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def values(self, seed: int) -> tuple[RankedBlocks, TrainedDevices, FloatArray]:
        """Return the contributions of example devices."""
        ranked, trained = example_devices(seed)
        return ranked, trained, np.asarray(self.statistic().values(ranked, trained), np.float64)

    def test_every_device_says_numbers_of_the_stated_shape(self) -> None:
        """Contributions have the stated shape, also in rounds without signals, when there are no top lists."""
        for seed in self.seeds:
            ranked, trained, values = self.values(seed)
            shape = (len(trained.devices), *self.statistic().shape(GroupShape.from_ranked(ranked)))
            assert values.shape == shape, f"said {values.shape}, stated {shape}"
            assert np.isfinite(values).all(), "numbers must be finite"
            silent = TrainedDevices(**{**vars(trained), "best": None})
            assert np.asarray(self.statistic().values(ranked, silent)).shape == shape, "another shape without signals"

    def test_the_shape_depends_on_what_everybody_knows_alone(self) -> None:
        """The shape depends on public quantities alone: devices with other items have the same shape."""
        shapes = {self.statistic().shape(GroupShape.from_ranked(self.values(seed)[0])) for seed in self.seeds}
        assert len(shapes) == 1, f"{shapes}: the shape would tell something of the devices"

    def test_a_device_speaks_for_itself(self) -> None:
        """The contribution of a device does not depend on other devices."""
        ranked, trained, values = self.values(0)
        for i in range(len(trained.devices)):
            one = TrainedDevices(
                trained.devices[[i]],
                trained.cutoffs[[i]],
                trained.users[[i]],
                trained.update,
                None if trained.best is None else trained.best[[i]],
                trained.train.select(np.array([i])),
                trained.validation.select(np.array([i])),
            )
            alone = np.asarray(self.statistic().values(ranked, one), np.float64)
            assert np.array_equal(alone[0], values[i]), "what a device says depends on the others"

    def test_no_contribution_passes_its_bound(self) -> None:
        """No contribution exceeds its bound after clipping."""
        for l1 in (False, True):
            for row in self.values(0)[2]:
                sums = bounded(row[None], 0.5, l1=l1) / FIXED_POINT
                assert (np.abs(sums).sum() if l1 else np.sqrt((sums**2).sum())) <= 0.5

    def test_the_server_takes_any_noised_sum(self) -> None:
        """The server accepts any noised sum, negative ones too; its statistics of the blocks stay finite."""
        for seed in self.seeds:
            ranked, trained, values = self.values(seed)
            statistics = example_statistics(seed, ranked.layout.num_blocks)
            before = copy.deepcopy(statistics)
            noised = values.sum(axis=0) + np.random.default_rng(seed).normal(0, 3, values.shape[1:])
            self.statistic().take(noised, 3.0, float(len(trained.devices)), ranked.blocks, statistics)
            for name, array in vars(statistics).items():
                assert np.isfinite(array).all(), f"{name} is no longer finite"
                assert array.shape == getattr(before, name).shape, f"{name} has another shape"


def example_hosts(seed: int, num_devices: int = 9, num_items: int = 14) -> PooledDevices:
    """Devices of random items and vectors, as steps ask them; the last one has none."""
    rng = np.random.default_rng(seed)
    sizes = [*rng.integers(1, num_items, num_devices - 1).tolist(), 0]
    rows = [np.sort(rng.permutation(num_items)[:size]) for size in sizes]
    items = UserItems(np.cumsum([0, *sizes]), np.concatenate(rows).astype(np.int32))
    vectors = unit_vectors(rng.standard_normal((num_devices, 8)).astype(np.float32)) * (items.counts() > 0)[:, None]
    return PooledDevices(items, UserItems(0 * items.indptr, items.items[:0]), None, vectors)


class StageContract:
    """Contract suite of a stage: subclass it and set ``stage``; ``seeds`` sets how much is tested."""

    stage: ClassVar[type[Stage]]
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)
    terms: ClassVar[StepTerms] = StepTerms(14, 0.3, dim=4)
    bounded: ClassVar[tuple[StepTerms, ...]] = (
        replace(terms, bounds=ContributionBounds(1.5)),
        replace(terms, bounds=ContributionBounds(1.5, l1=True)),
    )

    def tables(self, seed: int) -> list[Floats]:
        """Return item tables of two user groups."""
        return list(np.random.default_rng(seed).normal(size=(2, 14, 4)).astype(np.float32))

    def contribution(self, terms: StepTerms, seed: int, places: Sequence[int] | None = None) -> Arrays:
        """Return the sum of example devices, or of those at some places."""
        stage, all_devices = type(self).stage(), example_hosts(seed)
        some = np.arange(9) if places is None else np.array(places, np.int64)
        rows, none = (part.select(some) for part in (all_devices.contributed, all_devices.validation))
        assert all_devices.made is not None
        devices = PooledDevices(rows, none, None, all_devices.made[some])
        sent = stage.sent(self.tables(seed))
        pieces = [(piece, piece + 1) for piece in range(stage.num_pieces)]
        each = (stage.contribute(devices, stage.cut(sent, part, terms), part, terms, None) for part in pieces)
        return stage.whole(terms, zip(pieces, each, strict=True))

    def test_it_has_a_name_and_a_place(self) -> None:
        """It is made without arguments, and has a name of its own and a stage of every run to stand after."""
        stage = type(self).stage()
        assert stage.name and stage.name not in STEPS, f"{stage.name!r} is the name of a step of stage 1"  # noqa: PT018
        assert stage.after in AFTER, f"after {stage.after!r}: one of {', '.join(AFTER)}"

    def test_contributions_have_the_stated_shape_and_are_whole(self) -> None:
        """Sums are 64-bit integers of the stated shapes, whatever devices have, and what a node may reply."""
        stage = type(self).stage()
        for terms in (self.terms, *self.bounded):
            for seed in self.seeds:
                sums = self.contribution(terms, seed)
                assert {name: array.shape for name, array in sums.items()} == {
                    one.name: one.shape for one in stage.sums(terms)
                }, "another shape than sums() states"
                assert not {CHECK, "classes", "clock"} & sums.keys(), "a name of what goes with every masked vector"
                assert all(array.dtype == np.int64 for array in sums.values()), "sums are int64"
                specs = stage.reply_arrays(terms, (0, stage.num_pieces), 9)
                ArrayChecker.from_context(MessageContext({TOTAL: MOST}, arrays=specs)).group(sums, "a reply")

    def test_what_is_sent_is_what_is_stated(self) -> None:
        """Arrays that are sent have the stated shapes and types, of which the cost of the stage is made."""
        stage = type(self).stage()
        specs = stage.sent_arrays(self.terms, (0, stage.num_pieces))
        ArrayChecker.from_context(MessageContext({TOTAL: MOST}, arrays=specs)).group(stage.sent(self.tables(0)), "sent")
        none, budgets = np.zeros(3, np.int64), np.full(3, 1 << 20)
        cost = stage.whole_cost(self.terms, HeldItems(none, none, none), budgets)
        assert all((array >= 0).all() and array.shape == (3,) for array in vars(cost).values()), "costs are (N,)"

    def test_a_device_speaks_for_itself(self) -> None:
        """The sum is that of each device alone, so that nodes and masks change nothing."""
        for terms in (self.terms, *self.bounded):
            for seed in self.seeds:
                alone = [self.contribution(terms, seed, [place]) for place in range(9)]
                for name, whole in self.contribution(terms, seed).items():
                    assert np.array_equal(whole, sum(each[name] for each in alone)), f"{name} is no sum over devices"

    def test_noised_parts_are_within_their_bounds(self) -> None:
        """No device passes the bound of a noised part; a sum of which some part is noised is noised as a whole."""
        stage = type(self).stage()
        for terms in self.bounded if stage.noised else ():
            assert {part.field for part in stage.noised} == {one.name for one in stage.sums(terms)}, "without noise"
            assert terms.bounds is not None
            for seed in self.seeds:
                for place in range(9):
                    sums = self.contribution(terms, seed, [place])
                    for part in stage.noised:
                        mine = sums[part.field].astype(np.float64) / part.unit
                        norm = np.abs(mine).sum() if terms.bounds.l1 else np.sqrt((mine * mine).sum())
                        bound = terms.bounds.counts if part.bound is None else part.bound
                        assert norm <= bound, f"{part.name}: a device adds {norm:.3g}, above {bound}"

    def test_rows_of_few_devices_stay_closed(self) -> None:
        """Its contributors are counted: by the sum itself, or before it, and closed rows say nothing of anybody."""
        stage, terms = type(self).stage(), replace(self.terms, counts_contributors=True)
        assert stage.counts_alone or stage.num_rows(terms), "set counts_alone, or num_rows and contributors"
        if stage.counts_alone:
            assert stage.counts_alone in {one.name for one in stage.sums(terms)}, f"no {stage.counts_alone}"
            return
        sent, devices, part = stage.sent(self.tables(0)), example_hosts(0), (0, stage.num_pieces)
        counted = stage.contributors(devices, {name: sent[name] for name in stage.counting_sent}, terms)
        assert counted.shape == (stage.num_rows(terms),), "contributors are (R,)"
        closed = stage.contribute(devices, sent, part, terms, np.zeros(len(counted), np.bool_))
        assert not any(array.any() for array in closed.values()), "a closed row has something"

    def test_any_sum_has_figures(self) -> None:
        """Figures are made of the sum, of noised ones below 0, and of nobody's; each has a name and is finite."""
        stage = type(self).stage()
        for seed in self.seeds:
            sums = {name: array.astype(np.float64) for name, array in self.contribution(self.terms, seed).items()}
            nobody, noised = ({name: a * one - b for name, one in sums.items()} for a, b in ((0, 0), (1, 3)))
            for values in (sums, nobody, noised):
                for figure in stage.figures(values, self.tables(seed)):
                    assert figure.name, "a figure needs a name"
                    assert math.isfinite(figure.value), f"{figure.name} is {figure.value}"


class MechanismContract:
    """Contract suite of a mechanism: subclass it and set ``mechanism``; ``multipliers`` and ``shares`` set how much is
    tested. What no test can show is that ``event`` tells the truth about ``draw``: that takes a proof."""

    mechanism: ClassVar[Mechanism]
    multipliers: ClassVar[tuple[float, ...]] = (0.8, 2.0, 7.0)
    shares: ClassVar[tuple[float, ...]] = (0.05, 0.35, 0.6)
    delta: ClassVar[float] = 1e-5

    def test_it_says_what_it_is(self) -> None:
        """The mechanism has a place, a norm and a name, and is a value that travels to workers."""
        mechanism = self.mechanism
        assert mechanism.name not in ("", "none"), "a mechanism needs a name of its own"
        assert mechanism.where in ("server", "device"), "where is server or device"
        assert mechanism.norm in ("l2", "l1"), "norm is l2 or l1"
        assert pickle.loads(pickle.dumps(mechanism)) == mechanism, "a mechanism is a value: make it a frozen dataclass"

    def test_noise_has_mean_zero_and_the_stated_deviation(self) -> None:
        """Noise has mean 0 and the stated deviation: 200,000 draws, five standard errors (kurtosis 10 at most)."""
        for scale in (0.01, 3.0):
            drawn = self.mechanism.draw(np.random.default_rng(1), (400, 500), scale)
            assert drawn.shape == (400, 500), f"asked for (400, 500), got {drawn.shape}"
            std, error = self.mechanism.std(scale), math.sqrt(1 / drawn.size)
            assert abs(drawn.mean()) < 5 * std * error, "noise is biased"
            assert abs(drawn.std() / std - 1) < 5 * 1.5 * error, f"std({scale}) says {std}, drawn {drawn.std()}"

    def test_noise_comes_from_the_generator_alone(self) -> None:
        """The same generator gives the same noise, another one other noise."""
        first, again, other = (self.mechanism.draw(np.random.default_rng(seed), (50,), 1.0) for seed in (1, 1, 2))
        assert np.array_equal(first, again), "the same generator gave different noise"
        assert not np.array_equal(first, other), "different generators gave the same noise"

    def test_whole_noise_has_the_stated_deviation(self) -> None:
        """Integer noise of ``privacy.noise_source: system``, if implemented, has the stated deviation."""
        if not self.mechanism.draws_whole:
            return
        for scale in (40, 3 << 30):
            drawn = self.mechanism.draw_whole(SystemBits(), 200_000, scale)
            assert drawn.shape == (200_000,), f"asked for (200000,), got {drawn.shape}"
            assert drawn.dtype == np.int64, f"whole numbers are int64, not {drawn.dtype}"
            std, error = self.mechanism.std(scale), math.sqrt(1 / drawn.size)
            assert abs(drawn.mean()) < 5 * std * error, "whole noise is biased"
            assert abs(drawn.std() / std - 1) < 5 * 1.5 * error, f"std({scale}) says {std}, drawn {drawn.std()}"

    def test_scale_grows_with_bound_and_multiplier(self) -> None:
        """The scale is proportional to the bound and to the multiplier."""
        for multiplier in self.multipliers:
            one = self.mechanism.scale(multiplier, 0.5, 1.0)
            assert math.isclose(self.mechanism.scale(multiplier, 0.5, 3.0), 3 * one), "scale is not linear in the bound"
            assert math.isclose(self.mechanism.scale(2 * multiplier, 0.5, 1.0), 2 * one), "nor in the multiplier"

    def test_more_noise_costs_less(self) -> None:
        """More noise costs strictly less, and some accountant gives a finite cost."""
        costs = [privacy_cost(self.mechanism.event(multiplier), self.delta).epsilon for multiplier in self.multipliers]
        assert all(math.isfinite(cost) for cost in costs), "no accountant knows the event"
        assert costs == sorted(costs, reverse=True), f"more noise costs more: {costs}"
        assert len(set(costs)) == len(costs), f"noise makes no difference: {costs}"

    def test_parts_together_cost_what_the_whole_costs(self) -> None:
        """Parts by ``of_share`` whose shares sum to 1 cost at most as much as one release, within 2%."""
        assert math.isclose(sum(self.shares), 1.0)
        for multiplier in self.multipliers:
            whole = privacy_cost(self.mechanism.event(multiplier), self.delta).epsilon
            schedule = Schedule(tuple((1, share) for share in self.shares))
            parts = privacy_cost(event_of(self.mechanism, multiplier, schedule), self.delta).epsilon
            assert parts <= 1.02 * whole, f"parts cost {parts}, the whole {whole}"

    def test_calibration_meets_its_target(self) -> None:
        """Calibration meets its target from below, by at most 5%."""
        schedule = Schedule(((4, 1.0),))
        for target in (1.0, 8.0):
            multiplier = calibrated(self.mechanism, schedule, target, self.delta)
            cost = privacy_cost(event_of(self.mechanism, multiplier, schedule), self.delta).epsilon
            assert 0.95 * target <= cost <= target, f"target {target}, spent {cost}"


Leak = Literal["planted", "noise", "nothing"]


def example_views(leak: Leak, secret: Secret, seed: int, num_devices: int = 100) -> list[Accomplice]:
    """Devices whose views hold their secret ("planted"), only noise, or no arrays at all.

    Two groups, two classes, 60 items of dimension 8. Planted: rows of the device's 10 train items move along its user
    embedding, those of 20 others a little against it; its 4 validation items have hits; its request is made of its
    group's 30 first blocks (20 for the second class). In stage 1 train items are counted, a vector is the sum of their
    rows, validation items win under most filters, and moments are of the device's group.
    """
    rng = np.random.default_rng(seed)
    num_items, dim = 60, 8
    accomplices = []
    for device in range(num_devices):
        group, kind = device % 2, device // 2 % 2
        shuffled = rng.permutation(num_items)
        train, validation, negatives = shuffled[:10], shuffled[10:14], shuffled[14:34]
        # the table knows the taste a little, as a pretrained one does
        user = rng.normal(size=dim)
        user /= np.linalg.norm(user)
        table = rng.normal(size=(num_items, dim)) / np.sqrt(dim)
        table[train] += user
        order = np.roll(np.arange(num_items), -30 * group)  # each group's own ranking
        update, hits, counts = np.zeros((num_items, dim)), np.zeros(num_items), np.zeros(num_items)
        if leak == "planted":
            update[train], update[negatives] = 0.2 * user, -0.05 * user
            hits[validation], counts[train] = 0.5, 1.0
        elif leak == "noise":
            update = rng.normal(size=(num_items, dim))
            hits, counts = rng.normal(size=num_items), rng.normal(size=num_items)
        size = 30 - 10 * kind if leak == "planted" else 30
        asked = order if leak == "planted" else rng.permutation(num_items)
        rows = np.flatnonzero(np.abs(update[order]).sum(axis=1) > 0)
        reply: dict[str, NDArray[Any]] = {
            "rows": rows.astype(np.int32),
            "sums": np.rint(update[order][rows] * FIXED_POINT).astype(np.int64),
            "row_examples": counts[order][rows],
            "holders": np.isin(order, asked[:size]).astype(np.int32),
            "hits": hits[order],
        }
        if leak == "nothing":
            reply = {}
        view = RoundView(
            1,
            order.astype(np.int64),
            table[order].astype(np.float32),
            np.arange(num_items, dtype=np.int32)[:, None],
            order.astype(np.int64),
            LocalTraining(),
            reply,
            {} if leak == "nothing" else {"budget": float(kind if leak == "planted" else rng.random())},
        )
        candidates, truth = {
            "train items": (np.arange(num_items), np.isin(np.arange(num_items), train)),
            "validation items": (np.arange(num_items), np.isin(np.arange(num_items), validation)),
            "user group": (np.arange(2), np.arange(2) == group),
            "device class": (np.arange(2), np.arange(2) == kind),
        }[secret]
        steps = () if leak == "nothing" else _example_steps(leak, rng, train, validation, group)
        accomplices.append(Accomplice(DeviceView(device, num_items, (view,), steps), candidates, truth))
    return accomplices


def _example_steps(
    leak: Leak, rng: np.random.Generator, train: IntArray, validation: IntArray, group: int, num_items: int = 60
) -> tuple[StepView, ...]:
    """What stage 1 shows of a device: see :func:`example_views`."""
    columns, filters = 40, 4
    own = (rng.normal(size=(num_items, columns)) / np.sqrt(columns)).astype(np.float32)
    items, norms, sizes = np.zeros(num_items), np.zeros(num_items), np.zeros(2)
    items[train], norms[train], sizes[group] = 1.0, 2.0, 1.0
    vector = own[train].sum(axis=0)
    directions = own.copy()
    directions[validation] += vector
    won = np.ones(filters)
    if leak == "noise":
        items, norms, sizes = rng.random(num_items), rng.random(num_items), rng.random(2)
        vector, won = rng.normal(size=columns), rng.random(filters)
    question = {
        "directions": directions,
        "values": np.ones(columns),
        "counts": np.ones(num_items, np.int64),
        "count_exponents": np.linspace(0.3, 0.5, filters),
        "value_exponents": np.zeros(filters),
        "leading": np.full(filters, columns),
        "drawn": np.arange(num_items),
        "place": np.array([6]),
        "item_exponent": np.array([0.5]),
    }
    first, per_group = np.zeros((2, columns)), np.zeros((2, num_items))
    first[group], per_group[group] = vector, items
    moments = {"sizes": sizes, "first": first, "items": per_group}
    return (
        StepView("counts", {}, {"items": items}),
        StepView("pass", {}, {"norms": norms}),
        StepView("choice", question, {"won": won, "answered": np.array([1])}),
        StepView("vectors", {"own": own}, {}),
        StepView("groups", {"centroids": own[:2]}, {"sizes": sizes}),
        StepView("moments", {}, moments),
    )


class AttackContract:
    """Contract suite of an attack: subclass it and set ``attack``. It is tried on :func:`example_views`: devices with a
    planted leak of every secret, devices that send noise, and devices that send nothing.

    ``succeeds``: smallest AUC on the planted leak; set it to 0 for an attack on a leak that the examples do not have.
    """

    attack: ClassVar[type[Attack]]
    succeeds: ClassVar[float] = 0.8

    def known(self, leak: Leak, seed: int = 0) -> list[Accomplice]:
        """Return example devices."""
        return example_views(leak, type(self).attack.secret, seed)

    def taught(self, leak: Leak) -> Attack:
        """Return the attack after it learned from accomplices."""
        attack = type(self).attack()
        attack.learn(self.known(leak, 1), 0)
        return attack

    def auc(self, attack: Attack, devices: Sequence[Accomplice]) -> float:
        """Return the AUC over all candidates of all devices."""
        scores = [checked_scores(attack, one.view, one.candidates, 0) for one in devices]
        return auc_of(np.concatenate(scores), np.concatenate([one.truth for one in devices]))

    def test_it_says_what_it_is_after(self) -> None:
        """The attack has a name for tables, and a secret that the audit knows."""
        assert type(self).attack.name, "an attack needs a name"
        assert type(self).attack.secret in (*ITEM_SECRETS, "user group", "device class"), "an unknown secret"

    def test_one_finite_score_per_candidate(self) -> None:
        """Scores are finite, one per candidate, also for few candidates, before learning, and where nothing shows."""
        leaks: tuple[Leak, ...] = ("planted", "noise", "nothing")
        for leak in leaks:
            for attack in (type(self).attack(), self.taught(leak)):
                for one in self.known(leak)[:4]:
                    checked_scores(attack, one.view, one.candidates, 0)
                    checked_scores(attack, one.view, one.candidates[:1], 0)

    def test_a_planted_leak_is_found(self) -> None:
        """The attack finds a planted leak; otherwise finding nothing in a protected run proves nothing."""
        auc = self.auc(self.taught("planted"), self.known("planted"))
        assert auc >= type(self).succeeds, f"AUC {auc:.3f} on a planted leak is below {type(self).succeeds}"

    def test_nothing_is_found_in_nothing(self) -> None:
        """Where nothing is revealed, all candidates of a device have the same score."""
        attack = self.taught("nothing")
        for one in self.known("nothing"):
            scores = checked_scores(attack, one.view, one.candidates, 0)
            assert np.ptp(scores) == 0, "scores differ though nothing was seen: the attack knows what it should not"

    def test_noise_is_noise(self) -> None:
        """On noise the attack is at chance, within the precision of 100 devices: AUC between 0.3 and 0.7."""
        auc = self.auc(self.taught("noise"), self.known("noise"))
        assert 0.3 < auc < 0.7, f"AUC {auc:.3f} on pure noise"

    def test_the_same_question_has_the_same_answer(self) -> None:
        """Scores depend neither on earlier calls nor on the state of global randomness, and views are not changed."""
        attack, devices = self.taught("planted"), self.known("planted")
        first: FloatArray = checked_scores(attack, devices[0].view, devices[0].candidates, 0)
        before = copy.deepcopy(dict(devices[0].view.rounds[0].reply))
        checked_scores(attack, devices[1].view, devices[1].candidates, 0)
        np.random.seed(5)  # noqa: NPY002
        assert np.array_equal(checked_scores(attack, devices[0].view, devices[0].candidates, 0), first)
        for name, values in before.items():
            assert np.array_equal(devices[0].view.rounds[0].reply[name], values), f"the reply's {name} was changed"
