"""A value that may differ from device to device: a constant or a distribution, drawn by inverse transform.

In a fleet file::

    samples_per_s: 5000
    samples_per_s: {uniform: [2000, 8000]}
    samples_per_s: {lognormal: {median: 5000, sigma: 0.5, min: 100, max: 50000}}
    samples_per_s: {categorical: {values: [2000, 8000], weights: [3, 1]}}
    total_gb: {empirical: {counts: {2: 18, 4: 96, "6 GB": 78}}}
    total_gb: {empirical: {file: phones.csv, column: ram}}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from clients.fleet.specs import Folder, folder_of, in_bounds, number
from clients.fleet.tabular import checked_file, is_blank, read_columns, sizes
from fl_peel.errors import FieldError
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of

FloatArray = NDArray[np.float64]
_MAX_VALUES = 100_000


class Distribution(Protocol):
    """Values of a population; ``low`` and ``high`` bound everything that can be drawn."""

    @property
    def low(self) -> float:
        """Smallest value."""

    @property
    def high(self) -> float:
        """Largest value."""

    def draw(self, uniforms: FloatArray) -> FloatArray:
        """One value per number in [0, 1): (N,) -> (N,), not falling in ``uniforms``."""


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    @property
    def low(self) -> float:
        return self.value

    @property
    def high(self) -> float:
        return self.value

    def draw(self, uniforms: FloatArray) -> FloatArray:
        return np.full(len(uniforms), self.value)


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution between ``low`` and ``high``."""

    low: float
    high: float

    def draw(self, uniforms: FloatArray) -> FloatArray:
        return np.minimum(self.low + uniforms * (self.high - self.low), self.high)


@dataclass(frozen=True)
class LogNormal:
    """exp(Normal(log(median), sigma)), clipped to [low, high]."""

    median: float
    sigma: float
    low: float
    high: float

    def draw(self, uniforms: FloatArray) -> FloatArray:
        inner = np.clip(uniforms, 2.0**-53, 1 - 2.0**-53)
        from scipy.special import ndtri  # a fleet is read before the first line, which nobody shall wait for

        return np.clip(self.median * np.exp(self.sigma * ndtri(inner)), self.low, self.high)


@dataclass(frozen=True)
class Categorical:
    """A list of values (rising) with the share of each."""

    values: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def draw(self, uniforms: FloatArray) -> FloatArray:
        return np.asarray(self.values)[np.searchsorted(cumulative(self.shares), uniforms, side="right")]


def cumulative(shares: tuple[float, ...]) -> FloatArray:
    """Running sum of shares that ends at exactly 1, so that a number below 1 always finds its place."""
    running = np.cumsum(np.asarray(shares, dtype=np.float64))
    running /= running[-1]
    return running


def _mapping(value: object, known: tuple[str, ...], required: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise FieldError(f"must be a mapping with {', '.join(required)} (got {kind_of(value)})")
    for key in value:
        if key not in known:
            raise FieldError(f"unknown key; {did_you_mean(key, known)}", str(key))
    for key in required:
        if key not in value:
            raise FieldError("is missing", key)
    return value


def _number(
    value: object, *path: str | int, gt: float | None = None, ge: float | None = None, le: float | None = None
) -> float:
    try:
        return in_bounds(number(value), gt=gt, ge=ge, le=le)
    except FieldError as error:
        raise FieldError(str(error), *path) from None


def _choice(weights: Mapping[float, float]) -> Categorical:
    kept = {value: weight for value, weight in weights.items() if weight > 0}
    total = sum(kept.values())
    if not kept or not np.isfinite(total):
        raise FieldError("holds no values" if not weights else "must have weights with a sum > 0")
    if len(kept) > _MAX_VALUES:
        raise FieldError(f"has {len(kept)} different values; at most {_MAX_VALUES}: round them")
    ordered = sorted(kept)
    return Categorical(tuple(ordered), tuple(kept[value] / total for value in ordered))


def _uniform(value: object, unit_bytes: int | None, folder: Folder) -> Distribution:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise FieldError(f"must be [low, high] (got {kind_of(value)})")
    low, high = _number(value[0], 0), _number(value[1], 1)
    if low > high:
        raise FieldError(f"low {low:g} is above high {high:g}")
    return Uniform(low, high)


def _lognormal(value: object, unit_bytes: int | None, folder: Folder) -> Distribution:
    keys = _mapping(value, ("median", "sigma", "min", "max"), ("median", "sigma"))
    median = _number(keys["median"], "median", gt=0)
    sigma = _number(keys["sigma"], "sigma", ge=0, le=10)
    # no draw lies further out than 8.3 standard deviations: the uniforms have 53 bits
    low = _number(keys.get("min", median * float(np.exp(-8.3 * sigma))), "min")
    high = _number(keys.get("max", median * float(np.exp(8.3 * sigma))), "max")
    if low > high:
        raise FieldError(f"min {low:g} is above max {high:g}")
    return LogNormal(median, sigma, low, high)


def _categorical(value: object, unit_bytes: int | None, folder: Folder) -> Distribution:
    keys = _mapping(value, ("values", "weights"), ("values",))
    values = keys["values"]
    if not isinstance(values, (list, tuple)) or not values:
        raise FieldError(f"must be a list of numbers (got {kind_of(values)})", "values")
    weights = keys.get("weights", [1] * len(values))
    if not isinstance(weights, (list, tuple)) or len(weights) != len(values):
        raise FieldError(f"must be a list of {len(values)} numbers, one per value", "weights")
    totals: defaultdict[float, float] = defaultdict(float)
    for i in range(len(values)):
        totals[_number(values[i], "values", i)] += _number(weights[i], "weights", i, ge=0)
    return _choice(totals)


def _empirical(value: object, unit_bytes: int | None, folder: Folder) -> Distribution:
    keys = _mapping(value, ("counts", "file", "column", "weight_column", "unreadable"), ())
    if ("counts" in keys) == ("file" in keys):
        raise FieldError("must have either counts or file")
    totals: defaultdict[float, float] = defaultdict(float)
    if "counts" in keys:
        counts = keys["counts"]
        if not isinstance(counts, Mapping) or not counts:
            raise FieldError(f"must be a mapping from value to count (got {kind_of(counts)})", "counts")
        for text, count in counts.items():
            try:
                values = sizes(text, unit_bytes)
                share = in_bounds(number(count), ge=0) / len(values)
                for size in values:
                    totals[number(size)] += share
            except FieldError as error:
                raise FieldError(str(error), "counts", str(text)) from None
        return _choice(totals)
    for key in ("column", "weight_column"):
        if not isinstance(keys.get(key, ""), str):
            raise FieldError(f"must be a column's name (got {kind_of(keys[key])})", key)
    if keys.get("unreadable", "refuse") not in ("refuse", "skip"):
        raise FieldError(f"must be refuse or skip (got {kind_of(keys['unreadable'])})", "unreadable")
    skip = keys.get("unreadable") == "skip"
    column, weight_column = keys.get("column"), keys.get("weight_column")
    wanted = (column,) if weight_column is None else (column, weight_column)
    path = checked_file(folder, keys["file"])
    for place, row in read_columns(path, wanted):  # type: ignore[arg-type]
        if any(is_blank(cell) for cell in row):
            continue
        try:
            values = sizes(row[0], unit_bytes)
            weight = in_bounds(sizes(row[1], None)[0], ge=0) if len(row) > 1 else 1.0
            for size in values:
                totals[number(size)] += weight / len(values)
        except FieldError as error:
            if not skip:
                raise FieldError(f"{place}: {error}; correct it or set unreadable: skip") from None
    if not totals:
        raise FieldError(f"{path} holds no value")
    return _choice(totals)


_READERS: Mapping[str, Callable[[object, int | None, Folder], Distribution]] = {
    "uniform": _uniform,
    "lognormal": _lognormal,
    "categorical": _categorical,
    "empirical": _empirical,
}


def read_distribution(value: object, *, unit_bytes: int | None = None, folder: Folder = Path()) -> Distribution:
    """Read a number or ``{name: parameters}``.

    Raises:
        FieldError: neither, or parameters that make no sense.
    """
    if isinstance(value, (Constant, Uniform, LogNormal, Categorical)):
        return value
    if not isinstance(value, Mapping):
        return Constant(number(value))
    if len(value) != 1:
        raise FieldError(f"must be a number or one of {', '.join(sorted(_READERS))} (got {len(value)} keys)")
    name, parameters = next(iter(value.items()))
    if name not in _READERS:
        raise FieldError(f"unknown distribution; {did_you_mean(name, _READERS)}", str(name))
    try:
        return _READERS[name](parameters, unit_bytes, folder)
    except FieldError as error:
        raise FieldError(str(error), name, *error.path) from None


def _reader(
    *, gt: float | None = None, ge: float | None = None, le: float | None = None, unit_bytes: int | None = None
) -> PlainValidator:
    def read(value: object, info: ValidationInfo) -> Distribution:
        result = read_distribution(value, unit_bytes=unit_bytes, folder=folder_of(info))
        in_bounds(result.low, gt=gt, ge=ge)
        in_bounds(result.high, le=le)
        return result

    return PlainValidator(read)


def distribution_schema(**limits: float) -> dict[str, Any]:
    """Return the JSON schema of a distribution, for editors: a number, or one of the distributions."""
    named = {"type": "object", "title": "distribution", "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [{"type": "number", **limits}, {**named, "propertyNames": {"enum": sorted(_READERS)}}]}


def _schema(**limits: float) -> WithJsonSchema:
    return WithJsonSchema(distribution_schema(**limits))


_POSITIVE = _schema(exclusiveMinimum=0)
Positive = Annotated[Distribution, _reader(gt=0), _POSITIVE]
NonNegative = Annotated[Distribution, _reader(ge=0), _schema(minimum=0)]
Share = Annotated[Distribution, _reader(ge=0, le=1), _schema(minimum=0, maximum=1)]
PositiveShare = Annotated[Distribution, _reader(gt=0, le=1), _schema(exclusiveMinimum=0, maximum=1)]
# a table of a kilobyte, 2^20 times in a gigabyte
PerGigabyte = Annotated[Distribution, _reader(gt=0, le=2**20), _schema(exclusiveMinimum=0, maximum=2**20)]
# nothing holds 2^53 bytes, and up to there a float64 counts every byte
Kilobytes = Annotated[Distribution, _reader(gt=0, le=2**43, unit_bytes=2**10), _POSITIVE]
Megabytes = Annotated[Distribution, _reader(gt=0, le=2**33, unit_bytes=2**20), _POSITIVE]
Gigabytes = Annotated[Distribution, _reader(gt=0, le=2**23, unit_bytes=2**30), _POSITIVE]
