"""Stage 1 by sums, from the first count to the tables of the user groups, whoever adds up.

What must be added up over devices are the steps of :mod:`fl_peel.steps`, asked of a
:class:`fl_peel.steps.base.StepChannel`. :class:`PooledSums` adds up over interactions that one party holds; a
federation asks its devices. Both give the same numbers, to the last digit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import scipy.linalg  # noqa: F401  # loaded here, as fixed_threads reaches only what is loaded

from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError
from fl_peel.pretraining.clusters import k_means
from fl_peel.pretraining.spectral import (
    CERTAIN,
    ROWS_AT_ONCE,
    WIDEST,
    Compression,
    Filter,
    GroupStart,
    above_noise,
    blocks_of,
    cleaned,
    coarse,
    drawn_items,
    filtered,
    halves,
    known,
    orthonormal,
    orthonormal_again,
    popular_directions,
    spectrum,
    starting_directions,
    symmetric,
)
from fl_peel.randomness import rng_for, seed_for
from fl_peel.scenario.settings import SpectralConfig
from fl_peel.steps.base import (
    UNIT_SCALE,
    Arrays,
    Bools,
    Counts,
    Doubles,
    Floats,
    Ints,
    PartSums,
    Step,
    StepChannel,
    StepTerms,
    add_rows,
    inverse_power,
    unit_vectors,
)
from fl_peel.steps.choice import ChoiceStep, FilterGrid, FilterRequest, spread_of
from fl_peel.steps.passes import CountsStep, PassStep
from fl_peel.steps.user_groups import GroupsStep, Moments, MomentsStep, VectorsStep
from fl_peel.training.workers import fixed_threads

Progress = Callable[[int, int, str], None]
"""Callback with the number of completed steps, the number of all steps, and the name of the last one."""
LIFT = -0.65
"""Power of eigenvalues by which directions are weighed in a noised pass over those that an earlier one found: -1/2 lets
all of them vary alike over devices. Chosen on ML-100K's validation items.
"""
MOST_PENDING = 4
"""User groups whose moments wait for their turn."""
NUM_DRAWN = 256
"""Embeddings drawn from a user group's moments, by which its blocks are ranked before any device has ranked."""


@dataclass(frozen=True)
class SpectralStart:
    """Result of stage 1 by sums. own: (I, K) rows of which a device makes its vector, whenever it comes; centroids: (G,
    c) by which it finds its user group; groups: start of each; counts: (I,) of items; directions: (I, K), orthonormal;
    count_exponent, value_exponent: of the filter; chosen: recall among drawn items by which devices chose them, None
    where none did.
    """

    own: Floats
    scored: Floats
    values: Floats
    centroids: Floats
    groups: tuple[GroupStart, ...]
    counts: Counts
    directions: Floats
    count_exponent: float
    value_exponent: float
    chosen: float | None

    @property
    def maps(self) -> Floats:
        """Return the maps from a device's vector to its embedding, (G, K, d)."""
        return np.stack([group.map for group in self.groups])


def num_steps(config: SpectralConfig) -> int:
    """Steps that :func:`run_stage1` tells of."""
    return 1 + config.passes + config.chooses + 2


@dataclass(frozen=True)
class SpectralFilter:
    """What passes find, and which filter devices choose: the first half of stage 1. directions: (I, K) orthonormal;
    values: (K,) eigenvalues; counts: (I,) of items; the rest as in :class:`SpectralStart`.
    """

    directions: Doubles
    values: Doubles
    counts: Counts
    count_exponent: float
    value_exponent: float
    chosen: float | None


@dataclass
class _Steps:
    """Counter that reports each completed step."""

    total: int
    progress: Progress | None
    done: int = 0

    def __call__(self, text: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, text)


@dataclass(frozen=True)
class GroupPlan:
    """The user groups that stage 1 makes. dim: of a table's rows; num_groups: at most; min_size: of a group."""

    dim: int
    num_groups: int
    min_size: int
    seed: int


def run_passes(
    sums: StepChannel,
    config: SpectralConfig,
    *,
    seed: int,
    given: UserItems | None = None,
    progress: Progress | None = None,
) -> SpectralFilter:
    """Counts, passes and the choice of the filter; arguments as in :func:`run_stage1`.

    Raises:
        DataError: no device has any item.
    """
    return _passes(sums, config, seed, given, None, _Steps(num_steps(config), progress))


def run_stage1(
    sums: StepChannel,
    config: SpectralConfig,
    plan: GroupPlan,
    *,
    given: UserItems | None = None,
    earlier: Floats | None = None,
    progress: Progress | None = None,
) -> SpectralStart:
    """Counts, passes, vectors, user groups, moments; the same arguments and sums give the same tables.

    A table is made of the moments of the devices that were nearest to a centroid of items' owners, and serves those
    that are nearest to the mean of these devices: a round of Lloyd's algorithm for which nothing is added up again.

    given: interactions that the server holds, if any: passes over these alone come first, at no cost to devices.
    earlier: directions (I, K) that an earlier stage 1 ended with, to go on from.

    Raises:
        DataError: no device has any item.
    """
    step = _Steps(num_steps(config), progress)
    chosen = _passes(sums, config, plan.seed, given, earlier, step)
    directions, values, counts = chosen.directions, chosen.values, chosen.counts
    with fixed_threads(config.num_threads):
        shape = Filter.from_spectrum(
            directions,
            values,
            counts,
            own_exponent=config.item_exponent,
            count_exponent=chosen.count_exponent,
            value_exponent=chosen.value_exponent,
        )
    VectorsStep.ask(sums, shape.own)
    step("vectors")
    centroids = find_centroids(sums, shape.own, values, counts, config, plan)
    groups: list[GroupStart] = []
    means: list[Floats] = []
    units = sums.terms.units.moments
    pending: deque[Future[GroupStart]] = deque()
    with fixed_threads(1):
        compression = Compression.from_scored(shape.scored, plan.dim)
        with ThreadPoolExecutor(max_workers=2) as pool:
            for group, moments in enumerate(moments_by_group(sums, centroids, counts, shape.own.shape[1])):
                one = partial(
                    compression.group,
                    moments,
                    num_users=NUM_DRAWN,
                    rng=rng_for(plan.seed, "drawn-users", group),
                    scale=units,
                )
                means.append(moments.centroid(centroids[group], units))
                pending.append(pool.submit(one))
                if len(pending) > MOST_PENDING:  # moments are large: K^2 numbers a group
                    groups.append(pending.popleft().result())
            groups += [start.result() for start in pending]
    if len(groups) > 1 and not sums.terms.bounded:  # noised means are far off, and sizes again one release more
        centroids = coarse(np.stack(means))
        kept = large_groups(sums, centroids, plan.min_size)
        centroids, groups = centroids[kept], [groups[group] for group in np.flatnonzero(kept)]
    step(f"{len(groups)} user groups")
    return SpectralStart(
        shape.own,
        shape.scored,
        values.astype(np.float32),
        centroids,
        tuple(groups),
        counts,
        directions.astype(np.float32),
        chosen.count_exponent,
        chosen.value_exponent,
        chosen.chosen,
    )


def _passes(
    sums: StepChannel,
    config: SpectralConfig,
    seed: int,
    given: UserItems | None,
    earlier: Floats | None,
    step: Callable[[str], None],
) -> SpectralFilter:
    counts = known_counts(sums)
    step("items counted")
    chooses, config = config.chooses, config.limited(int((counts > 0).sum()))
    with fixed_threads(config.num_threads):
        if sums.terms.bounded and (given is None or not given.num_interactions):
            directions = popular_directions(counts, config.columns + config.oversampling, config.item_exponent)
        else:
            directions = _beginning(counts, config, seed, given, earlier)
    with fixed_threads(config.num_threads):
        directions, values = repeated_passes(sums, directions, counts, config, step)
        directions, values = orthonormal_again(directions[:, : config.columns]), values[: config.columns]
    chosen = _chosen(sums, config, directions, values, counts, seed)
    if chooses:
        exponents = f"{chosen.count_exponent:g} and {chosen.value_exponent:g}"
        step(f"filter chosen, exponents {exponents}, {len(chosen.values)} columns")
    return chosen


def known_counts(sums: StepChannel, certain: float = CERTAIN) -> Counts:
    """Return item counts (I,); of bounded sums zero where noise alone has as much.

    Raises:
        DataError: no device has any item that enough devices have.
    """
    counts: Counts = CountsStep.ask(sums)
    if sums.terms.bounded:
        if not counts.any():  # a void sum: nothing is known of any item
            counts = np.full_like(counts, int(UNIT_SCALE))
        counts = known(counts, sums.std("counts"), certain)
    if not counts.any():
        raise DataError(
            "stage 1: no item has as many devices that answered as privacy.min_owners asks for; see fl-peel fleet "
            "show, raise deadlines, or lower privacy.min_owners"
        )
    return counts


def repeated_passes(
    sums: StepChannel,
    directions: Doubles,
    counts: Counts,
    config: SpectralConfig,
    step: Callable[[str], None] = lambda text: None,
) -> tuple[Doubles, Doubles]:
    """Return directions (I, k) and eigenvalues (k,) after ``config.passes`` from orthonormal directions; of bounded
    sums the leading columns' zero where noise alone has as much. step: told of each pass.
    """
    number = 0

    def one(directions: Doubles) -> Doubles:
        nonlocal number
        number += 1
        columns = passed(sums, directions, counts, config)
        step(f"pass {number}")
        return columns

    if not sums.terms.bounded:
        return iterated(one, directions, blocks_of(config.passes))
    values, std = np.ones(directions.shape[1]), 0.0
    while number < config.passes:
        if number == 0:
            columns = symmetric(one(directions), directions, counts)
        else:  # what a device says has one length over all directions: weak ones are lifted, not to be lost in it
            leading = slice(0, config.columns)
            columns = one(directions[:, leading] * spread_of(values[leading], LIFT))
        if columns.any():  # else of a void sum: directions stay as they were
            (directions, values), std = spectrum(columns), sums.std("pass")
    values[: config.columns] = above_noise(values[: config.columns], counts, std)
    return directions, values


def iterated(once: Callable[[Doubles], Doubles], directions: Doubles, sizes: Sequence[int]) -> tuple[Doubles, Doubles]:
    """Directions (I, k) and eigenvalues (k,) after passes: ``once`` is one, sizes: as of
    :func:`fl_peel.pretraining.spectral.blocks_of`.
    """
    values = np.zeros(0)
    for size in sizes:
        cut = float(values[values > 0].min(initial=np.inf)) if len(values) else np.inf
        if size == 2 and values[0] <= WIDEST * cut:
            directions, values = filtered(once, directions, cut)
        else:
            for _ in range(size):
                directions, values = spectrum(once(directions))
    return directions, values


def _beginning(
    counts: Counts, config: SpectralConfig, seed: int, given: UserItems | None, earlier: Floats | None
) -> Doubles:
    """Where passes begin, orthonormal (I, K): at random, but for what is known already."""
    directions = starting_directions(counts, config.columns + config.oversampling, seed)
    if earlier is not None:
        kept = min(earlier.shape[1], directions.shape[1])
        directions[:, :kept] = earlier[:, :kept] * (counts > 0)[:, None]
        return orthonormal(directions)
    if given is None or not given.num_interactions:
        return directions
    mine, random = PooledSums(given, StepTerms(len(counts), config.user_exponent)), directions
    for _ in range(config.passes):
        directions = orthonormal(passed(mine, directions, CountsStep.ask(mine), config))
    return orthonormal(directions + 1e-3 * random)


def _chosen(
    sums: StepChannel, config: SpectralConfig, directions: Doubles, values: Doubles, counts: Counts,
    seed: int,
) -> SpectralFilter:  # fmt: skip
    """The filter of these directions (I, K) that devices choose, of all or some of the leading columns; the recall by
    which they do is None of bounded sums, in which only differences are.
    """
    shapes = FilterGrid.from_exponents(*config.filters)
    if not config.chooses:
        return SpectralFilter(
            directions, values, counts, float(shapes.count_exponents[0]), float(shapes.value_exponents[0]), None
        )
    drawn, place = drawn_items(counts, seed)
    request = FilterRequest(halves(directions.astype(np.float32)), values, counts, shapes, drawn, place)
    won, answered = ChoiceStep.ask(sums, request, config.filter_devices)
    if not (answered or sums.terms.bounded):
        raise DataError(
            "stage 1: fewer of the requested devices have a validation item than privacy.min_owners says; set "
            "pretraining.columns, count_exponent and value_exponent, or raise pretraining.filter_devices or "
            "data.validation_share"
        )
    best = int(won.argmax())
    leading = int(shapes.leading[best])
    return SpectralFilter(
        directions[:, :leading],
        values[:leading],
        counts,
        float(shapes.count_exponents[best]),
        float(shapes.value_exponents[best]),
        None if sums.terms.bounded else float(won[best] / UNIT_SCALE / answered),
    )


def passed(sums: StepChannel, directions: Doubles, counts: Counts, config: SpectralConfig) -> Doubles:
    """R~^T R~ of orthonormal directions (I, K); of bounded sums R^^T R^, which devices scale themselves."""
    scale = inverse_power(counts, config.item_exponent)
    weights = scale.astype(np.float32)
    if sums.terms.bounded:
        whole = PassStep.ask(sums, halves(directions.astype(np.float32)), weights) / sums.terms.units.passes
        return np.where((counts > 0)[:, None], whole, 0.0)
    table = np.multiply(scale[:, None], directions, out=np.empty(directions.shape, np.float32), casting="same_kind")
    whole = np.require(PassStep.ask(sums, halves(table), weights), requirements="W")
    columns: Doubles = whole.view(np.float64)  # in place: of many items and columns an array is half a gigabyte
    for start in range(0, len(whole), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        columns[some] = whole[some] / sums.terms.units.passes * scale[some, None]
    return columns


def moments_by_group(sums: StepChannel, centroids: Floats, counts: Counts, columns: int) -> Iterable[Moments]:
    """Yield the moments of every user group, of vectors of so many columns: bounded sums are cleaned of what noise
    alone explains, others of items that nobody has according to ``counts`` (I,).
    """
    for moments in MomentsStep.ask(sums, centroids, columns):
        if sums.terms.bounded and not moments.second.any():  # of a void sum
            yield Moments(1, moments.first, moments.second, np.asarray(counts) / len(centroids))
        elif sums.terms.bounded:
            stds = {part: sums.std(part) for part in ("moment products", "moment items")}
            yield cleaned(moments, np.asarray(counts, np.float64), stds)
        else:
            yield replace(moments, items=np.where(counts > 0, moments.items, 0))


def find_centroids(
    sums: StepChannel, own: Floats, values: Doubles, counts: Counts, config: SpectralConfig, plan: GroupPlan
) -> Floats:
    """Return centroids (G, c) of items' owners, from rows (I, K) and eigenvalues (K,) that the server has already; as
    long as a group of devices is smaller than allowed, the smallest is dissolved: the rule of
    :func:`fl_peel.pretraining.clusters.user_groups`. Devices say in which group they are, and nothing of their vectors.
    """
    columns = min(config.group_columns, own.shape[1])
    # where an item's owners are: a pass adds up the rows of all that they have, which weighs columns by eigenvalues
    points = unit_vectors((own[counts > 0, :columns] * values[:columns]).astype(np.float32))
    wanted = min(plan.num_groups, len(np.unique(points, axis=0)))
    weights = np.asarray(counts[counts > 0], np.float64)
    centroids = coarse(k_means(points, wanted, seed_for(plan.seed, "user-groups"), weights=weights))
    if sums.terms.bounded:
        return centroids[large_groups(sums, centroids, plan.min_size)]
    while True:
        sizes = GroupsStep.ask(sums, centroids)
        if len(centroids) == 1 or sizes.min() >= plan.min_size:
            return centroids
        allowed = max(1, int(sizes.sum()) // plan.min_size)
        surplus = max(1, min(int((sizes < plan.min_size).sum()) // 2, len(centroids) - 1), len(centroids) - allowed)
        # half of those that are too small at once: each round is a round for every device
        centroids = np.delete(centroids, np.argsort(sizes, kind="stable")[:surplus], axis=0)


def large_groups(sums: StepChannel, centroids: Floats, min_size: int) -> Bools:
    """Return which groups (G,) have as many devices as allowed, and the largest one: to ask how large the others became
    without the rest would be one release more.
    """
    if sums.terms.bounded and len(centroids) == 1:
        return np.ones(1, np.bool_)
    sizes = GroupsStep.ask(sums, centroids)
    if sums.terms.bounded and not sizes.any():  # a void sum: nothing is known of any group
        return np.ones(len(centroids), np.bool_)
    kept: Bools = sizes >= min_size * (UNIT_SCALE if sums.terms.bounded else 1)
    kept[sizes.argmax()] = True
    return kept


@dataclass
class PooledDevices:
    """Users (N,) whose interactions one party holds, and their vectors once they are made."""

    contributed: UserItems
    validation: UserItems
    fading: float | None
    made: Floats | None = None

    @property
    def train(self) -> UserItems:
        return self.contributed

    def vectors(self, some: Ints | None = None, columns: int | None = None) -> Floats:
        assert self.made is not None, "vectors come before what is made of them"
        return self.made[slice(None) if some is None else some, :columns]

    def keep_vectors(self, table: Floats, first: int, columns: int, default: Floats | None) -> None:
        """See :class:`fl_peel.steps.base.StepDevices`; all columns come at once."""
        self.made = unit_vectors(add_rows(table, self.contributed, self.fading))


@dataclass
class PooledSums:
    """A :class:`fl_peel.steps.base.StepChannel` over interactions (U rows) that one party holds. validation: of the
    same users; choosing: where devices choose the filter in their place, if they have none.
    """

    rows: UserItems
    terms: StepTerms
    validation: UserItems | None = None
    choosing: StepChannel | None = None
    devices: PooledDevices = field(init=False)

    def __post_init__(self) -> None:
        nothing = UserItems(np.zeros_like(self.rows.indptr), self.rows.items[:0])
        self.devices = PooledDevices(self.rows, self.validation or nothing, self.terms.fading)

    def std(self, part: str) -> float:
        return 0.0

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        if self.choosing is not None and isinstance(step.question, ChoiceStep):
            yield from self.choosing.ask(step, sent, opened)
            return
        parts = step.parts(self.terms, step.part_bytes) if step.sums(self.terms) else [(0, step.num_pieces)]
        for part in parts:
            yield part, step.contribute(self.devices, step.cut(sent, part, self.terms), part, self.terms, opened)
