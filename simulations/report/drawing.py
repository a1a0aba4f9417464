"""Style of every figure and its form as SVG: type, labels at line ends, words at points, the same bytes each time.

A line differs by its colour and its marker, and carries its name at its end instead of in a legend. Of every figure
there is a narrow form for telephones: panels below one another, names above.

Colours are Okabe and Ito's set ("Color Universal Design", 2008), told apart with any colour vision, without its yellow;
orange and sky are darkened until they stand out from white by 3 to 1, as figures must (WCAG 2.2, 1.4.11). Of every
colour there is a darker one for words, by 4.5 to 1. On dark paper both are the same light one. A page declares all of
them as variables; a figure that stands alone has the light ones.
"""

from __future__ import annotations

import gc
import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps
from html import escape
from importlib import import_module
from itertools import zip_longest
from textwrap import fill
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from fl_peel.figures import Estimate
from simulations.report.table_view import byte_unit, format_share

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = ("#0072b2", "#d55e00", "#009e73", "#c5699a", "#c27c00", "#2f93ce")
INK, MUTED, GRID, PAPER = "#222222", "#5c5c5c", "#e3e3e3", "#ffffff"
GRAPHICS = MappingProxyType(
    {
        "blue": (BLUE, "#5fb0e8"),
        "vermillion": (VERMILLION, "#f08c4a"),
        "green": (GREEN, "#3cc79c"),
        "purple": (PURPLE, "#df9cc1"),
        "orange": (ORANGE, "#e9b44c"),
        "sky": (SKY, "#8fcbf0"),
    }
)
"""Colours of lines, bars and marks: on light paper, on dark."""
PLAIN = MappingProxyType(
    {
        "ink": (INK, "#e6e6e6"),
        "muted": (MUTED, "#a8a8a8"),
        "line": (GRID, "#3a3a3a"),
        "paper": (PAPER, "#161616"),
        "code": ("#f6f6f6", "#222323"),
        "accent": ("#005f96", "#6cb6e8"),
    }
)
"""Colours of the page: words, lesser words, rules, paper, paper beneath code, what can be pressed."""


def darker(color: str) -> str:
    """The same hue, dark enough for small words on white."""
    return "#" + "".join(f"{round(0.72 * int(color[place : place + 2], 16)):02x}" for place in (1, 3, 5))


def variables() -> Mapping[str, tuple[str, str]]:
    """Return every colour by the name of its CSS variable: on light paper, on dark."""
    words = {f"{name}-text": (darker(light), dark) for name, (light, dark) in GRAPHICS.items()}
    words |= {"ink-text": (darker(INK), PLAIN["ink"][1]), "muted-text": (darker(MUTED), PLAIN["muted"][1])}
    return {**PLAIN, **GRAPHICS, **words}


def css(dark: bool) -> str:
    """The declarations of all variables."""
    return " ".join(f"--{name}: {tones[dark]};" for name, tones in variables().items())


def themed(svg: str) -> str:
    """A figure whose colours are the page's variables, and its own where the page has none."""
    names = {light: name for name, (light, _) in variables().items()}

    def named(match: re.Match[str]) -> str:
        name = names.get(match[0].lower())
        return match[0] if name is None else f"var(--{name}, {match[0]})"

    return re.sub(r"(?<=: )#[0-9a-fA-F]{6}\b", named, svg)


PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, MUTED)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LABEL_PT = 8.5
WIDTH_IN, NARROW_IN = 7.4, 3.7
"""Inches of width of a figure on a page of its usual width, and on a telephone."""
PAPER_WIDTHS_IN = {"column": 3.4, "page": 7.0}
"""Inches of width of a figure in a paper: in one of two columns, and across both."""
PNG_DPI = 300
NARROW_CHARACTERS = 30
"""Characters of an axis's name on a telephone, before it continues on the next line."""
LEGEND_IN = 0.19
"""Height of a name above a panel."""
TIP = "tip:"
"""Prefix of words that a figure shows at a point, while it is drawn."""
SERIES = "series:"
"""Prefix of the number of what can be switched off together, while it is drawn."""
Params = ParamSpec("Params")
MaybePlot = TypeVar("MaybePlot", bound="Plot | None")


class Helper(Protocol):
    """The pipe to a process that calls what it is sent."""

    def send(self, content: Any) -> None:
        """Send what is to be called."""

    def recv(self) -> Any:
        """Wait for what it returned."""


_helpers: ContextVar[Sequence[Helper]] = ContextVar("processes that draw", default=())

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same shapes on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titley": 1.0,  # else matplotlib measures tick labels again to place it
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', ['{INK}'])",
    "patch.edgecolor": INK,
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
    "pdf.fonttype": 42,  # text that can be selected, in fonts that publishers accept
}


@dataclass(frozen=True)
class Series:
    """A line that a page can switch off: its number (:func:`in_series`) and name."""

    number: int
    name: str


@dataclass(frozen=True)
class Plot:
    """A finished figure: `name` (also the prefix of its ids), heading, the same in words, its SVG, that of its narrow
    form, if it has one, and what a page can switch off.
    """

    name: str
    title: str
    alt: str
    svg: str
    narrow: str = ""
    series: tuple[Series, ...] = ()


@dataclass(frozen=True)
class PaperFigures:
    """Figures for a paper. names: those to save, None for all; seen: all that were drawn; files: by name."""

    form: str
    width_in: float
    names: Collection[str] | None
    seen: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, figure: Figure, name: str) -> None:
        """Save a figure in this form, if it is asked for; the same figure gives the same bytes."""
        import matplotlib

        self.seen.append(name)
        if self.names is None or name in self.names:
            matplotlib.rcParams["svg.hashsalt"] = name  # else ids are drawn anew
            buffer = io.BytesIO()
            dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
            figure.savefig(buffer, format=self.form, dpi=PNG_DPI, metadata=dates[self.form])
            self.files[f"{name}.{self.form}"] = buffer.getvalue()


_PAPER: ContextVar[PaperFigures | None] = ContextVar("_PAPER", default=None)


@contextmanager
def for_paper(figures: PaperFigures) -> Iterator[None]:
    """Collect every figure that is drawn meanwhile, in one form alone."""
    token = _PAPER.set(figures)
    try:
        yield
    finally:
        _PAPER.reset(token)


@contextmanager
def styled(width_in: float = WIDTH_IN) -> Iterator[None]:
    """Draw in the house style whatever the user's own matplotlib settings are; they come back afterwards.

    Nobody looks for garbage meanwhile: a figure is many small objects, and each search goes through all that a run has.
    """
    import matplotlib

    collecting = gc.isenabled()
    gc.disable()
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE | {"figure.figsize": (width_in, width_in)})
            yield
    finally:
        if collecting:
            gc.enable()


def in_both_forms(draw: Callable[Params, MaybePlot]) -> Callable[Params, MaybePlot]:
    """A function that draws a figure, wide and narrow, in the house style."""

    @wraps(draw)
    def both(*args: Params.args, **kwargs: Params.kwargs) -> MaybePlot:
        paper = _PAPER.get()
        if paper is not None:
            with styled(paper.width_in):
                return draw(*args, **kwargs)
        form = partial(_form, draw.__module__, draw.__qualname__)
        forms = [partial(form, width_in, *args, **kwargs) for width_in in (WIDTH_IN, NARROW_IN)]
        asked = [helper if _sent(helper, one) else None for helper, one in zip_longest(_helpers.get(), forms)]
        wide, narrow = (_drawn(helper, one) for helper, one in zip(asked, forms, strict=True))
        return cast(MaybePlot, None if wide is None or narrow is None else replace(wide, narrow=narrow.svg))

    return both


def _form(module: str, name: str, width_in: float, *args: Any, **kwargs: Any) -> Plot | None:
    """Return a figure of this width, by the name of the function that draws both forms."""
    with styled(width_in):
        plot: Plot | None = getattr(import_module(module), name).__wrapped__(*args, **kwargs)
    return plot


def _sent(helper: Helper | None, form: Callable[[], Plot | None]) -> bool:
    """Whether a process was asked to draw a form."""
    with suppress(OSError):
        if helper is not None:
            helper.send(form)
            return True
    return False


def _drawn(helper: Helper | None, form: Callable[[], Plot | None]) -> Plot | None:
    """Return a form, from the process that was asked for it or, where there is none any more, drawn here."""
    with suppress(EOFError, OSError):  # it may have ended for lack of memory
        if helper is not None:
            plot: Plot | None = helper.recv()
            return plot
    return form()


@contextmanager
def drawn_by(helpers: Sequence[Helper]) -> Iterator[None]:
    """Have wide and narrow forms drawn by two processes that call what they are sent, where there are some."""
    token = _helpers.set(helpers)
    try:
        yield
    finally:
        _helpers.reset(token)


def is_narrow() -> bool:
    """Whether the figure of the moment is drawn for a telephone, or for a paper's column."""
    import matplotlib

    return float(matplotlib.rcParams["figure.figsize"][0]) <= NARROW_IN


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Return `figure` as one `<svg>` element with a text alternative; call it within `styled()`.

    The same figure and name give the same bytes; ids start with `name`, so that several figures share a page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    matplotlib.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    # not by savefig, which draws what has a layout twice: once to measure, with the same result
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)  # type: ignore[no-untyped-call]
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    spoken = rf'<a xlink:href="{TIP}([^"]*)"[^>]*>(.*?)</a>'
    text = re.sub(spoken, r'<g class="tip"><title>\1</title>\2</g>', text, flags=re.DOTALL)
    text = re.sub(rf'id="{name}-{SERIES}(\d+)"', r'class="series" data-series="\1"', text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d{3,}", _two_decimals, path[0]), text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    start = text.index(">") + 1
    return f"{text[:start]}<title>{escape(alt)}</title>{text[start:]}"


def _two_decimals(number: re.Match[str]) -> str:
    """A hundredth of a point is not seen, and pages are a third smaller."""
    return f"{float(number[0]):.2f}"


@dataclass(frozen=True)
class EndLabel:
    """A name to write at the right end of a line, at (x, y) in data coordinates; series: as in :func:`in_series`."""

    text: str
    x: float
    y: float
    color: str
    bold: bool = False
    series: int | None = None


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write each label right of the axes, level with its line's end, moved apart where they would overlap; in the
    narrow form above the axes, but for series, which the page names.

    A leader goes level from the line's end to the edge, and from there to the label; as labels keep the order of the
    ends, no two leaders cross. Call it when the limits are final; the figure's layout engine makes the room.
    """
    if not labels:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    if is_narrow():
        _label_above(axes, [label for label in labels if label.series is None or _PAPER.get() is not None])
        return
    gap = (LABEL_PT + 3.5) / (axes.bbox.height * 72.0 / figure.dpi)  # of the axes' height
    axes.get_ylim()  # settles the limits, which are lazy, before places are read off them
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((label.x, label.y)) for label in labels]
    places = spread([float(end[1]) for end in ends], gap, 0.0, 1.0)
    for label, (right, height), place in zip(labels, ends, places, strict=True):
        color, series = label.color, label.series
        if right < 0.97:
            level = axes.plot((right, 1), (height, height), color=color, lw=0.6, alpha=0.55, transform=axes.transAxes)
            in_series(series, level)
        words = axes.annotate(
            label.text,
            xy=(min(max(right, 0.97), 1.0), height),
            xycoords="axes fraction",
            xytext=(1.035, place),
            textcoords="axes fraction",
            va="center",
            ha="left",
            fontsize=LABEL_PT,
            fontweight="bold" if label.bold else "normal",
            color=darker(color),
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": color,
                "lw": 0.6,
                "alpha": 0.55,
                "shrinkA": 1,
                "shrinkB": 0,
            },
            annotation_clip=False,
        )
        in_series(series, (words, *((words.arrow_patch,) if words.arrow_patch is not None else ())))


def _label_above(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Names with their lines above the axes, from the highest end to the lowest; the figure grows by what they take."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not labels:
        return
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    ordered = sorted(labels, key=lambda label: -label.y)
    drawn = {(line.get_color(), float(np.ravel(line.get_ydata())[-1])): line for line in axes.lines}
    handles = [drawn.get((label.color, label.y), Line2D([], [], color=label.color, linewidth=5)) for label in ordered]
    names = [fill(label.text.replace("\n", " "), NARROW_CHARACTERS + 4) for label in ordered]
    key = axes.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        frameon=False,
        fontsize=LABEL_PT,
        labelspacing=0.25,
        borderaxespad=0.2,
        handlelength=1.8,
    )
    for text, label in zip(key.get_texts(), ordered, strict=True):
        text.set_color(darker(label.color))
        text.set_fontweight("bold" if label.bold else "normal")
    figure.set_figheight(figure.get_figheight() + LEGEND_IN * sum(name.count("\n") + 1 for name in names))


def hover(axes: Axes, x: Sequence[float], y: Sequence[float], words: Sequence[str], series: int | None = None) -> None:
    """Show words at each point when it is pointed at."""
    if len(words):
        unseen = axes.scatter(x, y, s=190, facecolor=(1, 1, 1, 0), edgecolor="none", zorder=9)
        unseen.set_urls([f"{TIP}{text}" for text in words])
        in_series(series, [unseen])


def in_series(number: int | None, artists: Iterable[Artist]) -> None:
    """Mark what is drawn as part of the series of that number, which a page can switch off."""
    for artist in artists if number is not None else ():
        artist.set_gid(f"{SERIES}{number}")


def spread(wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Return places at least `gap` apart, in the order of `wanted` and as near to it as that allows.

    Places that are too near are merged into a block centred on their mean. All stay within `low` and `high`, unless
    they are too many: then they start at `low` and run over.
    """
    from scipy.optimize import isotonic_regression

    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    starts = isotonic_regression(np.asarray(wanted)[order] - steps).x  # merges by pool adjacent violators
    places = np.empty(len(wanted))
    places[order] = np.maximum(np.minimum(starts, high - steps[-1]), low) + steps
    return [float(place) for place in places]


def line_kwargs(index: int, *, strong: bool = True, dashed: bool = False) -> dict[str, Any]:
    """Colour, marker, width and dashes of the line number `index` of a figure."""
    color = PALETTE[index % len(PALETTE)]
    return {
        "color": color,
        "marker": MARKERS[(index + index // len(PALETTE)) % len(MARKERS)],
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.6,
        "linewidth": 2.4 if strong else 1.3,
        "linestyle": (0, (4, 2)) if dashed else "-",
        "zorder": 4 if strong else 3,
    }


def new_figure(
    height_in: float, rows: int = 1, columns: int = 1, *, narrow_columns: int = 1, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of the page's width and its panels, row by row; narrow ones have fewer columns."""
    import matplotlib
    from matplotlib.figure import Figure

    if is_narrow() and columns > narrow_columns:
        height_in *= 0.8 * columns / narrow_columns
        rows, columns = math.ceil(rows * columns / narrow_columns), narrow_columns
        kwargs.pop("width_ratios", None)
    figure = Figure(figsize=(float(matplotlib.rcParams["figure.figsize"][0]), height_in), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": _panel_class()}, **kwargs)
    return figure, [axes for line in grid for axes in line]


@cache
def _panel_class() -> type[Axes]:
    """Return a kind of panel that is measured once, and then has the names of its axes beside the tick labels, those of
    panels above one another in line: layout and drawing would measure all tick labels eight times. The room that they
    take does not depend on the panel's size.
    """
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox, ScaledTranslation

    class Panel(Axes):
        room: Any = None

        def get_tightbbox(self, renderer: Any = None, **kwargs: Any) -> Any:
            figure = self.get_figure(root=True)
            assert figure is not None
            if self.room is None:
                measure([axes for axes in figure.axes if isinstance(axes, Panel)], renderer, figure)
            panel = self.get_position(original=True).transformed(figure.transFigure)
            return Bbox.from_extents(*(panel.extents + self.room))

    def columns_of(panel: Panel) -> range:
        place = panel.get_subplotspec()
        assert place is not None
        return place.colspan

    def measure(panels: Sequence[Panel], renderer: Any, figure: Figure) -> None:
        ticks = {}
        for panel in panels:
            for axes in (panel, *panel.child_axes):
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_label_coords(0.5, 0.5)  # within the panel, where a name needs no room
            both = (panel.xaxis, panel.yaxis)
            ticks[panel] = [axis.get_tightbbox(renderer, for_layout_only=True) or panel.bbox for axis in both]
        for panel, (x_ticks, y_ticks) in ticks.items():
            column = [other for other in panels if columns_of(other) == columns_of(panel)]
            left = min(ticks[other][1].x0 - other.bbox.x0 for other in column) / figure.dpi - panel.yaxis.labelpad / 72
            down = (x_ticks.y0 - panel.bbox.y0) / figure.dpi - panel.xaxis.labelpad / 72
            names = []
            for axis, x, y, right, up in ((panel.yaxis, 0.0, 0.5, left, 0.0), (panel.xaxis, 0.5, 0.0, 0.0, down)):
                axis.set_label_coords(x, y, panel.transAxes + ScaledTranslation(right, up, figure.dpi_scale_trans))
                names.append(axis.label.get_window_extent(renderer) if axis.get_label_text() else panel.bbox)
            for artist in (panel.xaxis, panel.yaxis, *panel.spines.values()):
                artist.set_in_layout(False)  # measured already
            rest = Axes.get_tightbbox(panel, renderer, for_layout_only=True)
            assert rest is not None
            x0, y0, x1, y1 = Bbox.union([rest, x_ticks, y_ticks]).extents
            panel.room = np.subtract((min(x0, names[0].x0), min(y0, names[1].y0), x1, y1), panel.bbox.extents)

    return Panel


def short_bytes(num_bytes: float) -> str:
    """Three digits and a decimal unit, for ticks: 10491 -> '10.5 KB'."""
    unit, scale = byte_unit(num_bytes)
    return f"{num_bytes / scale:.3g} {unit}"


def error_bars(
    axes: Axes,
    places: Sequence[float],
    figures: Sequence[Estimate],
    color: str,
    *,
    across: bool = False,
    series: int | None = None,
) -> None:
    """Draw the interval of each figure that has one, as a thin bar at its place: upright, or across."""
    known = [(place, figure.value, *figure.ends) for place, figure in zip(places, figures, strict=True) if figure.ends]
    if known:
        place, value, low, high = (np.array(values) for values in zip(*known, strict=True))
        bars = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
        x, y, upright, level = (value, place, None, bars) if across else (place, value, bars, None)
        drawn = axes.errorbar(x, y, upright, level, fmt="none", ecolor=color, elinewidth=0.9, capsize=2.2, zorder=3)
        in_series(series, (*drawn.lines[1], *drawn.lines[2]))


@dataclass(frozen=True)
class Line:
    """A line of a figure: its label, its points, and words at each of them. aside: factor by which error bars stand
    beside their points; series: as in :func:`in_series`.
    """

    name: str
    x: Sequence[float]
    figures: Sequence[Estimate]
    words: Sequence[str] = ()
    bold: bool = False
    aside: float = 1.0
    series: int | None = None


def draw_line(axes: Axes, line: Line, style: Mapping[str, Any]) -> EndLabel:
    """Draw a line with error bars, and words at each of its points; return its label."""
    y = [figure.value for figure in line.figures]
    in_series(line.series, axes.plot(line.x, y, **style))
    error_bars(axes, [at * line.aside for at in line.x], line.figures, style["color"], series=line.series)
    hover(axes, line.x, y, line.words, line.series)
    return EndLabel(line.name, line.x[-1], y[-1], style["color"], line.bold, line.series)


def yardstick(axes: Axes, value: float, text: str, color: str = INK) -> EndLabel:
    """Draw a dashed horizontal yardstick and return its label."""
    axes.axhline(value, color=color, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    return EndLabel(text, axes.get_xlim()[1], value, color)


def share_axis(axes: Axes, shares: Sequence[float], full_bytes: float | None) -> None:
    """Log x axis in % of the fp32 full table, ticks at the budgets measured; KB along the top. Where names would touch,
    ticks have none: the ends have theirs first, then powers of ten.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    ticks = sorted(set(shares))
    axes.set_xscale("log")
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    words = [format_share(tick) for tick in ticks]
    sizes = [short_bytes(tick * full_bytes) for tick in ticks] if full_bytes and not is_narrow() else words
    named = _with_room(axes, ticks, [max(pair, key=len) for pair in zip(words, sizes, strict=True)])
    axes.set_xticks(ticks, [word if tick in named else "" for tick, word in zip(ticks, words, strict=True)], rotation=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    if is_narrow():
        axes.set_xlabel("budget, share of the full table (log scale)")
        return
    axes.set_xlabel("budget, % of the bytes of the fp32 full item table (log scale)")
    if full_bytes:
        top = axes.secondary_xaxis("top")
        top.set_xticks(ticks, [size if tick in named else "" for tick, size in zip(ticks, sizes, strict=True)])
        top.xaxis.set_minor_locator(NullLocator())
        top.xaxis.set_minor_formatter(NullFormatter())
        top.tick_params(colors=MUTED, length=2, labelsize=7.5)
        top.spines["top"].set_visible(False)


def _with_room(axes: Axes, ticks: Sequence[float], names: Sequence[str]) -> set[float]:
    """Return the ticks of a log axis whose names do not touch: of ticks that do, the more round one."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    # what a panel has of the figure's width, beside the names of its lines in the wide form
    inches = figure.get_figwidth() * (0.75 if is_narrow() else 0.6)
    per_decade = 72 * inches / math.log10(axes.get_xlim()[1] / axes.get_xlim()[0])
    kept: dict[float, float] = {}  # half the width of a name in points, by its tick
    ends = (ticks[0], ticks[-1])
    for tick in sorted(ticks, key=lambda one: (one not in ends, not round(math.log10(one), 9).is_integer(), one)):
        half = 0.31 * LABEL_PT * len(names[ticks.index(tick)]) + 2
        if all(abs(math.log10(tick / other)) * per_decade >= half + width for other, width in kept.items()):
            kept[tick] = half
    return set(kept)


def line_aside(index: int, count: int) -> float:
    """Return the factor by which bars of line ``index`` of ``count`` stand beside others, over :func:`share_axis`."""
    return float(1.025 ** (index - (count - 1) / 2))


def round_axis(axes: Axes, num_rounds: int) -> None:
    """Rounds counted from 1, each half a unit to either side."""
    axes.set_xlim(0.5, num_rounds + 0.5)
    steps = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if num_rounds / step <= 10]
    step = steps[0] if steps else num_rounds
    axes.set_xticks([1, *range(step, num_rounds + 1, step)] if step > 1 else range(1, num_rounds + 1))


def finish(figure: Figure, name: str, title: str, alt: str) -> Plot:
    """Close a figure: its SVG with `alt` as text alternative; call it within `styled()`."""
    if is_narrow():
        for axes in figure.axes:
            axes.xaxis.label.set_text(fill(axes.get_xlabel(), NARROW_CHARACTERS))
    paper = _PAPER.get()
    if paper is not None:
        paper.add(figure, name)
        return Plot(name, title, alt, "")
    return Plot(name, title, alt, to_svg(figure, f"{name}-narrow" if is_narrow() else name, alt))
