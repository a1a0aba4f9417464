"""A round of Lloyd's algorithm over devices: how many are nearest to each centroid, and their vectors added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_peel.array_specs import ArraySpec
from fl_peel.scenario.pretraining_settings import SpectralConfig
from fl_peel.steps.base import (
    Arrays,
    Bools,
    NoisedPart,
    Part,
    Size,
    Step,
    StepChannel,
    StepDevices,
    StepTerms,
    SumField,
    answer_to,
)
from fl_peel.steps.step_cost import (
    CENTROID_BYTES,
    ID_BYTES,
    NUMBER_BYTES,
    WORD_BYTES,
    HeldItems,
    StepCost,
    cost_by_columns,
)
from fl_peel.steps.units import UNIT_SCALE, Floats, Ints, in_units, nearest, unit_vectors, within


@dataclass(frozen=True)
class GroupSums:
    """Sums over the devices of each user group: how many (G,); their vectors of length 1 added up (G, c), in units."""

    sizes: Ints
    sums: Ints


@dataclass(frozen=True)
class GroupedStep(Step):
    """A step whose sum is by user group, of which there are G with centroids (G, c) of the leading columns of vectors:
    a device contributes to the group of the nearest one.
    """

    groups: Size
    leading: Size

    counting_sent: ClassVar[tuple[str, ...]] = ("centroids",)

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        """See :class:`Step`."""
        return {"centroids": ArraySpec((self.groups, self.leading), dtypes=("float32",))}

    def num_rows(self, terms: StepTerms) -> int:
        """See :class:`Step`: user groups."""
        return self.groups

    def contributors(self, devices: StepDevices, sent: Arrays, terms: StepTerms) -> Ints:
        """See :class:`Step`."""
        return np.bincount(nearest_groups(devices, sent["centroids"])[1], minlength=self.groups)

    def counting_bytes(self, terms: StepTerms, items: HeldItems) -> tuple[Ints | int, Ints | int]:
        """See :class:`Step`; which groups are opened is a bit for each."""
        return -(-self.groups // 8), 0


@dataclass(frozen=True)
class GroupsStep(GroupedStep):
    """A round of Lloyd's algorithm. Within bounds a device adds 1 and its vector's first columns at length 1, in units
    of 1 / ``UNIT_SCALE``, in its user group. Its group's number goes with the count of contributors alone.
    """

    name: ClassVar[str] = "groups"
    noised: ClassVar[tuple[NoisedPart, ...]] = (
        NoisedPart("group sizes", "sizes", 0.02),
        NoisedPart("group vectors", "sums", 0.08),
    )

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        """See :class:`Step`."""
        return SumField("sizes", (self.groups,), counts=True), SumField("sums", (self.groups, self.leading))

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        """See :class:`Step`."""
        known, groups = nearest_groups(devices, sent["centroids"])
        if opened is not None:
            known, groups = known[opened[groups]], groups[opened[groups]]
        vectors = unit_vectors(devices.vectors(known, self.leading))
        sizes = np.bincount(groups, minlength=self.groups)
        if terms.bounds is None:
            points = in_units(vectors, terms.units.groups).astype(np.int64)
        else:
            points = within(vectors, 1.0, UNIT_SCALE, l1=terms.bounds.l1)
            sizes = int(UNIT_SCALE) * sizes
        sums = np.zeros((self.groups, self.leading), np.int64)
        np.add.at(sums, groups, points)
        return {"sizes": sizes, "sums": sums}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`."""
        nothing = np.zeros_like(budgets)
        return cost_by_columns(
            self.leading,
            nothing + self.groups,
            budgets,
            moved=(
                nothing + CENTROID_BYTES * self.groups * self.leading,
                nothing + terms.word_bytes * self.leading + ID_BYTES,
            ),
            kept=nothing + WORD_BYTES * self.groups + NUMBER_BYTES * self.leading,
            column_bytes=nothing + CENTROID_BYTES * self.groups,
        )

    @staticmethod
    def times(config: SpectralConfig, num_groups: int) -> int:
        """See :class:`Step`."""
        return config.group_rounds if num_groups > 1 else 0

    @staticmethod
    def ask(channel: StepChannel, centroids: Floats) -> GroupSums:
        """Return the sums of one round over devices that join their nearest centroid of (G, c)."""
        sums = answer_to(channel, GroupsStep(*centroids.shape), {"centroids": centroids})
        return GroupSums(sums["sizes"], sums["sums"])


def nearest_groups(devices: StepDevices, centroids: Floats) -> tuple[Ints, Ints]:
    """Return which devices have a vector (M,), and the user group (M,) of each: the nearest centroid of (G, c)."""
    leading = devices.vectors(columns=centroids.shape[1])
    some = np.asarray(leading.any(axis=1))
    some[~some] = devices.vectors(np.flatnonzero(~some)).any(axis=1)
    known = np.flatnonzero(some)
    return known, nearest(leading[known], centroids).astype(np.int64)
