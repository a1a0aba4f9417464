"""Names of block precisions and of kinds of item groups. Imports nothing: the scenario's keys are read with it."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "int8", "int4"]


PRECISIONS: tuple[Precision, ...] = get_args(Precision)


ItemGroupKind = Literal["contiguous", "popularity", "interest-popularity", "single"]
