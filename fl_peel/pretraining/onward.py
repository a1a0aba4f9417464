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
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from fl_peel.errors import DataError
from fl_peel.pretraining.by_sums import (
    SCORE_SPREAD,
    USER_LENGTH,
    Counts,
    Doubles,
    Filter,
    Floats,
    GroupStart,
    Ints,
    Moments,
    Question,
    Shapes,
    blocks_of,
    coarse,
    drawn_items,
    filtered,
    halves,
    orthonormal,
    orthonormal_again,
    spectrum,
    starting_directions,
    unit_vectors,
)
from fl_peel.pretraining.settings import COUNT_EXPONENTS, VALUE_EXPONENTS, SpectralConfig
from fl_peel.pretraining.stage1 import NUM_DRAWN, WIDEST, SpectralStart, Sums, find_centroids, passed
from fl_peel.pretraining.train import fixed_threads
from fl_peel.randomness import rng_for


@dataclass(frozen=True)
class Model:
    """What goes on. directions: (I, K) orthonormal; values: (K,) eigenvalues; counts: (I,) of items; own, scored:
    (I, K) as in :class:`fl_peel.pretraining.by_sums.Filter`, turned; centroids: (G, c); scale: of scored rows in
    tables; middle: (K,) the mean of devices' vectors at length 1, for those that have nothing to make one of.
    """

    directions: Doubles
    values: Doubles
    counts: Counts
    own: Floats
    scored: Floats
    centroids: Floats
    scale: float
    middle: Floats

    @property
    def num_items(self) -> int:
        """Items that anybody had when it was made."""
        return len(self.counts)


def question_of(model: Model, config: SpectralConfig, seed: int) -> Question | None:
    """What devices are asked about the last model once a period is over: which filter would have ranked best what they
    did in it. None where the scenario leaves nothing to choose.
    """
    if not config.chooses:
        return None
    shapes = Shapes.of(
        COUNT_EXPONENTS if config.count_exponent is None else (config.count_exponent,),
        VALUE_EXPONENTS if config.value_exponent is None else (config.value_exponent,),
    )
    drawn, place = drawn_items(model.counts, seed)
    return Question(halves(model.directions.astype(np.float32)), model.values, model.counts, shapes, drawn, place)


def exponents_of(question: Question, won: Ints, answered: int) -> tuple[float, float]:
    """The filter that most of what devices said is for.

    Raises:
        DataError: nobody said anything.
    """
    if not answered:
        raise DataError(
            "stage 1: no device that was asked did anything in the period before the first; set "
            "pretraining.count_exponent and value_exponent, or raise pretraining.panel or data.timeline.share"
        )
    best = int(won.argmax())
    return float(question.shapes.count_exponents[best]), float(question.shapes.value_exponents[best])


def go_on(
    sums: Sums,
    config: SpectralConfig,
    before: Model | None,
    *,
    exponents: tuple[float, float],
    passes: int,
    dim: int,
    num_groups: int,
    min_size: int,
    group_rounds: int,
    seed: int,
) -> tuple[Model, SpectralStart]:
    """The model over what devices have now, and what user groups start with. exponents: of counts and eigenvalues;
    before: the last model, None for the first.

    Raises:
        DataError: no device has any item, or the scenario has more columns than a table.
    """
    if config.columns > dim:
        raise DataError(f"pretraining.columns: a timeline needs at most embedding_dim {dim}, not {config.columns}")
    counts = np.asarray(sums.counts())
    if not counts.any():
        raise DataError("stage 1: no device that answered has any item; see fl-peel fleet show, or raise deadlines")
    with fixed_threads(config.num_threads):
        directions, values = _directions(sums, config, before, counts, passes, seed)
        shape = Filter.of(
            directions,
            values,
            counts,
            own_exponent=config.item_exponent,
            count_exponent=exponents[0],
            value_exponent=exponents[1],
        )
        turn = _turn(shape, before)
    own = halves((shape.own @ turn).astype(np.float32))
    scored = (shape.scored @ turn).astype(np.float32)
    sums.vectors(own)
    if before is None:
        centroids = find_centroids(
            sums, Filter(own, scored), counts, config, num_groups, min_size, seed, lambda text: None
        )
    else:
        centroids = _moved(sums, before.centroids, group_rounds, min_size)
    moments = list(sums.moments(centroids, range(len(centroids))))
    scale = _scale(scored, moments, sums.units.moments) if before is None else before.scale
    table = np.zeros((len(scored), dim), np.float32)
    table[:, : scored.shape[1]] = scored * np.float32(scale)
    groups = tuple(_group(g, one, table, dim, sums.units.moments, seed) for g, one in enumerate(moments))
    first = np.sum([one.first for one in moments], axis=0).astype(np.float32)
    middle = unit_vectors(first[None, :])[0]
    model = Model(directions, values, counts, own, scored, centroids, scale, middle)
    start = SpectralStart(
        own, scored, values.astype(np.float32), centroids, groups, counts, directions.astype(np.float32), *exponents,
        None,
    )  # fmt: skip
    return model, start


def _directions(
    sums: Sums, config: SpectralConfig, before: Model | None, counts: Counts, passes: int, seed: int
) -> tuple[Doubles, Doubles]:
    """Of the counts as they are, from the last ones where there are any."""
    width = config.columns + (config.oversampling if before is None else 0)
    directions = starting_directions(counts, width, seed)
    if before is not None:
        # what there was, and for the items that are new whatever the first pass says
        kept = min(before.directions.shape[1], directions.shape[1])
        known = np.zeros((len(counts), kept))
        known[: before.num_items] = before.directions[:, :kept]
        directions = orthonormal(known * (counts > 0)[:, None])
    values: Doubles = np.zeros(0)

    def once(block: Doubles) -> Doubles:
        return passed(sums, block, counts, config)

    for size in blocks_of(passes):
        cut = float(values[values > 0].min(initial=np.inf)) if len(values) else np.inf
        if size == 2 and values[0] <= WIDEST * cut:
            directions, values = filtered(once, directions, cut)
        else:
            for _ in range(size):
                directions, values = spectrum(once(directions))
    return orthonormal_again(directions[:, : config.columns]), values[: config.columns]


def _turn(shape: Filter, before: Model | None) -> Doubles:
    """Orthogonal (K, K): what brings scored rows closest to the last ones."""
    columns = shape.scored.shape[1]
    if before is None or before.scored.shape[1] != columns:
        return np.eye(columns)
    product = shape.scored[: before.num_items].astype(np.float64).T @ before.scored.astype(np.float64)
    left, _, right = scipy.linalg.svd(product)
    turn: Doubles = left @ right
    return turn


def _moved(sums: Sums, centroids: Floats, rounds: int, min_size: int) -> Floats:
    """Lloyd's algorithm from the last centroids; a group that became too small is dissolved."""
    for _ in range(rounds):
        found = sums.groups(centroids)
        some = found.sizes > 0
        means = found.sums[some] / sums.units.groups / found.sizes[some][:, None]
        moved = centroids.copy()
        moved[some] = means
        centroids = coarse(moved.astype(np.float32))
    sizes = sums.groups(centroids).sizes
    kept = sizes >= min_size
    kept[sizes.argmax()] = True
    return centroids[kept]


def _scale(scored: Floats, moments: Sequence[Moments], units: float) -> float:
    """Such that scores of users of length ``USER_LENGTH`` spread by ``SCORE_SPREAD``, root mean square over all."""
    size = sum(one.size for one in moments)
    second = sum(one.second.astype(np.float64) for one in moments) / (units**2 * max(size, 1)) * USER_LENGTH**2
    wide = scored.astype(np.float64)
    spread = np.cov(wide, rowvar=False, bias=True)
    return SCORE_SPREAD / max(float(np.sqrt(np.trace(second @ spread))), 1e-30)


def _group(number: int, moments: Moments, table: Floats, dim: int, units: float, seed: int) -> GroupStart:
    """The shared table, and users drawn from the group's moments."""
    columns = len(moments.first)
    size = max(moments.size, 1)
    middle = np.zeros(dim)
    middle[:columns] = moments.first / (units * size) * USER_LENGTH
    spread = np.zeros((dim, dim))
    spread[:columns, :columns] = moments.second / (units**2 * size) * USER_LENGTH**2
    spread -= np.outer(middle, middle)
    variances, basis = np.linalg.eigh((spread + spread.T) / 2)
    rng = rng_for(seed, "drawn-users", number)
    drawn = rng.standard_normal((NUM_DRAWN, dim)) * np.sqrt(np.maximum(variances, 0.0))
    group_map = np.zeros((columns, dim), np.float32)
    np.fill_diagonal(group_map, USER_LENGTH)
    return GroupStart(group_map, table, moments.size, moments.items, (middle + drawn @ basis.T).astype(np.float32))


__all__ = ["Model", "exponents_of", "go_on", "question_of"]
