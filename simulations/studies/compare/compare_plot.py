"""Figure of a comparison: every method's recall against the bytes that a device stores, beside PEEL's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.table_view import format_bytes, format_estimate, format_share
from simulations.report.theme import BLUE, INK, VERMILLION
from simulations.studies.schema import CompareResult, CompareRow, Leaderboard

PANELS, NARROW_PANELS = 4, 2
"""Panels beside one another on a page, and on a telephone."""
METRIC = "recall@20"


@drawing.in_both_forms
def compare_plot(result: CompareResult | Leaderboard) -> Plot:
    """The comparison's figure: a panel for each method, with recall against stored bytes; in every panel the line of
    `peel`, and the full table.

    Lines are of the precisions that validation chose; those of methods that have one table for all users are dashed.
    Error bars show intervals or, where these are not known, standard deviations over seeds. Rows of budgets in which
    nothing fits have no place on an axis of bytes.
    """
    lines: dict[str, list[CompareRow]] = {}
    fitting = [row for row in result.rows if row.stored_bytes_max > 0] or result.rows
    for row in sorted((row for row in fitting if row.chosen), key=lambda row: row.stored_bytes_max):
        lines.setdefault(row.method, []).append(row)
    peel = lines.pop("peel", [])
    order = sorted(lines, key=lambda method: not lines[method][0].group_aware) or ["peel"]
    columns = min(NARROW_PANELS if drawing.is_narrow() else PANELS, len(order))
    rows = math.ceil(len(order) / columns)
    figure, panels = drawing.new_figure(
        1.45 * rows + 0.6, rows, columns, narrow_columns=columns, sharex=True, sharey=True
    )
    for panel in panels[len(order) :]:
        panel.remove()
    for panel in panels[max(len(order) - columns, 0) : len(order)]:
        panel.tick_params(labelbottom=True)
    for panel, method in zip(panels, order, strict=False):
        panel.set_xscale("log")
        panel.axhline(result.full_table.metric(METRIC).value, color=INK, linewidth=0.8, linestyle=(0, (5, 3)))
        _draw(panel, "peel", peel, BLUE)
        if method in lines:
            _draw(panel, method, lines[method], VERMILLION)
        panel.set_title(method, fontsize=7.5, fontweight="normal")
    panels[0].xaxis.set_major_locator(LogLocator(numticks=3))
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.short_bytes(value)))
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylim(bottom=0)
    figure.supxlabel("bytes stored on the device (log scale)", fontsize=drawing.LABEL_PT)
    figure.supylabel("Recall@20 (test)", fontsize=drawing.LABEL_PT)
    return drawing.finish(figure, "compare", "Quality against bytes", compare_alt(result.rows))


def _draw(panel: Axes, method: str, rows: Sequence[CompareRow], color: str) -> None:
    """Draw a method's line, with words at its points."""
    if rows:
        tips = [f"{method}: {_point_text(row)}" for row in rows]
        style = {"color": color, "marker": "o", "markersize": 3, "linewidth": 1.3}
        style["linestyle"] = "-" if rows[0].group_aware else (0, (4, 2))
        x, recalls = [max(row.stored_bytes_max, 1) for row in rows], [row.metric(METRIC) for row in rows]
        drawing.draw_line(panel, drawing.Line(method, x, recalls, tips), style)


def _point_text(row: CompareRow) -> str:
    size = format_bytes(row.stored_bytes_max)
    return f"{format_estimate(row.metric(METRIC))} at {format_share(row.share)}, {size} stored"


def compare_alt(rows: Sequence[CompareRow]) -> str:
    """The figure in words: which method validation likes best at each budget."""
    best: dict[float, CompareRow] = {}
    for row in (row for row in rows if row.chosen and not row.ceiling):
        if row.share not in best or row.validation_recall > best[row.share].validation_recall:
            best[row.share] = row
    words = [
        f"at {format_share(share)} {best[share].method} with {best[share].recall.value:.4f}" for share in sorted(best)
    ]
    return f"Line charts of Recall@20 against stored bytes. Best on validation: {'; '.join(words)}."
