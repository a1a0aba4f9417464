"""What all parts of a scenario share: strict, immutable keys; shares written as percentages."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def as_share(value: Any) -> Any:
    """Read ``1%`` as 0.01; numbers stay."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError as error:
            raise ValueError(f"{value!r} is not a percentage; write e.g. 1%") from error
    return value


Share = Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)]


ShareOrNone = Annotated[float, BeforeValidator(as_share), Field(ge=0, le=1)]


PartShare = Annotated[float, BeforeValidator(as_share), Field(ge=0, lt=1)]


def check_distinct(key: str, values: Sequence[Hashable]) -> None:
    """Refuse a list that names something twice.

    Raises:
        ValueError: naming the key and what is there twice.
    """
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise ValueError(f"{key}: {twice} is given twice; leave one out")


class Keys(BaseModel):
    """The keys of one part of a scenario: immutable, strict about their names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
