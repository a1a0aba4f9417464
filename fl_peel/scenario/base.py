"""What all parts of a scenario share: strict, immutable keys; shares written as percentages."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic.config import JsonDict
from pydantic_core import CoreSchema

from fl_peel.errors import shortened
from fl_peel.plugins import Registry

MOST_ROUNDS = 1_000_000
"""Rounds, epochs, passes: at a second each they take twelve days, and nobody waits for more."""
MOST_DEVICES = 100_000_000
"""Devices, interactions, draws: beyond that, what is counted for each does not fit into the memory of one machine."""
MOST_ITEMS = 10_000_000
"""Items, and what is chosen of them: ten times the largest catalogue that recommenders are published on."""
WIDEST = 16_384
"""Numbers in a row of a table: four times those of the widest embeddings in use."""
WIDEST_LAYER = 4096
"""Units of a layer of the controller, which weighs a few features of each block."""
MOST_NODES = 4096
"""Each is a process, of which one cluster runs some thousands."""
MOST_LISTED = 1000
"""Entries of a list of settings, each of which is measured for itself."""
LONGEST_NAME = 1000
"""Characters."""


def check_path(path: str) -> str:
    """The path itself, if some file can have it.

    Raises:
        ValueError: it has a zero, or a part of it is longer than file systems allow.
    """
    if "\0" in path:
        raise ValueError("contains the character with code 0, which file names cannot contain; leave it out")
    if any(len(os.fsencode(part)) > 255 for part in path.split("/")):
        raise ValueError("a part of the path has more than 255 bytes, the limit of file names; correct it")
    return path


def as_share(value: Any) -> Any:
    """Read ``1%`` as 0.01; numbers stay."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(PERCENT, value):
        return float(value.strip()[:-1]) / 100
    try:
        float(value)
    except ValueError as error:
        raise ValueError(f"{shortened(repr(value), 60)} is not a share; write e.g. 1% or 0.01") from error
    return value


def unit(of: str) -> JsonDict:
    """What a number counts or measures, as a field's ``json_schema_extra``: it is shown beside the key."""
    return {"unit": of}


_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Bounds behind a validator are not translated by pydantic."""


@dataclass(frozen=True)
class _OrPercent:
    """Tells editors that a share may be written as a percentage."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonDict:
        number = {_BOUNDS.get(key, key): value for key, value in handler(schema).items()}
        return {"anyOf": [number, {"type": "string", "pattern": PERCENT}], **unit("share")}


PERCENT = r"^\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*%\s*$"
"""How a percentage is written: ``1%``, ``0.25%``."""
OR_PERCENT = _OrPercent()


@dataclass(frozen=True)
class OneOf:
    """Tells editors the names that a registry knows where the schema is made, those of installed packages included."""

    registry: Registry[Any]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonDict:
        return {**handler(schema), "enum": list(self.registry.names())}


Text = Annotated[str, Field(max_length=LONGEST_NAME)]


FilePath = Annotated[str, Field(max_length=4095), AfterValidator(check_path)]


Share = Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1), OR_PERCENT]


ShareOrNone = Annotated[float, BeforeValidator(as_share), Field(ge=0, le=1), OR_PERCENT]


PartShare = Annotated[float, BeforeValidator(as_share), Field(ge=0, lt=1), OR_PERCENT]


def check_distinct(key: str, values: Sequence[Hashable]) -> None:
    """Refuse a list that names something twice.

    Raises:
        ValueError: naming the key and what is there twice.
    """
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{key}: {value} is given twice; leave one out")
        seen.add(value)


class Keys(BaseModel):
    """The keys of one part of a scenario: immutable, strict about their names. The text under a key describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for the number 1."""
        values = value if isinstance(value, list | tuple) else (value,)
        truth = next((one for one in values if isinstance(one, bool)), None)
        if truth is not None and not _takes_truth(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"takes no {str(truth).lower()}; give a number, or quote it where it is a text")
        return value


def _takes_truth(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_truth, get_args(annotation)))
