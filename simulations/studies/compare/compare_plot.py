"""Figure of a comparison: every method's quality against the bytes that a device stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from simulations.report import drawing
from simulations.report.drawing import Plot, Series
from simulations.report.labels import metric_name
from simulations.report.table_view import format_bytes, format_estimate, format_share
from simulations.report.theme import MUTED
from simulations.studies.schema import CompareResult, CompareRow, Leaderboard, StudyFullTable


@drawing.in_both_forms
def compare_plot(result: CompareResult | Leaderboard) -> Plot:
    """The comparison's figure: Recall@20 above, NDCG@20 below, against stored bytes.

    One line a method, of the precisions that validation chose, each of which a page can switch off; methods that serve
    each user group differently are solid, the others dashed; `peel` is the widest. Error bars show intervals or, where
    these are not known, standard deviations over seeds. The full table is a yardstick, and the top axis tells bytes as
    a share of it. Rows of budgets in which nothing fits have no place on an axis of bytes.
    """
    lines: dict[str, list[CompareRow]] = {}
    fitting = [row for row in result.rows if row.stored_bytes_max > 0] or result.rows
    for row in (row for row in fitting if row.chosen):
        lines.setdefault(row.method, []).append(row)
    order = sorted(lines, key=lambda method: (method != "peel", not lines[method][0].group_aware))
    figure, panels = drawing.new_figure(
        2 * max(3.1, 0 if drawing.is_narrow() else 0.22 * (len(lines) + 3)), 2, 1, sharex=True
    )
    for axes, metric in zip(panels, ("recall@20", "ndcg@20"), strict=True):
        _compare_panel(axes, metric, [(method, lines[method]) for method in order], result.full_table)
    panels[-1].set_xlabel(
        "stored on the device (log scale)"
        if drawing.is_narrow()
        else "stored on the device (log scale; top: % of the fp32 full table)\n"
        "solid: a table per user group; dashed: one table for all"
    )
    if not drawing.is_narrow():
        shares = sorted({row.share for group in lines.values() for row in group})
        _share_ticks(panels[0], shares, result.full_table.bytes)
    series = tuple(Series.from_number(number, method) for number, method in enumerate(order))
    return replace(drawing.finish(figure, "compare", "Quality against bytes", compare_alt(result.rows)), series=series)


def _compare_panel(
    axes: Axes,
    metric: str,
    lines: Sequence[tuple[str, list[CompareRow]]],
    full_table: StudyFullTable,
) -> None:
    labels = []
    axes.set_xscale("log")
    for index, (name, group) in enumerate(lines):
        points = sorted(group, key=lambda row: row.stored_bytes_max)
        x = [max(point.stored_bytes_max, 1) for point in points]
        strong = name == "peel"
        style = drawing.line_kwargs(index, strong=strong, dashed=not group[0].group_aware)
        figures = [point.metric(metric) for point in points]
        tips = [f"{name}: {_point_text(point, metric)}" for point in points]
        labels.append(drawing.draw_line(axes, drawing.Line(name, x, figures, tips, strong, series=index), style))
    value = full_table.metric(metric).value
    labels.append(drawing.yardstick(axes, value, f"full table, fp32 {value:.4f}"))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{metric_name(metric)} (test)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.short_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, axis="x")
    drawing.label_ends(axes, labels)


def _point_text(point: CompareRow, metric: str) -> str:
    size = format_bytes(point.stored_bytes_max)
    return f"{format_estimate(point.metric(metric))} at {format_share(point.share)}, {size} stored"


def _share_ticks(axes: Axes, shares: Sequence[float], full_bytes: int) -> None:
    top = axes.secondary_xaxis("top")
    top.set_xticks([share * full_bytes for share in shares], [format_share(share) for share in shares])
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(colors=MUTED, length=2, labelsize=7.5)
    top.spines["top"].set_visible(False)


def compare_alt(rows: Sequence[CompareRow]) -> str:
    """The figure in words: which method validation likes best at each budget."""
    best: dict[float, CompareRow] = {}
    for row in (row for row in rows if row.chosen and not row.ceiling):
        if row.share not in best or row.validation_recall > best[row.share].validation_recall:
            best[row.share] = row
    words = [
        f"at {format_share(share)} {best[share].method} with {best[share].recall.value:.4f}" for share in sorted(best)
    ]
    return f"Line charts of Recall@20 and NDCG@20 against stored bytes. Best on validation: {'; '.join(words)}."
