"""Stage 1 by sums that goes on: from the model of the last period to that of this one, over what devices have now.

A pass or two from the last directions follow taste that moves slowly; a row of zeros, of an item that nobody had
before, is filled by the first pass, which is a sum over the devices that use it. Directions of equal strength may turn
among one another from one period to the next, which no score notices but every row does: the model is turned back onto
the last one (the orthogonal Procrustes problem: Schoenemann, Psychometrika 31(1), 1966), so that rows change only as
far as scores do, and what devices hold already stays good.

With no more columns than a table has, all user groups share one table: a group is its order of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from fl_peel.errors import DataError
from fl_peel.pretraining.spectral import (
    CERTAIN_OVER_TIME,
    SCORE_SPREAD,
    USER_LENGTH,
    Filter,
    GroupStart,
    coarse,
    drawn_items,
    drawn_users,
    halves,
    orthonormal,
    orthonormal_again,
    popular_directions,
    starting_directions,
)
from fl_peel.pretraining.stage1 import (
    NUM_DRAWN,
    GroupPlan,
    SpectralStart,
    find_centroids,
    known_counts,
    large_groups,
    moments_by_group,
    repeated_passes,
)
from fl_peel.randomness import rng_for
from fl_peel.scenario.settings import SpectralConfig
from fl_peel.steps.base import Counts, Doubles, Floats, Ints, StepChannel, unit_vectors
from fl_peel.steps.choice import UNUSED, FilterGrid, FilterRequest, freshness, spread_of
from fl_peel.steps.user_groups import Moments, VectorsStep
from fl_peel.training.workers import fixed_threads


@dataclass(frozen=True)
class SpectralModel:
    """What goes on. directions: (I, K + o) orthonormal, with the columns that passes take besides; values: (K,)
    eigenvalues; counts: (I,) of items; own, scored: (I, K) as in :class:`fl_peel.pretraining.spectral.Filter`,
    turned; centroids: (G, c); means: (G, c) of the groups' devices, which are the next centroids; scale: of scored rows
    in tables; middle: (K,) the mean of devices' vectors at length 1, for those that have nothing to make one of; mean:
    (K,) the same before it was turned and eigenvalues have weighted it; mean_weight: what devices add of it to their
    own, which follows what is popular, as freshness makes it popular of late;
    recent, fresh: (I,) uses of late, and what scores are multiplied with for it; former: (G,) the number that each
    group had in the last model, -1 in the first.
    """

    directions: Doubles
    values: Doubles
    counts: Counts
    own: Floats
    scored: Floats
    centroids: Floats
    means: Floats
    scale: float
    middle: Floats
    mean: Doubles
    mean_weight: float
    recent: Counts
    fresh: Doubles
    former: Ints

    @property
    def num_items(self) -> int:
        """Return the number of items that any device had when the model was made."""
        return len(self.counts)

    def pull(self, dim: int) -> Floats:
        """What is added to every user embedding, (1, d), or (0, d) for nothing."""
        pull = np.zeros((int(self.mean_weight > 0), dim), np.float32)
        pull[:, : len(self.middle)] = USER_LENGTH * self.mean_weight * self.middle
        return pull


@dataclass(frozen=True)
class Exponents:
    """Exponents of a filter: of item counts, eigenvalues and freshness; and the weight of everybody's mean vector."""

    count: float
    value: float
    fresh: float
    mean: float = 0.0


def filter_request(
    model: SpectralModel,
    seed: int,
    *,
    count: Sequence[float],
    value: Sequence[float],
    fresh: Sequence[float],
    fading: float | None,
) -> FilterRequest | None:
    """Return the request that lets devices judge the last model once a period is over: under which of these exponents
    would it have ranked best what they did? None where nothing is left to choose but freshness.
    """
    shapes = FilterGrid.from_exponents(count, value, (len(model.values),), fresh)
    if len(count) * len(value) == 1:
        return None
    drawn, place = drawn_items(model.counts, seed)
    return _judged(model, shapes, drawn, place, fading)


def freshness_request(
    model: SpectralModel,
    seed: int,
    exponents: Exponents,
    *,
    fresh: Sequence[float],
    mean: Sequence[float],
    fading: float | None,
) -> FilterRequest | None:
    """As :func:`filter_request`, for exponents of freshness and weights of everybody's mean vector alone; None where
    there is one of each.
    """
    shapes = FilterGrid.from_exponents((exponents.count,), (exponents.value,), (len(model.values),), fresh, mean)
    if len(fresh) * len(mean) == 1:
        return None
    drawn, weights = drawn_by_use(model.recent, model.counts, seed)
    request = _judged(model, shapes, drawn, min(TOP_N, len(drawn)), fading)
    return replace(request, mean=model.mean if any(mean) else None, weights=weights)


def _judged(model: SpectralModel, shapes: FilterGrid, drawn: Ints, place: int, fading: float | None) -> FilterRequest:
    directions = halves(model.directions[:, : len(model.values)].astype(np.float32))
    return FilterRequest(directions, model.values, model.counts, shapes, drawn, place, model.recent, fading)


TOP_N = 20
MOST_DRAWN = 256
"""Items that validation items are compared with, where there are as many."""


def drawn_by_use(recent: Counts, counts: Counts, seed: int) -> tuple[Ints, Doubles]:
    """Return items that validation items are compared with, (D,) ascending, and how many items each stands for, (D,).

    What is used of late is likely to rank high: an item is drawn with a chance in proportion to the square root of its
    recent uses, at most 1, and stands for 1 / chance items, so that those drawn of the items before one weigh as much,
    in expectation, as these are (Horvitz and Thompson, JASA 47(260), 1952). recent, counts: (I,) of items.
    """
    known = np.flatnonzero(counts > 0)
    size = np.sqrt(np.asarray(recent, np.float64)[known] + UNUSED)
    sure = np.argsort(-size, kind="stable")
    chance = np.ones(len(known))
    if len(known) > MOST_DRAWN:
        rest = np.cumsum(size[sure][::-1])[::-1]  # of an item and all that are used less
        certain = int(np.argmin(size[sure][:MOST_DRAWN] * (MOST_DRAWN - np.arange(MOST_DRAWN)) > rest[:MOST_DRAWN]))
        some = sure[certain:]
        chance[some] = size[some] * (MOST_DRAWN - certain) / size[some].sum()
    until = np.cumsum(chance) + rng_for(seed, "drawn-by-use").random()
    drawn = np.floor(until + 1e-9) > np.floor(np.append(until[0] - chance[0], until[:-1]) + 1e-9)
    return known[drawn], 1 / chance[drawn]


def exponents_of(request: FilterRequest, won: Ints, answered: int) -> Exponents:
    """Return the filter that most of the devices' answers favour.

    Raises:
        DataError: no device answered.
    """
    if not answered:
        raise DataError(
            "stage 1: none of the requested devices has an interaction in the period before the first; set "
            "pretraining.count_exponent and value_exponent, or raise pretraining.filter_devices or data.timeline.share"
        )
    best = int(won.argmax())
    shapes = request.shapes
    every = shapes.count_exponents, shapes.value_exponents, shapes.fresh_exponents, shapes.mean_weights
    return Exponents(*(float(one[best]) for one in every))


def update_model(
    sums: StepChannel,
    config: SpectralConfig,
    plan: GroupPlan,
    previous: SpectralModel | None,
    *,
    exponents: Exponents,
    recent: Counts,
) -> tuple[SpectralModel, SpectralStart]:
    """Return the model over the devices' current items, and the start of the user groups. previous: the last model,
    None for the first; recent: (I,) uses of late (:func:`fl_peel.steps.choice.recent_uses`).

    Raises:
        DataError: no device has any item, or the scenario has more columns than a table.
    """
    dim, seed = plan.dim, plan.seed
    if config.columns > dim:
        raise DataError(f"pretraining.columns: a timeline needs at most embedding_dim {dim}, not {config.columns}")
    counts = np.asarray(known_counts(sums, CERTAIN_OVER_TIME))
    with fixed_threads(config.num_threads):
        whole, all_values = _directions(sums, config, previous, counts, seed)
        directions, values = whole[:, : config.columns], all_values[: config.columns]
        shape = Filter.from_spectrum(
            directions,
            values,
            counts,
            own_exponent=config.item_exponent,
            count_exponent=exponents.count,
            value_exponent=exponents.value,
        )
        turn = _turn(shape, previous)
    own = halves((shape.own @ turn).astype(np.float32))
    scored = (shape.scored @ turn).astype(np.float32)
    VectorsStep.ask(sums, own)
    if previous is None:
        centroids = find_centroids(sums, own, values, counts, config, plan)
        former = np.full(len(centroids), -1)
    else:
        former = np.flatnonzero(large_groups(sums, previous.means, plan.min_size))
        centroids = previous.means[former]
    moments, units = list(moments_by_group(sums, centroids, counts, own.shape[1])), sums.terms.units.moments
    scale = _scale(scored, moments, units) if previous is None else previous.scale
    table = np.zeros((len(scored), dim), np.float32)
    fresh = freshness(recent, counts, exponents.fresh)
    first = np.sum([one.first for one in moments], axis=0).astype(np.float32)
    middle = unit_vectors(first[None, :])[0]
    pull = USER_LENGTH * exponents.mean * middle
    table[:, : scored.shape[1]] = scored * (scale * fresh)[:, None].astype(np.float32)
    groups = tuple(_group(g, one, table, pull, units, seed) for g, one in enumerate(moments))
    weights = spread_of(values, exponents.value)
    mean = np.divide(turn @ middle.astype(np.float64), weights, out=np.zeros(len(weights)), where=weights > 0)
    means = coarse(np.stack([one.centroid(old, units) for one, old in zip(moments, centroids, strict=True)]))
    model = SpectralModel(
        whole, values, counts, own, scored, centroids, means, scale, middle, mean, exponents.mean, recent, fresh, former
    )
    filtered_by = exponents.count, exponents.value, None
    start = SpectralStart(
        own, scored, values.astype(np.float32), centroids, groups, counts, directions.astype(np.float32), *filtered_by
    )
    return model, start


def _directions(
    sums: StepChannel, config: SpectralConfig, before: SpectralModel | None, counts: Counts, seed: int
) -> tuple[Doubles, Doubles]:
    """Return directions and eigenvalues under these counts, from the previous model's directions, if any."""
    columns = config.columns + config.oversampling
    if sums.terms.bounded:
        directions = popular_directions(counts, columns, config.item_exponent)
    else:
        directions = starting_directions(counts, columns, seed)
    if before is not None:
        # what there was, and for the items that are new whatever the first pass says; not what was noise
        kept = int((before.values > 0).sum()) if sums.terms.bounded else min(before.directions.shape[1], columns)
        known = np.zeros((len(counts), kept))
        known[: before.num_items] = before.directions[:, :kept]
        rest = directions[:, : columns - kept] if sums.terms.bounded else directions[:, :0]
        directions = orthonormal(np.hstack([known * (counts > 0)[:, None], rest]))

    directions, values = repeated_passes(sums, directions, counts, config)
    return orthonormal_again(directions), values


def _turn(shape: Filter, before: SpectralModel | None) -> Doubles:
    """Return the orthogonal matrix (K, K) that brings scored rows closest to the last ones."""
    columns = shape.scored.shape[1]
    if before is None or before.scored.shape[1] != columns:
        return np.eye(columns)
    product = shape.scored[: before.num_items].astype(np.float64).T @ before.scored.astype(np.float64)
    left, _, right = scipy.linalg.svd(product)
    turn: Doubles = left @ right
    return turn


def _scale(scored: Floats, moments: Sequence[Moments], units: float) -> float:
    """Return the scale at which scores of users of length ``USER_LENGTH`` have the RMS ``SCORE_SPREAD``."""
    size = sum(one.size for one in moments)
    second = sum(one.second.astype(np.float64) for one in moments) / (units**2 * max(size, 1)) * USER_LENGTH**2
    wide = scored.astype(np.float64)
    spread = np.cov(wide, rowvar=False, bias=True)
    return SCORE_SPREAD / max(float(np.sqrt(np.trace(second @ spread))), 1e-30)


def _group(number: int, moments: Moments, table: Floats, pull: Floats, units: float, seed: int) -> GroupStart:
    """Return a user group's start: the shared table, and users drawn from the group's moments, with the ``pull`` (K,)
    that is added to each.
    """
    columns, dim = len(moments.first), table.shape[1]
    size = max(moments.size, 1)
    middle = np.zeros(dim)
    middle[:columns] = moments.mean(units) * USER_LENGTH
    spread = np.zeros((dim, dim))
    spread[:columns, :columns] = moments.second / (units**2 * size) * USER_LENGTH**2
    spread -= np.outer(middle, middle)
    middle[:columns] += pull
    users = drawn_users(middle, spread, NUM_DRAWN, rng_for(seed, "timeline-users", number))
    group_map = np.zeros((columns, dim), np.float32)
    np.fill_diagonal(group_map, USER_LENGTH)
    return GroupStart(group_map, table, np.eye(dim, dtype=np.float32), moments.size, moments.items, users)
