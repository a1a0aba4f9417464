"""How the keys of a fleet file are checked, and how a mistake becomes one line.

A *spec* is a frozen pydantic model whose fields are the keys of a mapping in the file. Unknown keys are refused
with a guess at what was meant; every error ends as ``path.of.the[3].key: what is wrong (got ...)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema, model_validator

from fl_peel.errors import FieldError
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of


class Spec(BaseModel):
    """Base of everything a fleet file can hold: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: object) -> object:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise FieldError(f"must be a mapping of keys to values (got {kind_of(data)})")
        for key in data:
            if key not in cls.model_fields:
                raise FieldError(f"unknown key; {did_you_mean(key, cls.model_fields)}", str(key))
        return data


def number(value: object) -> float:
    """Read a finite number.

    Raises:
        FieldError: text, true/false, NaN, infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        share = isinstance(value, str) and re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)
        hint = f"; write {float(share[1]) / 100:g}" if share and share[1].count(".") < 2 else ""
        raise FieldError(f"must be a number{hint} (got {kind_of(value)})")
    result = float(value) if abs(value) < 1e300 or isinstance(value, float) else math.inf
    if not math.isfinite(result):
        raise FieldError(f"must be a finite number (got {value if isinstance(value, float) else 'a huge one'})")
    return result


def in_bounds(value: float, *, gt: float | None = None, ge: float | None = None, le: float | None = None) -> float:
    """Return the value if it lies within the bounds.

    Raises:
        FieldError: it does not.
    """
    if gt is not None and not value > gt:
        raise FieldError(f"must be > {gt:g} (got {value:g})")
    if ge is not None and not value >= ge:
        raise FieldError(f"must be >= {ge:g} (got {value:g})")
    if le is not None and not value <= le:
        raise FieldError(f"must be <= {le:g} (got {value:g})")
    return value


def _bounded(*, gt: float | None = None, ge: float | None = None, le: float | None = None) -> Callable[[object], float]:
    return lambda value: in_bounds(number(value), gt=gt, ge=ge, le=le)


def whole(value: object, minimum: int) -> int:
    """Read a whole number from ``minimum`` on.

    Raises:
        FieldError: not a number, below the minimum, above 2^53, or with a fraction.
    """
    result = in_bounds(number(value), ge=minimum, le=2**53)
    if result != int(result):
        raise FieldError(f"must be a whole number (got {result:g})")
    return int(result)


def _whole(minimum: int) -> Callable[[object], int]:
    return lambda value: whole(value, minimum)


def as_schema(kind: str, **limits: float) -> WithJsonSchema:
    """Return the JSON schema of a number that a validator of ours reads."""
    return WithJsonSchema({"type": kind, **limits})


PositiveFloat = Annotated[float, BeforeValidator(_bounded(gt=0)), as_schema("number", exclusiveMinimum=0)]
NonNegativeFloat = Annotated[float, BeforeValidator(_bounded(ge=0)), as_schema("number", minimum=0)]
ShareFloat = Annotated[float, BeforeValidator(_bounded(ge=0, le=1)), as_schema("number", minimum=0, maximum=1)]
PositiveInt = Annotated[int, BeforeValidator(_whole(1)), as_schema("integer", minimum=1)]
NonNegativeInt = Annotated[int, BeforeValidator(_whole(0)), as_schema("integer", minimum=0)]


Folder = Path | Mapping[str, Path]
"""Folder of the files that a fleet file names, or their paths by name where they came with a message."""


def folder_of(info: ValidationInfo) -> Folder:
    """Folder that relative file names start from: the fleet file's own, else the current one; or the files by name."""
    context = info.context if isinstance(info.context, Mapping) else {}
    folder = context.get("folder", ".")
    return folder if isinstance(folder, Mapping) else Path(folder)
