"""User groups: how many devices are nearest to each centroid, and the moments of each group's devices.

Before them devices make their vectors, and after them fetch the map of their group: nothing of a vector is sent.

A device's vector is added up once in a stage 1, in the moments of its user group. Were it in two sums over different
groups of devices, as in rounds of Lloyd's algorithm, a difference of sums would be the vector of whoever alone changed
its group. Nor may the sums of vectors be of other devices than the sums of products: the products of fewer devices than
a vector has columns tell the space that their vectors span, and what a sum of vectors has outside it is the vector of
whoever alone is in that sum. A device therefore gives its moments once, all together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_peel.array_specs import ArraySpec
from fl_peel.scenario.settings import SpectralConfig
from fl_peel.steps.base import (
    CENTROID_BYTES,
    CHUNK_DEVICES,
    ID_BYTES,
    NUMBER_BYTES,
    ROW_BYTES,
    UNIT_BYTES,
    UNIT_SCALE,
    WORD_BYTES,
    Arrays,
    Bools,
    Counts,
    Doubles,
    Draw,
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
    cost_by_columns,
    in_units,
    nearest,
    rows_bytes,
    within,
)


@dataclass(frozen=True)
class GroupedStep(Step):
    """A step whose sum is by user group: G centroids (G, c) of leading columns; a device is of the nearest one."""

    groups: Size
    leading: Size

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        return {"centroids": ArraySpec((self.groups, self.leading), dtypes=("float32",))}

    def sizes(self, devices: StepDevices, sent: Arrays) -> Ints:
        """Return how many of the devices are in each user group (G,)."""
        return np.bincount(nearest_groups(devices, sent["centroids"])[1], minlength=self.groups)


@dataclass(frozen=True)
class GroupsStep(GroupedStep):
    """The sizes of user groups. Within bounds a device adds 1 in its user group, in units of 1 / ``UNIT_SCALE``.

    No device's vector is added up here: the moments do that, once.
    """

    name: ClassVar[str] = "groups"
    noised: ClassVar[tuple[NoisedPart, ...]] = (NoisedPart("group sizes", "sizes", 0.02),)
    counts_alone: ClassVar[str] = "sizes"

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        return (SumField("sizes", (self.groups,), counts=True),)

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        return {"sizes": self.sizes(devices, sent) * terms.one}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        column, kept = CENTROID_BYTES * self.groups, WORD_BYTES * self.groups + NUMBER_BYTES * self.leading
        moved = column * self.leading, ID_BYTES
        return cost_by_columns(self.leading, self.groups, budgets, moved=moved, kept=kept, column_bytes=column)

    @staticmethod
    def times(config: SpectralConfig, num_groups: int) -> int:
        return int(num_groups > 1)

    @staticmethod
    def ask(channel: StepChannel, centroids: Floats) -> Ints:
        """Return how many devices are nearest to each centroid of (G, c), (G,)."""
        sizes: Ints = answer_to(channel, GroupsStep(*centroids.shape), {"centroids": centroids})["sizes"]
        return sizes


def nearest_groups(devices: StepDevices, centroids: Floats) -> tuple[Ints, Ints]:
    """Return which devices have a vector (M,), and the user group (M,) of each: the nearest centroid of (G, c)."""
    leading = devices.vectors(columns=centroids.shape[1])
    some = np.asarray(leading.any(axis=1))
    some[~some] = devices.vectors(np.flatnonzero(~some)).any(axis=1)
    known = np.flatnonzero(some)
    return known, nearest(leading[known], centroids).astype(np.int64)


@dataclass(frozen=True)
class Moments:
    """Moments of the devices of one user group: how many, their vectors of length 1 added up (K,) in units, their outer
    products (K, K) in squared units, and how many of them have each item (I,).
    """

    size: int
    first: Ints
    second: Ints
    items: Counts

    def mean(self, units: float) -> Doubles:
        """Return the mean of the vectors (K,), zeros of nobody. units: of vectors, in one."""
        mean: Doubles = self.first / (units * max(self.size, 1))
        return mean

    def centroid(self, known: Floats, units: float) -> Floats:
        """Return the leading columns (c,) of the mean, where devices are; of nobody the centroid that is ``known``."""
        return self.mean(units)[: len(known)].astype(np.float32) if self.size else known


def half_of(second: Ints) -> Ints:
    """Return the lower triangle of a symmetric matrix (K, K), row by row, (K (K + 1) / 2,): half the bytes to send."""
    return np.concatenate([row[: number + 1] for number, row in enumerate(second)])


def whole_of(half: Ints, columns: int) -> Ints:
    """Return the symmetric matrix (K, K) that :func:`half_of` halved."""
    second, start = np.empty((columns, columns), np.int64), 0
    for number in range(columns):
        row = half[start : start + number + 1]
        second[number, : number + 1] = row
        second[:number, number] = row[:number]
        start += number + 1
    return second


@dataclass(frozen=True)
class MomentsStep(GroupedStep):
    """Moments of vectors of K columns in G user groups, with centroids (G, c). Within bounds a device adds, in its user
    group, 1, its vector p at length 1, p (x) p, and its items as in :class:`fl_peel.steps.passes.CountsStep`, all in
    units of 1 / ``UNIT_SCALE`` or its square.

    A device says which group is its own by zeros for the rest: where sums alone are seen, all groups are asked for.
    """

    columns: Size

    name: ClassVar[str] = "moments"
    noised: ClassVar[tuple[NoisedPart, ...]] = (
        NoisedPart("moment sizes", "sizes", 0.01),
        NoisedPart("moment vectors", "first", 0.02),
        NoisedPart("moment products", "second", 0.05, unit=UNIT_SCALE**2),
        NoisedPart("moment items", "items", 0.03, None),
    )
    part_bytes: ClassVar[int] = 64 << 20
    counting_sent: ClassVar[tuple[str, ...]] = ("centroids",)

    @property
    def num_pieces(self) -> int:
        """See :class:`Step`: user groups."""
        return self.groups

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        """See :class:`Step`; of outer products the lower triangle, row by row."""
        half = self.columns * (self.columns + 1) // 2
        return (
            SumField("sizes", (self.groups,), axis=0, counts=True),
            SumField("first", (self.groups, self.columns), axis=0),
            SumField("second", (self.groups, half), axis=0),
            SumField("items", (self.groups, terms.num_items), axis=0, counts=True),
        )

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        known, groups = nearest_groups(devices, sent["centroids"])
        devices.vectors(known[:0], self.columns)  # refuses more columns than there are
        values = {one.name: np.zeros(one.shape_of(part), np.int64) for one in self.sums(terms)}
        for place, group in enumerate(range(*part)):
            members = known[groups == group]
            if not len(members) or (opened is not None and not opened[group]):
                continue
            vectors = devices.vectors(members, self.columns)
            values["sizes"][place] = len(members) * terms.one
            values["first"][place], second = added_products(vectors, terms)
            values["second"][place] = half_of(second)
            values["items"][place] = terms.count_items(devices.contributed.select(members))
        return values

    def num_rows(self, terms: StepTerms) -> int:
        """See :class:`Step`: user groups."""
        return self.groups

    def contributors(self, devices: StepDevices, sent: Arrays, terms: StepTerms) -> Ints:
        return self.sizes(devices, sent)

    def counting_bytes(self, terms: StepTerms, items: HeldItems) -> tuple[Ints | int, Ints | int]:
        """See :class:`Step`; which groups are opened is a bit for each, and a device names its group in both parts."""
        return -(-self.groups // 8), ID_BYTES

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`; centroids are known from the step before."""
        nothing = np.zeros_like(budgets)
        up = ID_BYTES * items.contributed + terms.word_bytes * self.columns
        return StepCost(nothing, up, nothing + 1, nothing + NUMBER_BYTES * self.columns, nothing + 1)

    def draw_piece(self, draw: Draw, one: NoisedPart, shape: tuple[int, ...], piece: int) -> Ints:
        """See :class:`Step`; the noise on products is that on a matrix which is then made symmetric."""
        if one.field != "second":
            return draw(one.name, shape, piece)
        products = draw(one.name, (self.columns, self.columns), piece)
        return half_of((products + products.T) // 2)

    @staticmethod
    def ask(channel: StepChannel, centroids: Floats, columns: int) -> Iterator[Moments]:
        """Yield the moments of the devices of each user group, of vectors of so many columns."""
        step = MomentsStep(len(centroids), centroids.shape[1], columns)
        for _, part in channel.ask(step, {"centroids": centroids}):
            for size, first, second, items in zip(*(part[one.name] for one in step.sums(channel.terms)), strict=True):
                yield Moments(int(size), first, whole_of(second, columns), items)


def added_products(vectors: Floats, terms: StepTerms) -> tuple[Ints, Ints]:
    """Return vectors (N, K) of length 1 added up (K,) in units, and their outer products (K, K) in squared units."""
    columns = vectors.shape[1]
    first, second = np.zeros(columns, np.int64), np.zeros((columns, columns), np.int64)
    for start in range(0, len(vectors), CHUNK_DEVICES):
        some = vectors[start : start + CHUNK_DEVICES]
        if terms.bounds is None:
            points = in_units(some, terms.units.moments)
        else:
            points = within(some, 1.0, UNIT_SCALE, l1=terms.bounds.l1).astype(np.float64)
        first += points.sum(axis=0).astype(np.int64)
        second += (points.T @ points).astype(np.int64)
    return first, second


@dataclass(frozen=True)
class VectorsStep(Step):
    """Vectors of K columns, from the rows (I, K) of devices' items. Devices that are offline make theirs as soon as
    they come back: a vector depends on no other device. They answer nothing. has_default: whether a device that has
    none of the rows yet is sent a vector to take for its own, as those that join a timeline are; centroids: numbers of
    the centroids (G c), which these fetch as well, since they were in no step before.
    """

    columns: Size
    has_default: bool = False
    centroids: Size = 0

    name: ClassVar[str] = "vectors"
    joins: ClassVar[bool] = True

    @property
    def num_pieces(self) -> int:
        """See :class:`Step`: columns."""
        return self.columns

    @property
    def may_reach_nobody(self) -> bool:
        """See :class:`Step`: nobody need join."""
        return self.has_default

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        arrays = {"table": ArraySpec((terms.table_rows, part[1] - part[0]), dtypes=("float32",))}
        default = {"default": ArraySpec((self.columns,), dtypes=("float32",))}
        return arrays | (default if self.has_default else {})

    def cut(self, sent: Arrays, part: Part, terms: StepTerms) -> Arrays:
        return sent | {"table": np.ascontiguousarray(sent["table"][:, slice(*part)])}

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        devices.keep_vectors(sent["table"], part[0], self.columns, sent.get("default"))
        return {}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        rows = items.contributed
        down = rows_bytes(self.columns, rows, terms.num_items if terms.all_rows else 0)
        kept = NUMBER_BYTES * self.columns
        down = down + CENTROID_BYTES * self.centroids + (kept if self.has_default else 0)
        return cost_by_columns(self.columns, rows, budgets, moved=(down, 0), kept=kept, column_bytes=ROW_BYTES * rows)

    @staticmethod
    def ask(channel: StepChannel, own: Floats, default: Floats | None = None, centroids: int = 0) -> None:
        """Have devices compute vectors from the rows (I, K) of their items. default: (K,) of who has none; centroids:
        see :class:`VectorsStep`.
        """
        sent: Arrays = {"table": own} if default is None else {"table": own, "default": default}
        answer_to(channel, VectorsStep(own.shape[1], default is not None, centroids), sent)


@dataclass(frozen=True)
class MapsStep(Step):
    """Maps of K columns: one row of the map for every column of the vector."""

    columns: Size

    name: ClassVar[str] = "maps"

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        column, kept = ROW_BYTES * terms.dim, NUMBER_BYTES * self.columns + WORD_BYTES * terms.dim
        down = (column + UNIT_BYTES) * self.columns
        return cost_by_columns(self.columns, terms.dim, budgets, moved=(down, 0), kept=kept, column_bytes=column)

    @staticmethod
    def ask(channel: StepChannel, columns: int) -> None:
        answer_to(channel, MapsStep(columns), {})
