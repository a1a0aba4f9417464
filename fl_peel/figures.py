"""Figures: numbers with their intervals, and the tidy table of all that a run or a study measured.

A result is a dataclass (:mod:`strategies.figures.schema`). :meth:`Figures.from_result` walks it by its types: every
number in it becomes a row, and fields marked with :class:`Column` say where it belongs. So a new figure is one field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, SupportsFloat, TypeVar, cast, get_args, get_origin

from fl_peel.json_codec import UNWRITTEN, bare_type, fields_of
from fl_peel.packages import optional

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval (docs/statistics.md). low, high: its ends, None where they are not known; margin:
    half its width, where that is what was computed; p_value: two-sided, of no difference from 0. It is ordered as its
    number is.
    """

    value: float
    low: float | None = field(default_factory=lambda: None)  # null in JSON
    high: float | None = field(default_factory=lambda: None)
    margin: float | None = field(default=None, metadata=UNWRITTEN)
    p_value: float | None = field(default=None, metadata=UNWRITTEN)

    @staticmethod
    def from_margin(value: float, margin: float | None) -> Estimate:
        """Make the estimate from half the width of its interval."""
        return Estimate(value) if margin is None else Estimate(value, value - margin, value + margin, margin)

    def __float__(self) -> float:
        return self.value

    def __lt__(self, other: SupportsFloat) -> bool:
        return self.value < float(other)

    def __le__(self, other: SupportsFloat) -> bool:
        return self.value <= float(other)

    def __gt__(self, other: SupportsFloat) -> bool:
        return self.value > float(other)

    def __ge__(self, other: SupportsFloat) -> bool:
        return self.value >= float(other)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Return both ends of the interval, where they are known."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class SeedsEstimate(Estimate):
    """An estimate from several seeds: its standard deviation over seeds, None for one seed, and its value by seed."""

    seeds_std: float | None = field(default_factory=lambda: None)
    by_seed: tuple[float, ...] = ()

    def bare(self) -> Estimate:
        return Estimate(self.value, self.low, self.high)


@dataclass(frozen=True)
class Beside:
    """Layout in JSON of an estimate whose number stands under its key and its interval beside it.

    number: type of the number; key: of the interval, with ``{key}`` for that of the number, and with ``{end}`` where
    either end has a key of its own; form: what stands there: ``ends`` ({"low", "high"}), ``list`` ([low, high]),
    ``margin``, or a single ``end``; null: whether an unknown interval is null, and not left out.
    """

    number: Any
    key: str = "{key}_interval"
    form: str = "ends"
    null: bool = False

    def keys(self, key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((key, *(self.key.format(key=key, end=end) for end in ("low", "high")))))

    def write(self, key: str, value: Estimate | None) -> dict[str, Any]:
        laid: dict[str, Any] = {key: None if value is None else value.value}
        if value is not None and value.ends is not None:
            low, high = value.ends
            forms: dict[str, list[Any]] = {
                "ends": [{"low": low, "high": high}],
                "list": [[low, high]],
                "margin": [value.margin],
            }
            laid |= dict(zip(self.keys(key)[1:], forms.get(self.form, [low, high]), strict=True))
        return dict.fromkeys(self.keys(key)) | laid if self.null else laid

    def read(self, key: str, plain: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Estimate | None:
        number, places = read(self.number, key), self.keys(key)[1:]
        if number is None:
            return None
        if any(plain.get(place) is None for place in places):
            return Estimate(number)
        if self.form == "margin":
            return Estimate.from_margin(number, read(float, places[0]))
        if self.form == "end":
            return Estimate(number, *(read(float, place) for place in places))
        ends = read(dict[str, float] if self.form == "ends" else tuple[float, ...], places[0])
        return Estimate(number, *((ends["low"], ends["high"]) if self.form == "ends" else ends))


@dataclass(frozen=True)
class Column:
    """Mark of a field that says where figures belong. name: of the column; value: in it, for all figures in the field.
    Without a value: the field's own content, for all figures of its owner; of a dictionary or list, each of its keys,
    or places counted from ``first``, for the figures beneath it; whole: whether keys are whole numbers.
    """

    name: str
    value: str | None = None
    first: int = 1
    whole: bool = False


SETTING = Column("")
"""Mark of a field whose numbers were set, and not measured."""


@dataclass(frozen=True)
class Figure(Estimate):
    """One measured number, and where it belongs. name: as in the result's JSON; unit: empty for counts and ratios;
    part: path of the figure's owner in the JSON; where: other columns.
    """

    name: str = ""
    unit: str = ""
    part: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> Any:
        return getattr(self, name) if name in FIRST_COLUMNS else self.where.get(name)


def read_fields(kind: type[Kind], *sources: object, **given: object) -> Kind:
    """Return a value of a dataclass whose fields are given or, else, what the first source that has such an attribute
    has under their names; scalars of NumPy become Python's.
    """
    dataclass_kind: Any = kind
    values = dict(given)
    for one in fields(dataclass_kind):
        source = next((source for source in sources if hasattr(source, one.name)), None)
        if one.name not in values and source is not None:
            value = getattr(source, one.name)
            values[one.name] = value.item() if hasattr(value, "item") else value
    return kind(**values)


FIRST_COLUMNS = ("part", "name", "value", "low", "high", "unit")
UNITS = (
    ("bytes", "B"),
    ("seconds", "s"),
    ("stages", "s"),
    ("_s", "s"),
    ("hours", "h"),
    ("_ms", "ms"),
    ("_j", "J"),
    ("_watts", "W"),
    ("_mbps", "Mbit/s"),
    ("samples_per_s", "1/s"),
    ("joules_per_mb", "J/MB"),
)
"""Units by a part of a figure's name, the last that fits: names have their units."""


def unit_of(name: str) -> str:
    """Return the unit that a figure's name says: ``download_bytes`` -> ``B``."""
    last = name.rpartition(".")[2]
    units = [unit for part, unit in UNITS if (last.endswith(part) if part.startswith("_") else part in last)]
    return units[-1] if units and "_to_" not in last and "share" not in last else ""


@dataclass(frozen=True)
class Figures(Sequence[Figure]):
    """The tidy table: a row for each figure, a column for each thing that says where it belongs."""

    rows: tuple[Figure, ...]

    @staticmethod
    def from_result(result: Any, **names: object) -> Figures:
        """Make the table of a result. names: values for placeholders in its keys."""
        return Figures(tuple(_figures(result, type(result), "", "", {}, names)))

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, **columns: Any) -> Figures:
        """Return the figures with these values in these columns: ``select(part="budgets", name="recall@20")``."""
        return Figures(tuple(r for r in self.rows if all(r.column(c) == value for c, value in columns.items())))

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns, those of places in the order in which they first come."""
        return tuple(dict.fromkeys((*FIRST_COLUMNS, *(name for row in self.rows for name in row.where))))

    def to_arrow(self) -> pa.Table:
        import pyarrow

        return pyarrow.table({name: [row.column(name) for row in self.rows] for name in self.columns})

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas table (extra ``pandas``).

        Raises:
            MissingExtraError: pandas is not installed.
        """
        optional("pandas", "pandas", "a table of figures")
        return self.to_arrow().to_pandas()

    def to_csv(self) -> bytes:
        """Return the table as UTF-8 CSV: an empty cell where a column says nothing, floats to their last digit."""
        import pyarrow.csv

        sink = pyarrow.BufferOutputStream()
        pyarrow.csv.write_csv(self.to_arrow(), sink, pyarrow.csv.WriteOptions(quoting_style="needed"))
        return bytes(sink.getvalue())

    def to_parquet(self) -> bytes:
        import pyarrow.parquet

        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(self.to_arrow(), sink)
        return bytes(sink.getvalue())


Where = Mapping[str, Any]


def _figures(
    value: Any, kind: Any, part: str, name: str, where: Where, names: Mapping[str, object]
) -> Iterator[Figure]:
    """Yield the figures in a value of a type. part, name: path of its owner, and its own name there."""
    about: dict[str, Any] = {"name": name, "unit": unit_of(name), "part": part}
    if isinstance(value, Figure):
        unit = value.unit or unit_of(value.name)
        yield replace(value, unit=unit, part=part, where={**where, **value.where})
    elif isinstance(value, Estimate):
        yield Figure(value.value, value.low, value.high, **about, where=where)
        if isinstance(value, SeedsEstimate):
            seeds = cast(Sequence[int], names.get("seeds", range(len(value.by_seed))))
            for seed, one in zip(seeds, value.by_seed, strict=False):
                yield Figure(one, **about, where={**where, "seed": seed})
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield Figure(value, **about, where=where)
    elif is_dataclass(value):
        yield from _of_fields(value, _joined(part, name), where, names)
    elif isinstance(value, (Mapping, tuple, list)):
        column = next((mark for mark in _marks(kind) if isinstance(mark, Column) and mark.value is None), None)
        inner = get_args(bare_type(kind))
        each = inner[-1 if isinstance(value, Mapping) else 0] if inner else Any
        if each is Any:
            return  # settings, and no figures
        entries = value.items() if isinstance(value, Mapping) else enumerate(value, column.first if column else 0)
        for key, one in entries:
            if column is not None:
                place = {column.name: int(key) if column.whole else key}
                yield from _figures(one, each, part, name, {**where, **place}, names)
            elif isinstance(value, Mapping):
                yield from _figures(one, each, part, _joined(name, str(key)), where, names)
            else:
                place = {} if is_dataclass(one) else {"index": key}
                yield from _figures(one, each, part, name, {**where, **place}, names)


def _of_fields(owner: Any, part: str, where: Where, names: Mapping[str, object]) -> Iterator[Figure]:
    kind: Any = type(owner)
    own_fields = fields_of(kind)
    own = {mark.name: getattr(owner, one.name) for one in own_fields if (mark := _place(owner, one)) is not None}
    where = {**where, **{name: value for name, value in own.items() if name and value is not None}}
    for one in own_fields:
        if one.written and SETTING not in _marks(one.kind) and _place(owner, one) is None:
            value, key = getattr(owner, one.name), one.key.format(**names)
            columns = [mark for mark in _marks(one.kind) if isinstance(mark, Column)]
            fixed = {column.name: column.value for column in columns if column.value is not None}
            inlined = one.inline is not None and len(columns) == len(fixed)
            yield from _figures(value, one.kind, part, "" if inlined else key, {**where, **fixed}, names)


def _place(owner: Any, one: Any) -> Column | None:
    """Return the mark of a field that is itself a place, and no figure."""
    if isinstance(getattr(owner, one.name), (Mapping, tuple, list)):
        return None
    return next((mark for mark in _marks(one.kind) if isinstance(mark, Column) and mark.value is None), None)


def _marks(kind: Any) -> tuple[Any, ...]:
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def _joined(part: str, name: str) -> str:
    return ".".join(filter(None, (part, name)))
