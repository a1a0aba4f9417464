"""The choice of the filter: some devices say how well each of several filters ranks their validation items."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from fl_peel.array_specs import ArraySpec
from fl_peel.data.interactions import UserItems
from fl_peel.data.timeline import QUARTERS
from fl_peel.errors import MessageError
from fl_peel.scenario.settings import SpectralConfig
from fl_peel.steps.base import (
    EMPTY,
    ID_BYTES,
    NUMBER_BYTES,
    ROW_BYTES,
    SAMPLE_COLUMNS,
    UNIT_BYTES,
    UNIT_SCALE,
    WORD_BYTES,
    Arrays,
    Bools,
    Counts,
    Doubles,
    Floats,
    HeldItems,
    Ints,
    NoisedPart,
    Part,
    Size,
    Step,
    StepChannel,
    StepCost,
    StepDevices,
    StepTerms,
    SumField,
    answer_to,
    inverse_power,
    item_matrix,
    unit_vectors,
    weighted_matrix,
    within,
)

CHOICE_BOUND = 0.25
"""Bound on a device's shares under all filters less their mean: they hardly differ by more."""
UNUSED = 0.1
"""Part of a use that is added to an item's recent uses."""


def recent_uses(counts: Counts, half_life: float, earlier: Counts | None) -> Doubles:
    """Return recent uses of items (I,): each counts 2^(-age / ``half_life``), ages and half-life in periods.

    counts: (Q I,) uses in the last period, by its Q = :data:`QUARTERS` parts, of which the last has age 0, as
    :meth:`fl_peel.data.timeline.Timeline.quarters` numbers them; earlier: recent uses when that period began, of the
    items there were, None where nothing is known of them.
    """
    ages = np.arange(QUARTERS)[::-1] / QUARTERS
    recent: Doubles = 0.5 ** (ages / half_life) @ counts.reshape(QUARTERS, -1)
    if earlier is not None:
        recent[: len(earlier)] += 0.5 ** (1 / half_life) * earlier
    return recent


def freshness(recent: Counts, counts: Counts, exponent: float) -> Doubles:
    """Return the factor of items' scores (I,) for freshness: the share of their uses that is ``recent``, to a power.
    ``UNUSED`` of a use is added, so that items without recent uses keep a positive factor.
    """
    scale: Doubles = ((np.asarray(recent, np.float64) + UNUSED) / (np.asarray(counts, np.float64) + 1.0)) ** exponent
    return scale


def spread_of(values: Doubles, exponent: float) -> Doubles:
    """Return eigenvalues (K,) to a power; 0 for those that are rounding alone."""
    kept = values > EMPTY * values.max(initial=0.0)
    return np.where(kept, np.maximum(values, 1e-300) ** exponent, 0.0)


def trained_items(wanted: UserItems, counts: Counts) -> UserItems:
    """Return those of some items (N rows) on which somebody trains, by the counts (I,) of items."""
    known = wanted.keep(wanted.items < len(counts))
    return known.keep(counts[known.items] > 0)


@dataclass(frozen=True)
class FilterGrid:
    """Filters to choose from: exponents of counts, eigenvalues and freshness, weights of everybody's mean vector in a
    device's own, and how many of the leading columns they have, (C,) each.
    """

    count_exponents: Doubles
    value_exponents: Doubles
    fresh_exponents: Doubles
    mean_weights: Doubles
    leading: Ints

    @staticmethod
    def from_exponents(
        count_exponents: Sequence[float],
        value_exponents: Sequence[float],
        leading: Sequence[int],
        fresh_exponents: Sequence[float] = (0.0,),
        mean_weights: Sequence[float] = (0.0,),
    ) -> FilterGrid:
        """Every one of these with every one of those."""
        every = itertools.product(count_exponents, value_exponents, fresh_exponents, mean_weights, leading)
        count, value, fresh, mean, columns = np.array(list(every), np.float64).T
        return FilterGrid(count, value, fresh, mean, columns.astype(np.int64))


@dataclass(frozen=True)
class FilterRequest:
    """Which filter ranks your validation items best? directions: (I, K) as passes found them; values: (K,); counts:
    (I,); drawn, place: of :func:`fl_peel.pretraining.spectral.drawn_items`; recent: (I,) uses of late
    (:func:`recent_uses`), of a timeline, whose devices make their vectors with ``fading``; mean: (K,) everybody's mean
    vector, before eigenvalues have weighted it: devices add it to their own, both at length 1, and those without an
    item have it alone; weights: (D,) how many items each drawn one stands for among the ``place``, None: itself.
    """

    directions: Floats
    values: Doubles
    counts: Counts
    shapes: FilterGrid
    drawn: Ints
    place: int
    recent: Counts | None = None
    fading: float | None = None
    mean: Doubles | None = None
    weights: Doubles | None = None

    def shares(self, rows: UserItems, wanted: UserItems, item_exponent: float) -> tuple[Doubles, int]:
        """Return the share of each device's validation items that rank high under each filter (N, C), and how many
        devices have any.

        An item of ``wanted`` (N rows) ranks high if it outranks all but ``place`` - 1 of the drawn items that the
        device does not have; the share is zero where a device has no validation items. rows: train items (N rows).
        Items that nobody trains on are no validation items.
        """
        counts, drawn, shapes = self.counts, self.drawn, self.shapes
        weights = np.ones(len(drawn)) if self.weights is None else self.weights
        directions = self.directions.astype(np.float64)
        base = weighted_matrix(rows, len(counts), self.fading) @ (
            inverse_power(counts, item_exponent)[:, None] * directions
        )
        known = trained_items(wanted, counts)
        users, items = known.users(), known.items
        hidden = (item_matrix(rows, len(counts), np.int8) + item_matrix(known, len(counts), np.int8))[
            :, drawn
        ].toarray() > 0
        shares = np.zeros((rows.num_users, len(shapes.value_exponents)))
        for value, leading in sorted({*zip(shapes.value_exponents.tolist(), shapes.leading.tolist(), strict=True)}):
            spread, columns = spread_of(self.values, value)[:leading], directions[:, :leading]
            vectors, mean = base[:, :leading] * spread, np.zeros(leading)
            if self.mean is not None:
                mean = unit_vectors((self.mean[None, :leading] * spread).astype(np.float32))[0].astype(np.float64)
                vectors = unit_vectors(vectors.astype(np.float32)).astype(np.float64)
                vectors[~vectors.any(axis=1)] = mean
            of_drawn, of_items = vectors @ columns[drawn].T, np.einsum("nk,nk->n", vectors[users], columns[items])
            of_mean = columns @ mean
            for shape in np.flatnonzero((shapes.value_exponents == value) & (shapes.leading == leading)):
                scale = inverse_power(counts, -shapes.count_exponents[shape])
                if self.recent is not None:
                    scale = scale * freshness(self.recent, counts, float(shapes.fresh_exponents[shape]))
                added = shapes.mean_weights[shape] * of_mean
                scores = np.where(hidden, -np.inf, (of_drawn + added[drawn]) * scale[drawn])
                best = nth_best(scores, weights, self.place)
                won = (of_items + added[items]) * scale[items] > best[users]
                wins = np.bincount(users[won], minlength=rows.num_users)
                shares[:, shape] = wins / np.maximum(known.counts(), 1)
        return shares, int((known.counts() > 0).sum())


def nth_best(scores: Doubles, weights: Doubles, place: int) -> Doubles:
    """Return the highest of each device's scores (N, D) that weighs ``place`` or more together with those above it,
    (N,); -inf where all of them weigh less. weights: (D,).
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    above = (np.cumsum(weights[order], axis=1) < place).sum(axis=1)
    ranked = np.append(np.take_along_axis(scores, order, axis=1), np.full((len(scores), 1), -np.inf), axis=1)
    best: Doubles = ranked[np.arange(len(scores)), above]
    return best


@dataclass(frozen=True)
class ChoiceStep(Step):
    """A choice among C filters of K columns, by ranking validation items among D drawn ones: those count that are among
    the first ``place``. asked: about how many devices are; has_mean, weighted: whether they are sent a mean vector, and
    weights. Sent are the arrays of :class:`FilterRequest`.

    Within bounds a device adds its shares less their mean, clipped: only differences between filters matter.
    """

    columns: Size
    drawn: Size
    place: Size
    filters: Size
    asked: Size
    has_mean: bool = False
    weighted: bool = False

    name: ClassVar[str] = "choice"
    noised: ClassVar[tuple[NoisedPart, ...]] = (NoisedPart("choice", "won", 0.05, CHOICE_BOUND),)
    needs_validation: ClassVar[bool] = True
    counting_sent: ClassVar[tuple[str, ...]] = ("counts",)

    def __post_init__(self) -> None:
        if not 0 < self.place <= self.drawn:
            raise MessageError(f"ChoiceStep.place: {self.place} of {self.drawn} drawn items")

    @property
    def panel(self) -> int:
        return self.asked

    @property
    def may_reach_nobody(self) -> bool:
        """See :class:`Step`: who chooses nothing learns of it from the sum."""
        return True

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        items, columns, filters = (terms.num_items,), (self.columns,), (self.filters,)
        return {
            "directions": ArraySpec(items + columns, dtypes=("float32",)),
            "values": ArraySpec(columns, dtypes=("float64",)),
            "counts": ArraySpec(items, dtypes=("float64",)),
            "count_exponents": ArraySpec(filters, dtypes=("float64",)),
            "value_exponents": ArraySpec(filters, dtypes=("float64",)),
            "fresh_exponents": ArraySpec(filters, dtypes=("float64",)),
            "mean_weights": ArraySpec(filters, dtypes=("float64",)),
            "leading": ArraySpec(filters, least=1, most=self.columns, dtypes=("int64",)),
            "drawn": ArraySpec((self.drawn,), least=0, most=terms.num_items - 1, dtypes=("int64",)),
            "recent": ArraySpec(items, dtypes=("float64",), may_lack=True),
            "mean": ArraySpec(columns, dtypes=("float64",), may_lack=True),
            "weights": ArraySpec((self.drawn,), dtypes=("float64",), may_lack=True),
        }

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        """See :class:`Step`: shares under each filter, and how many devices answer, which bounded ones do not say."""
        won = SumField("won", (self.filters,), counts=True, each=int(UNIT_SCALE), bits=64)
        return won, SumField("answered", (1,), counts=True, bits=64)

    def check_together(self, sums: Arrays) -> None:
        """See :class:`Step`; bounded devices say nothing of how many they are."""
        won, answered = int(sums["won"].max(initial=0)), int(sums["answered"][0])
        if answered and won > answered * UNIT_SCALE:
            raise MessageError(f"won: {won} is more than {answered} devices can add up to")

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        if opened is not None and not opened[0]:
            return {one.name: np.zeros(one.shape, np.int64) for one in self.sums(terms)}
        shares, answered = self.request(sent, terms).shares(devices.train, devices.validation, terms.item_exponent)
        if terms.bounds is None:
            won = np.rint(shares * UNIT_SCALE).astype(np.int64)
        else:
            centred = shares - shares.mean(axis=1, keepdims=True)
            won, answered = within(centred, CHOICE_BOUND, UNIT_SCALE, l1=terms.bounds.l1), 0
        return {"won": won.sum(axis=0), "answered": np.array([answered])}

    def request(self, sent: Arrays, terms: StepTerms) -> FilterRequest:
        filters = FilterGrid(*(sent[one.name] for one in fields(FilterGrid)))
        asked = sent["directions"], sent["values"], sent["counts"], filters, sent["drawn"], self.place
        return FilterRequest(*asked, sent.get("recent"), terms.fading, sent.get("mean"), sent.get("weights"))

    def num_rows(self, terms: StepTerms) -> int:
        """See :class:`Step`: a single one."""
        return 1

    def contributors(self, devices: StepDevices, sent: Arrays, terms: StepTerms) -> Ints:
        """See :class:`Step`: those that have a validation item."""
        return np.array([(trained_items(devices.validation, sent["counts"]).counts() > 0).sum()])

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`; of train items a device makes its vector. Rows come as many at a time as fit next to that
        vector, the eigenvalues, and under each filter the scores of the device's items and of the best drawn ones.
        """
        wanted = items.validation
        rows, row, vector = items.train + wanted + self.drawn, ROW_BYTES * self.columns, NUMBER_BYTES * self.columns
        kept = 2 * vector + NUMBER_BYTES * self.filters * (self.place + wanted)
        at_a_time = np.clip((budgets - kept) // row, 1, rows)
        extra = vector * self.has_mean + NUMBER_BYTES * self.drawn * self.weighted
        fetched = np.full_like(rows, terms.num_items) if terms.all_rows else rows
        return StepCost(
            row * fetched + (UNIT_BYTES + NUMBER_BYTES) * self.columns + ID_BYTES * fetched + extra,
            np.full_like(rows, WORD_BYTES * self.filters) + ID_BYTES * (items.train + wanted),
            rows * -(-self.columns // SAMPLE_COLUMNS),
            kept + row,
            -(-rows // at_a_time),
        )

    @staticmethod
    def times(config: SpectralConfig, num_groups: int) -> int:
        return int(config.chooses)

    @staticmethod
    def ask(channel: StepChannel, request: FilterRequest, panel: int) -> tuple[Ints, int]:
        """Return shares of about ``panel`` devices under each filter, (C,) in 1 / ``UNIT_SCALE``, and who answered."""
        shapes = request.shapes
        sizes = len(request.values), len(request.drawn), request.place, len(shapes.value_exponents)
        step = ChoiceStep(*sizes, panel, request.mean is not None, request.weights is not None)
        sent: Arrays = {
            "directions": request.directions,
            "values": request.values,
            "counts": request.counts.astype(np.float64),
            "drawn": request.drawn,
            **vars(shapes),
        }
        if request.recent is not None:
            sent["recent"] = np.asarray(request.recent, np.float64)
        if request.mean is not None:
            sent["mean"] = request.mean
        if request.weights is not None:
            sent["weights"] = request.weights
        sums = answer_to(channel, step, sent)
        return sums["won"], int(sums["answered"][0])
