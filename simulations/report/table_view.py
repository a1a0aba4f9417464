"""A table before it is text, HTML or a terminal's, how its cells are written, and words for the keys and values of a
result, so that no page shows a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from fl_peel.figures import Estimate
from strategies.figures.schema import EXCLUDING_SMALL, FIXED_TIERS, FULL_GLOBAL, FULL_REFINED, PEEL, TRAINED_WITHOUT

METHODS: Mapping[str, str] = MappingProxyType(
    {
        PEEL: "elastic (PEEL)",
        FULL_REFINED: "refined full table",
        FULL_GLOBAL: "global full table",
        FIXED_TIERS: "fixed tiers",
        EXCLUDING_SMALL: "small devices excluded",
        TRAINED_WITHOUT: "elastic, trained without small devices",
    }
)
FULL_TABLES: Mapping[str, str] = MappingProxyType(
    {
        "global": "global table",
        "start": "group tables before refinement",
        "refined": "group tables after refinement",
    }
)
SELECTORS: Mapping[str, str] = MappingProxyType(
    {
        "exposure": "exposure in the group",
        "shown": "exposure in the group",  # its name in reports of earlier versions
        "popularity": "popularity in the group",
        "global-popularity": "global popularity",
        "energy": "energy",
        "random": "random order",
        "controller": "the controller",
    }
)
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "clip_norms": "clipping bounds, by round",
        "counters": "device counters",
        "cpus": "processors",
        "device_rounds": "device-rounds left out",
        "epsilon_pld": "epsilon by privacy loss distributions",
        "epsilon_rdp": "epsilon by Rényi divergences",
        "excluding_small": "small devices excluded",
        "floor_bytes_mean": "bytes stored at the floor",
        "floor_recall": "recall at the floor",
        "grew": "re-selections that grew",
        "growth_bytes": "bytes sent for growth",
        "growth_bytes_per_device_hour": "bytes sent for growth, per device and hour",
        "growth_to_missing": "bytes sent for growth, relative to those missing",
        "hours": "hours followed",
        "kind": "attack",
        "missing_block_bytes": "bytes of missing blocks",
        "noise_std": "standard deviation of the noise",
        "num_targets": "target items",
        "requests": "blocks that devices request",
        "reselections": "re-selections",
        "reselections_per_device_hour": "re-selections per device and hour",
        "rows": "rows that devices send",
        "shrank": "re-selections that shrank",
        "shrink_bytes": "bytes sent for shrinking",
        "to_floor": "recall relative to the floor",
    }
)
VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("rows", "touched"): "those they changed",
        ("rows", "all-sent"): "all rows they were sent",
        ("requests", "own-budget"): "those that fit their own budget",
        ("requests", "group-prefix"): "those that fit the largest budget",
        ("noise_source", "seed"): "the run's seed",
        ("noise_source", "system"): "the operating system",
        ("clipping", "per-block"): "per block",
    }
)


def method_name(key: str) -> str:
    """A way of serving devices in words: 'peel' -> 'elastic (PEEL)'."""
    return METHODS.get(key, key)


def selector_name(key: str) -> str:
    """Return the words for a selector: 'exposure' -> 'exposure in the group'; a user's own by its name."""
    return SELECTORS.get(key, f"“{key}”")


def key_name(path: str) -> str:
    """A key, or keys within one another, in words: 'of.growth_bytes' -> 'of, bytes sent to grow'."""
    return ", ".join(METHODS.get(key) or KEYS.get(key) or metric_name(key) for key in path.split("."))


def metric_name(metric: str) -> str:
    """Return a metric key as written for readers: 'ndcg@20' -> 'NDCG@20'."""
    return metric.replace("recall@", "Recall@").replace("ndcg@", "NDCG@").replace("_", " ")


ABSENT = "–"
TERMINAL_WIDTH, MOST_COLUMNS = 80, 6
"""Characters and columns of a table in a terminal, unless it is asked for more."""
LABEL_WIDTH = 28
"""Characters of words in such a table, before they continue on the next line."""


@dataclass(frozen=True)
class TableView:
    """A table ready to print: `rows` of text under `columns`, of which the first `num_labels` are words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int = 1
    note: str = ""
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)  # (row, column) to emphasize
    slider: bool = False  # whether a page has a slider of its column `share`
    brief: tuple[str, ...] = ()  # columns that a narrow terminal shows rather than others, first the most telling
    terminal: bool = False  # whether the terminal shows it, and not the page alone

    def to_rich(self, *, wide: bool = True) -> Table:
        """Return the same table for the terminal. wide: with the columns that 80 characters have no room for, too."""
        shown = list(range(len(self.columns))) if wide else self._columns_that_fit()
        hidden = len(self.columns) - len(shown)
        more = f"{hidden} more column{'s' * (hidden > 1)}: --wide." if hidden else ""
        table = Table(
            title=self.title,
            caption="\n".join(part for part in (self.note, more) if part) or None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for index in shown:
            words = index < self.num_labels
            name = self.columns[index] if wide else fill(self.columns[index], self._width(index))
            table.add_column(Text(name), justify="left" if words else "right", overflow="fold")
            table.columns[-1].min_width = None if words else self._width(index)  # no digit is cut
            table.columns[-1].max_width = LABEL_WIDTH if words and not wide else None
        for i, row in enumerate(self.rows):
            table.add_row(*(Text(row[j], style="bold" if (i, j) in self.best else "") for j in shown))
        return table

    def _columns_that_fit(self) -> list[int]:
        """Return the columns to show in 80 characters, at most six: words first, then ``brief``, then from the left."""
        count = len(self.columns)
        rank = {name: place for place, name in enumerate(self.brief)}
        order = sorted(range(count), key=lambda i: (i >= self.num_labels, rank.get(self.columns[i], count), i))
        shown: list[int] = []
        width = 0  # of a column with the two characters beside it
        for index in order:
            width_with = width + self._width(index) + 2
            if len(shown) < MOST_COLUMNS and (width_with <= TERMINAL_WIDTH or not shown):
                shown.append(index)
                width = width_with
        return sorted(shown)

    def _width(self, index: int) -> int:
        """Characters that a column needs: of its cells and of the longest word of its name; long words are broken."""
        longest = max((len(row[index]) for row in self.rows), default=0)
        cells = min(longest, LABEL_WIDTH) if index < self.num_labels else longest
        return max(cells, *(len(word) for word in self.columns[index].split()), 1)


def format_bytes(num_bytes: float) -> str:
    """Four digits and a decimal unit: 10491136 -> '10.49 MB' (1 KB = 1000 B)."""
    if num_bytes < 1000:
        return f"{num_bytes:.4g} B"
    unit, scale = byte_unit(num_bytes)
    scaled = num_bytes / scale
    return f"{scaled:,.1f} {unit}" if scaled >= 99.995 else f"{scaled:.2f} {unit}"


def byte_unit(largest_bytes: float) -> tuple[str, int]:
    """Return the decimal unit that suits numbers up to `largest_bytes`, and its bytes: ('MB', 1000000)."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if largest_bytes >= scale:
            return unit, scale
    return "KB", 1000


def format_share(share: float) -> str:
    """A fraction as per cent, without spare zeros: 0.0025 -> '0.25%'."""
    return f"{share * 100:.4g}%"


def format_metric(value: float | None) -> str:
    """Four decimals; a dash for what was not measured."""
    return ABSENT if value is None else f"{value:.4f}"


def format_kilobytes(num_bytes: float) -> str:
    """One decimal, without the unit."""
    return f"{num_bytes / 1000:,.1f}"


def format_estimate(figure: Estimate | None, digits: int = 4, *, signed: bool = False) -> str:
    """A figure and the ends of its interval: '0.1851 [0.1832, 0.1870]'; a dash for what was not measured."""
    if figure is None:
        return ABSENT
    numbers = (figure.value, *(figure.ends or ()))
    form = f"{'+' * signed}.{digits}f"
    whole, *ends = (format(round(number, digits) + 0.0, form) for number in numbers)  # + 0.0: no minus before nothing
    return f"{whole} [{', '.join(ends)}]" if ends else whole


def format_ratio(ratio: Estimate | None) -> str:
    """The same of a ratio, with three decimals."""
    return format_estimate(ratio, 3)


def format_margin(figure: Estimate | None) -> str:
    """A figure and half the width of its interval: '0.1851 ±0.0019'."""
    if figure is None:
        return ABSENT
    return format_metric(figure.value) + ("" if figure.margin is None else f" ±{figure.margin:.4f}")


def format_point(figure: Estimate | None) -> str:
    """A figure without its interval."""
    return format_metric(None if figure is None else figure.value)


def format_thousandths(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def format_count(value: float) -> str:
    """A whole number, thousands apart."""
    return f"{value:,}"


def format_decimals(value: float) -> str:
    """Two decimals, thousands apart."""
    return f"{value:,.2f}"


Row = TypeVar("Row")


@dataclass(frozen=True)
class TableColumn(Generic[Row]):
    """A column of a table: its heading, what it shows of a row (None: nothing), and how that is written."""

    heading: str
    value: Callable[[Row], Any]
    write: Callable[[Any], str] = str


def table_of(
    title: str,
    rows: Sequence[Row],
    columns: Sequence[TableColumn[Row]],
    note: str = "",
    num_labels: int = 1,
    *,
    terminal: bool = False,
) -> TableView:
    """Make a table of rows; columns of which no row has anything are left out."""
    shown = [column for column in columns if any(column.value(row) is not None for row in rows)]
    body = tuple(
        tuple(ABSENT if (value := column.value(row)) is None else column.write(value) for column in shown)
        for row in rows
    )
    return TableView(title, tuple(column.heading for column in shown), body, num_labels, note, terminal=terminal)


def nested_views(title: str, values: Mapping[str, Any]) -> list[TableView]:
    """Show a free-form part (`fairness`) in words: its scalars in one table, each list of records in its own."""
    scalars: list[tuple[str, str]] = []
    views: list[TableView] = []

    def walk(path: str, value: Any) -> None:
        key = path.rpartition(".")[2]
        if isinstance(value, Mapping):
            for name, part in value.items():
                walk(f"{path}.{name}" if path else name, part)
        elif isinstance(value, list) and value and all(isinstance(record, Mapping) for record in value):
            columns = tuple(dict.fromkeys(name for record in value for name in record))
            rows = tuple(tuple(_scalar(record.get(name), name) for name in columns) for record in value)
            views.append(TableView(f"{title}: {key_name(path)}", tuple(map(key_name, columns)), rows))
        elif isinstance(value, list):
            scalars.append((key_name(path), ", ".join(_scalar(part, key) for part in value)))
        else:
            scalars.append((key_name(path), _scalar(value, key)))

    walk("", values)
    head = [TableView(title, ("quantity", "value"), tuple(scalars))] if scalars else []
    return head + views


def _scalar(value: Any, key: str = "") -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return VALUES.get((key, value), value)
    if "bytes" in key:
        return format_bytes(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value) and abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.4f}" if isinstance(value, float) and 0.001 <= abs(value) < 1000 else f"{value}"
