"""The quality under budgets, against full tables: a table of each, the lead figure, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from fl_peel.figures import Estimate
from simulations.report import drawing
from simulations.report.drawing import GREEN, INK, MUTED, PAPER, Plot, Series, darker
from simulations.report.render import Chart, Remark, Section
from simulations.report.run_files import own_rows
from simulations.report.table_view import (
    FULL_TABLES,
    TableView,
    format_bytes,
    format_estimate,
    format_kilobytes,
    format_metric,
    format_ratio,
    format_share,
    selector_name,
)
from strategies.figures.schema import BudgetRow, RunResult, UserGroupRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def quality(result: RunResult) -> Section:
    """Return the section: the lead figure, why a smaller table can be better, the budgets, the full tables."""
    why = why_less(result)
    return Section(
        "quality",
        "Quality under a budget",
        (
            *(Remark(sentence, terminal=True) for sentence in missing_nodes(result)),
            Chart(lambda: budgets_plot(result), CAPTION),
            Remark(why) if why else None,
            budgets_view(result) if result.budgets else None,
            full_table_view(result),
        ),
    )


def missing_nodes(result: RunResult) -> list[str]:
    """Say which nodes the run went on without, one sentence each."""
    excluded = (None if result.environment is None else result.environment.excluded_nodes) or {}
    return [
        f"Without node {node} and its devices: it failed or gave wrong answers ({failure})."
        for node, failure in excluded.items()
    ]


CAPTION = (
    "Recall relative to the full model, the full fp32 table that is best on validation (dashed, at 1). Each point is "
    "one budget, the same for every device, without retraining between points. Bars: paired 95 % intervals over "
    "devices; a bar across the dashed line is no significant difference. Bold: what devices are sent."
)


def why_less(result: RunResult) -> str:
    """Explain why a smaller table can be better, where the figure shows that it is; return nothing elsewhere."""
    rows = own_rows(result)
    least = "exposure" if result.scenario.get("selector") == "exposure" else "weight"
    left_out = (
        "An item without a stored block is not recommended, and the items left out are those with the least "
        f"{least} in the user group"
    )
    if shares := _significant(row for row in rows if _low(row.to_strongest) > 1):
        return (
            f"At budgets of {shares} the smaller table is significantly better than the best full table. {left_out}, "
            "so that they do not displace relevant items from a list."
        )
    groups = [quality for name, quality in result.full_table.tables.items() if name != "global"]
    own = max(groups, key=lambda one: one.recall, default=None)
    shares = _significant(row for row in rows if _low(row.to_global) > 1)
    if not shares or own is None or _low(own.to_global) <= 1 or own.to_global is None:
        return ""
    return (
        f"At budgets of {shares} the smaller table is significantly better than the full global table, because each "
        f"user group has its own: the full group tables already reach {format_ratio(own.to_global)} times the recall "
        f"of the global table, and shrinking them costs little of it. {left_out}."
    )


def _low(ratio: Estimate | None) -> float:
    return 0.0 if ratio is None or ratio.low is None else ratio.low


def _significant(rows: Iterable[BudgetRow]) -> str:
    """The budgets of rows in words, the smallest and the largest."""
    shares = sorted({row.share for row in rows})
    if not shares:
        return ""
    return " to ".join(format_share(share) for share in dict.fromkeys((shares[0], shares[-1])))


NOT_MEASURED = "Not measured (evaluation.full_tables is false), so that ratios are not available."


def full_table_view(result: RunResult) -> TableView:
    """The full fp32 table, as pretrained, at the start and refined; its bytes alone where it was not measured."""
    full = result.full_table
    over_global = any(quality.to_global is not None for quality in full.tables.values())
    rows = tuple(
        (
            FULL_TABLES[name],
            format_bytes(full.bytes),
            format_estimate(quality.recall),
            format_estimate(quality.ndcg),
            *((format_ratio(quality.to_global),) if over_global else ()),
        )
        for name, quality in full.tables.items()
    )
    note = "" if rows else NOT_MEASURED
    rows = rows or (("any", format_bytes(full.bytes), *(format_metric(None),) * 2),)
    columns: tuple[str, ...] = ("table", "size", f"Recall@{result.top_n}", f"NDCG@{result.top_n}")
    columns += ("relative to global",) if over_global else ()
    return TableView("Full item table, fp32", columns, rows, note=note, terminal=True)


def budgets_view(result: RunResult) -> TableView:
    """Elastic embeddings per budget: recall, and over that of the full global table and of the strongest of the run."""
    named = dict.fromkeys((result.full_table.strongest, "global"))
    against = [name for name in named if any(_against(row, name) is not None for row in result.budgets)]
    own = own_rows(result)
    rows = tuple(
        (
            f"{row.precision} {row.selector}",
            format_share(row.share),
            format_estimate(row.recall),
            *(format_ratio(_against(row, name)) for name in against),
            format_metric(row.ndcg.value),
            format_kilobytes(row.budget_bytes),
            format_kilobytes(row.stored_bytes_max),
        )
        for row in sorted(result.budgets, key=lambda row: (row not in own, row.precision, row.selector, row.share))
    )
    columns = (
        *("blocks", "share", f"Recall@{result.top_n}"),
        *(f"relative to {'global' if name == 'global' else 'best'}" for name in against),
        *(f"NDCG@{result.top_n}", "budget KB", "stored KB"),
    )
    best = f" ({FULL_TABLES[strongest]})" if (strongest := result.full_table.strongest) is not None else ""
    note = (
        "Share: of the bytes of the fp32 full table (1 KB = 1000 bytes); stored: largest size on any device. Relative "
        f"to: paired ratio of Recall@{result.top_n} to that of the full global table, and of the best full table on "
        f"validation{best}. In brackets: 95 % intervals over devices. On a static split as here, a cached list of the "
        f"full table's first {result.top_n} items has the same recall in a few bytes; over time it falls behind "
        "(docs/timeline.md)."
    )
    brief = ("share", f"Recall@{result.top_n}", "relative to best", "budget KB")
    return TableView(
        "Elastic embeddings by budget", columns, rows, 1, note, slider=len(rows) > 1, brief=brief, terminal=True
    )


def _against(row: BudgetRow, name: str | None) -> Estimate | None:
    """Recall over that of the global table, or of the strongest, by name."""
    return row.to_global if name == "global" else row.to_strongest


MOST_COLORED = 6
"""Lines with a colour and a name at their end; others are grey, and a page can switch them off."""


@drawing.in_both_forms
def budgets_plot(result: RunResult) -> Plot | None:
    """Draw recall relative to the best full table against the budget, a line for each precision and selector."""
    drawn = budgets_figure(result)
    if drawn is None:
        return None
    figure, words, series = drawn
    return replace(drawing.finish(figure, "budgets", "Recall relative to the full model", words), series=series)


def budgets_figure(result: RunResult) -> tuple[Figure, str, tuple[Series, ...]] | None:
    """Return the same as a figure, in words, and the lines that can be switched off; draw it within `styled()`.

    The line of what devices are sent comes first. Without full tables, recall itself is drawn.
    """
    rows = sorted(result.budgets, key=lambda row: (row.precision, row.selector, row.share))
    if not rows:
        return None
    own = {(row.precision, row.selector) for row in own_rows(result)}
    lines = [(key, list(group)) for key, group in groupby(rows, key=lambda row: (row.precision, row.selector))]
    lines.sort(key=lambda line: line[0] not in own)
    full, ratios = result.full_table, all(row.to_strongest is not None for row in rows)
    figure, (axes,) = drawing.new_figure(3.0 if drawing.is_narrow() else 4.1)
    drawing.share_axis(axes, [row.share for row in rows], full.bytes)
    labels, words, series, drawn = [], [], [], []
    for index, ((precision, selector), line) in enumerate(lines):
        # what chose the blocks is named where there is a choice
        name = f"{precision}, by {selector_name(selector)}" if len({row.selector for row in rows}) > 1 else precision
        figures = [row.to_strongest if ratios and row.to_strongest else row.recall for row in line]
        x, style, number = [row.share for row in line], drawing.line_kwargs(index), None
        if index >= MOST_COLORED:
            number = index
            style |= {"color": MUTED, "linewidth": 1.0, "alpha": 0.5, "zorder": 2}
            series.append(Series(number, name))
        tips, aside = [_budget_words(row, name) for row in line], drawing.line_aside(index, len(lines))
        bold = (precision, selector) in own
        label = drawing.draw_line(axes, drawing.Line(name, x, figures, tips, bold, aside, number), style)
        labels += [label] if number is None else []
        drawn += figures
        first, last = figures[0].value, figures[-1].value
        words.append(f"{name} goes from {first:.4g} at {format_share(x[0])} to {last:.4g} at {format_share(x[-1])}")
    best = full.tables.get(full.strongest or "")
    if ratios and best is not None and best.recall.value > 0:
        for name, quality in full.tables.items():
            if name in (full.strongest, "global"):
                ratio = quality.recall.value / best.recall.value
                text, color = ("full model", INK) if name == full.strongest else (FULL_TABLES[name], MUTED)
                labels.append(drawing.yardstick(axes, ratio, text, color))
                drawn.append(Estimate(ratio))
                words.append(f"{FULL_TABLES[name]}: {ratio:.4g}")
    low = min(one.value if one.low is None else one.low for one in drawn)
    high = max(one.value if one.high is None else one.high for one in drawn)
    pad = 0.08 * ((high - low) or abs(high) or 1.0)
    axes.set_ylim(low - pad, high + pad)
    what = f"Recall@{result.top_n}" + (", relative to the full model" if ratios else "")
    axes.set_ylabel(f"{what} (test)")
    drawing.label_ends(axes, labels)
    return figure, f"Line chart of {what}, against the budget: {'; '.join(words)}.", tuple(series)


def _budget_words(row: BudgetRow, name: str) -> str:
    over = "" if row.to_strongest is None else f", {format_ratio(row.to_strongest)} times the full model's"
    return f"{name}: {format_estimate(row.recall)} at {format_share(row.share)}, {format_bytes(row.budget_bytes)}{over}"


def groups(result: RunResult) -> Section:
    """Return the section."""
    caption = (
        f"Recall@{result.top_n} by user group. Groups differ in how predictable their users are, so compare runs "
        "group by group rather than groups with one another. Thin lines: 95 % intervals over devices."
    )
    return Section("groups", "User groups", (Chart(lambda: recall_by_group(result), caption),))


MAX_NAMED_GROUPS = 32  # more user groups than this are not named one by one


@drawing.in_both_forms
def recall_by_group(result: RunResult) -> Plot | None:
    """Recall of each user group; beyond `MAX_NAMED_GROUPS` groups the bars are sorted and unnamed."""
    rows: Sequence[UserGroupRow] = result.user_groups
    if len(rows) > MAX_NAMED_GROUPS:
        rows = sorted(rows, key=lambda row: row.recall.value if row.recall else 0.0)
    measured = [
        (str(row.group), row.recall.value, f"{row.devices:,} devices" if len(rows) <= 10 else "")
        for row in rows
        if row.recall is not None
    ]
    if not measured:
        return None
    figure, (axes,) = drawing.new_figure(2.8)
    x = np.arange(len(measured))
    heights = [value for _, value, _ in measured]
    recalls = [row.recall for row in rows if row.recall is not None]
    axes.bar(x, heights, width=min(0.72, 0.14 * len(measured) + 0.1), color=darker(GREEN))
    drawing.hover(axes, x.tolist(), heights, [f"user group {group}: {value:.4f}" for group, value, _ in measured])
    color = INK if len(measured) <= MAX_NAMED_GROUPS else MUTED
    drawing.error_bars(axes, [float(place) for place in x], recalls, color)
    axes.set_xlim(-0.6, len(measured) - 0.4)
    axes.grid(visible=False, axis="x")
    if len(measured) <= MAX_NAMED_GROUPS:
        axes.set_xticks(x, [f"{label}\n{detail}".rstrip() for label, _, detail in measured])
        axes.set_xlabel("user group")
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(measured)} user groups, sorted by recall")
    if len(measured) <= 10:
        for place, value in zip(x, heights, strict=True):
            inside = value > 0.15 * max(heights)
            axes.annotate(
                f"{value:.4f}",
                (float(place), value),
                xytext=(0, -5 if inside else 3),
                textcoords="offset points",
                ha="center",
                va="top" if inside else "bottom",
                fontsize=drawing.LABEL_PT,
                color=PAPER if inside else INK,
                fontweight="bold",
            )
    tables, lines = result.full_table.tables, (("global", MUTED), ("refined", INK))
    marks = [(name, tables[name].recall.value, color) for name, color in lines if name in tables]
    axes.set_ylabel(f"Recall@{result.top_n}")
    top = max([*heights, *(value for _, value, _ in marks), *(recall.high or 0.0 for recall in recalls)])
    axes.set_ylim(0, top * 1.12 if top else 1)
    drawing.label_ends(
        axes, [drawing.yardstick(axes, value, f"full table, {name}", color) for name, value, color in marks]
    )
    low, high = min(measured, key=lambda bar: bar[1]), max(measured, key=lambda bar: bar[1])
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(measured)} user groups: from {low[1]:.4f} ({low[0]}) "
        f"to {high[1]:.4f} ({high[0]})."
    )
    return drawing.finish(figure, "groups", "Recall by user group", alt)
