"""Figure of a comparison: every method's quality against the bytes that a device stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from simulations.report.plots.style import (
    MUTED,
    EndLabel,
    Ends,
    Plot,
    Series,
    around,
    error_bars,
    finish,
    hover,
    in_both_forms,
    in_series,
    is_narrow,
    label_ends,
    line_kwargs,
    new_figure,
    short_bytes,
    yardstick,
)
from simulations.report.tables.labels import metric_name
from simulations.report.tables.table_view import format_bytes, format_interval, format_share
from simulations.studies.compare.schema import CompareFullTable, CompareRow


@in_both_forms
def compare_plot(rows: Sequence[CompareRow], full_table: CompareFullTable | None = None) -> Plot:
    """The comparison's figure: Recall@20 above, NDCG@20 below, against stored bytes.

    One line a method and precision (of which the label is silent where it is empty), each of which a page can switch
    off; methods that serve each user group differently are solid, the others dashed; `peel` is the widest. Error bars
    show `recall@20_interval` and `ndcg@20_interval`, or the `_std` over seeds, where rows carry them. With `full_table`
    its quality is a yardstick and the top axis tells bytes as a share of it.
    """
    lines: dict[tuple[str, str], list[CompareRow]] = {}
    for row in rows:
        lines.setdefault((row["method"], row["precision"]), []).append(row)
    order = sorted(lines, key=lambda key: (key[0] != "peel", not lines[key][0]["group_aware"]))
    figure, panels = new_figure(2 * max(3.1, 0 if is_narrow() else 0.22 * (len(lines) + 3)), 2, 1, sharex=True)
    for axes, metric in zip(panels, ("recall@20", "ndcg@20"), strict=True):
        _compare_panel(axes, metric, [(key, lines[key]) for key in order], full_table)
    panels[-1].set_xlabel(
        "stored on the device (log scale)"
        if is_narrow()
        else "stored on the device (log scale; top: % of the fp32 full table)\n"
        "solid: a table per user group; dashed: one table for all"
    )
    if full_table is not None and not is_narrow():
        _share_ticks(panels[0], sorted({row["share"] for row in rows}), full_table["bytes"])
    series = tuple(Series.from_number(number, _name(*key)) for number, key in enumerate(order))
    return replace(finish(figure, "compare", "Quality against bytes", compare_alt(rows)), series=series)


def _name(method: str, precision: str) -> str:
    return f"{method} {precision}".strip()


def _compare_panel(
    axes: Axes,
    metric: str,
    lines: Sequence[tuple[tuple[str, str], list[CompareRow]]],
    full_table: CompareFullTable | None,
) -> None:
    labels = []
    axes.set_xscale("log")
    for index, (key, group) in enumerate(lines):
        points: list[Mapping[str, Any]] = sorted(group, key=lambda row: row["stored_bytes_max"])
        x = [max(point["stored_bytes_max"], 1) for point in points]
        y = [point[metric] for point in points]
        strong, name = key[0] == "peel", _name(*key)
        style = line_kwargs(index, strong=strong, dashed=not group[0]["group_aware"])
        in_series(index, axes.plot(x, y, **style))
        error_bars(axes, x, y, [_ends(point, metric) for point in points], style["color"], series=index)
        hover(axes, x, y, [f"{name}: {_point_text(point, metric)}" for point in points], index)
        labels.append(EndLabel(name, x[-1], y[-1], style["color"], strong, index))
    if full_table is not None:
        value = full_table["recall@20"] if metric == "recall@20" else full_table["ndcg@20"]
        labels.append(yardstick(axes, value, f"full table, fp32 {value:.4f}"))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{metric_name(metric)} (test)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, axis="x")
    label_ends(axes, labels)


def _point_text(point: Mapping[str, Any], metric: str) -> str:
    ends = _ends(point, metric) or (None, None)
    within = format_interval(point[metric], *ends)
    return f"{within} at {format_share(point['share'])}, {format_bytes(point['stored_bytes_max'])} stored"


def _ends(point: Mapping[str, Any], metric: str) -> Ends:
    """Return the ends of a point's interval; for rows without one, a standard deviation over seeds to either side."""
    if f"{metric}_interval" in point:
        low, high = point[f"{metric}_interval"]
        return low, high
    return around(point[metric], point.get(f"{metric}_std"))


def _share_ticks(axes: Axes, shares: Sequence[float], full_bytes: int) -> None:
    top = axes.secondary_xaxis("top")
    top.set_xticks([share * full_bytes for share in shares], [format_share(share) for share in shares])
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(colors=MUTED, length=2, labelsize=7.5)
    top.spines["top"].set_visible(False)


def compare_alt(rows: Sequence[CompareRow]) -> str:
    """The figure in words: which method validation likes best at each budget."""
    best: dict[float, CompareRow] = {}
    for row in (row for row in rows if not row.get("ceiling")):
        if row["share"] not in best or row["validation_recall@20"] > best[row["share"]]["validation_recall@20"]:
            best[row["share"]] = row
    words = [
        f"at {format_share(share)} {' '.join(filter(None, (best[share]['method'], best[share]['precision'])))} "
        f"with {best[share]['recall@20']:.4f}"
        for share in sorted(best)
    ]
    return f"Line charts of Recall@20 and NDCG@20 against stored bytes. Best on validation: {'; '.join(words)}."
