"""Devices make their vectors and fetch the map of their user group: nothing of a vector is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_peel.array_specs import ArraySpec
from fl_peel.steps.base import (
    Arrays,
    Bools,
    Part,
    Size,
    Step,
    StepChannel,
    StepDevices,
    StepTerms,
    answer_to,
)
from fl_peel.steps.step_cost import (
    NUMBER_BYTES,
    ROW_BYTES,
    UNIT_BYTES,
    WORD_BYTES,
    HeldItems,
    StepCost,
    cost_by_columns,
    rows_bytes,
)
from fl_peel.steps.units import Floats, Ints


@dataclass(frozen=True)
class VectorsStep(Step):
    """Vectors of K columns, from the rows (I, K) of devices' items. Devices that are offline make theirs as soon as
    they come back: a vector depends on no other device. has_default: whether a device that has none of the rows yet is
    sent a vector to take for its own, as those that join a timeline are. They answer nothing.
    """

    columns: Size
    has_default: bool = False

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
        """See :class:`Step`."""
        arrays = {"table": ArraySpec((terms.table_rows, part[1] - part[0]), dtypes=("float32",))}
        default = {"default": ArraySpec((self.columns,), dtypes=("float32",))}
        return arrays | (default if self.has_default else {})

    def cut(self, sent: Arrays, part: Part, terms: StepTerms) -> Arrays:
        """See :class:`Step`."""
        return sent | {"table": np.ascontiguousarray(sent["table"][:, slice(*part)])}

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        """See :class:`Step`."""
        devices.keep_vectors(sent["table"], part[0], self.columns, sent.get("default"))
        return {}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`."""
        rows = items.contributed
        down = rows_bytes(self.columns, rows, terms.num_items if terms.all_rows else 0)
        kept = NUMBER_BYTES * self.columns
        return cost_by_columns(self.columns, rows, budgets, moved=(down, 0), kept=kept, column_bytes=ROW_BYTES * rows)

    @staticmethod
    def ask(channel: StepChannel, own: Floats, default: Floats | None = None) -> None:
        """Have devices compute vectors from the rows (I, K) of their items. default: (K,) of who has none."""
        sent: Arrays = {"table": own} if default is None else {"table": own, "default": default}
        answer_to(channel, VectorsStep(own.shape[1], default is not None), sent)


@dataclass(frozen=True)
class MapsStep(Step):
    """Maps of K columns: one row of the map for every column of the vector."""

    columns: Size

    name: ClassVar[str] = "maps"

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`."""
        column, kept = ROW_BYTES * terms.dim, NUMBER_BYTES * self.columns + WORD_BYTES * terms.dim
        down = (column + UNIT_BYTES) * self.columns
        return cost_by_columns(self.columns, terms.dim, budgets, moved=(down, 0), kept=kept, column_bytes=column)

    @staticmethod
    def ask(channel: StepChannel, columns: int) -> None:
        """Count what maps of so many columns take of devices."""
        answer_to(channel, MapsStep(columns), {})
