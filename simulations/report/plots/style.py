"""How every figure looks and becomes SVG: palette, type, labels at line ends, the same bytes each time.

Colours are Okabe and Ito's set ("Color Universal Design", 2008), told apart with any colour vision, without
its yellow, which is too light for lines on white. A line also differs by its marker, and carries its
name at its end instead of in a legend.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from simulations.report.tables.view import byte_unit

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
INK, MUTED, GRID = "#222222", "#6B6B6B", "#E3E3E3"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, MUTED)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Ends = tuple[float, float] | None
"""Of an interval; None where there is none."""
LABEL_PT = 8.5
WIDTH_IN = 7.4

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same shapes on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names are names: a dollar sign is a dollar sign
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "svg.fonttype": "path",  # the same in a browser, a slide and a paper
}


@dataclass(frozen=True)
class Plot:
    """A finished figure: `name` (also the prefix of its ids), heading, the same in words, and its SVG."""

    name: str
    title: str
    alt: str
    svg: str


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the house style whatever the user's own matplotlib settings are; they come back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Return `figure` as one `<svg>` element with a text alternative; call it within `styled()`.

    The same figure and name give the same bytes; ids start with `name`, so that several figures share a page.
    """
    matplotlib.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    start = text.index(">") + 1
    return f"{text[:start]}<title>{escape(alt)}</title>{text[start:]}"


def darker(color: str) -> tuple[float, float, float]:
    """The same hue, dark enough for small text on white."""
    red, green, blue = to_rgb(color)
    return (red * 0.72, green * 0.72, blue * 0.72)


@dataclass(frozen=True)
class EndLabel:
    """A name to write at the right end of a line that stops at (x, y), in data coordinates."""

    text: str
    x: float
    y: float
    color: str
    bold: bool = False


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write each label right of the axes, level with its line's end, moved apart where they would overlap.

    Call it when the limits are final; the figure's layout engine makes the room.
    """
    if not labels:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = (LABEL_PT + 3.5) / (axes.bbox.height * 72.0 / figure.dpi)  # of the axes' height
    axes.get_ylim()  # settles the limits, which are lazy, before places are read off them
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((label.x, label.y))[1]) for label in labels]
    for label, height in zip(labels, spread(wanted, gap, 0.0, 1.0), strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xycoords="data",
            xytext=(1.025, height),
            textcoords="axes fraction",
            va="center",
            ha="left",
            fontsize=LABEL_PT,
            fontweight="bold" if label.bold else "normal",
            color=darker(label.color),
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": label.color,
                "lw": 0.6,
                "alpha": 0.55,
                "shrinkA": 1,
                "shrinkB": 3,
            },
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Return places at least `gap` apart, in the order of `wanted` and as near to it as that allows.

    Places that are too near are merged into a block centred on their mean (pool adjacent violators). All stay
    within `low` and `high`, unless they are too many: then they start at `low` and run over.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []  # (sum of the block's wanted starts, its size)
    for rank, index in enumerate(order):
        total, size = wanted[index] - rank * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / size:
            earlier_total, earlier_size = blocks.pop()
            total, size = total + earlier_total, size + earlier_size
        blocks.append((total, size))
    last_start = high - (len(wanted) - 1) * gap
    starts = [max(min(total / size, last_start), low) for total, size in blocks for _ in range(size)]
    places = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        places[index] = starts[rank] + rank * gap
    return places


def line_kwargs(index: int, *, strong: bool = True, dashed: bool = False) -> dict[str, Any]:
    """Colour, marker, width and dashes of the line number `index` of a figure."""
    color = PALETTE[index % len(PALETTE)]
    return {
        "color": color,
        "marker": MARKERS[(index + index // len(PALETTE)) % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "linewidth": 2.4 if strong else 1.3,
        "linestyle": (0, (4, 2)) if dashed else "-",
        "zorder": 4 if strong else 3,
    }


def new_figure(height_in: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of the page's width and its panels, row by row."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, [axes for line in grid for axes in line]


def short_bytes(num_bytes: float) -> str:
    """Three digits and a decimal unit, for ticks: 10491 -> '10.5 KB'."""
    unit, scale = byte_unit(num_bytes)
    return f"{num_bytes / scale:.3g} {unit}"


def error_bars(
    axes: Axes, x: Sequence[float], y: Sequence[float], ends: Sequence[Ends], color: str, *, across: bool = False
) -> None:
    """Draw the interval (low, high) of each point that has one, as a thin bar: upright, or across, of x."""
    known = [(x[i], y[i], *both) for i, both in enumerate(ends) if both is not None]
    if known:
        right, up, low, high = (np.array(values) for values in zip(*known, strict=True))
        value = right if across else up
        bars = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
        upright, level = (None, bars) if across else (bars, None)
        axes.errorbar(right, up, upright, level, fmt="none", ecolor=color, elinewidth=0.9, capsize=2.2, zorder=3)


def around(value: float | None, margin: float | None) -> Ends:
    """The ends of an interval of which half the width is known."""
    return None if value is None or margin is None else (value - margin, value + margin)


def yardstick(axes: Axes, value: float, text: str, color: str = INK) -> EndLabel:
    """Draw a dashed horizontal yardstick and return its label."""
    axes.axhline(value, color=color, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    return EndLabel(text, axes.get_xlim()[1], value, color)


def finish(figure: Figure, name: str, title: str, alt: str) -> Plot:
    """Close a figure: its SVG with `alt` as text alternative; call it within `styled()`."""
    return Plot(name, title, alt, to_svg(figure, name, alt))
