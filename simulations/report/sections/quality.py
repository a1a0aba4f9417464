"""The quality under budgets, against full tables: a table of each, the lead figure, and what it says in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from fl_peel.figures import Estimate
from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.labels import FULL_TABLES, selector_name
from simulations.report.section import Chart, Remark, Section
from simulations.report.table_view import (
    TableView,
    format_bytes,
    format_estimate,
    format_kilobytes,
    format_metric,
    format_ratio,
    format_share,
)
from simulations.report.theme import INK, MUTED, PURPLE
from strategies.figures.schema import BudgetRow, Gain, Quality, RunResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def quality(result: RunResult) -> Section:
    """Return the section: the lead figure, why a smaller table can be better, the budgets, the full tables."""
    why = why_less(result)
    return Section(
        "quality",
        "Quality under a budget",
        (
            *map(Remark, missing_nodes(result)),
            Chart(lambda: recall_by_budget(result), CAPTION),
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
    "Each point is one budget, the same for every device, without retraining between points. Dashed: full fp32 item "
    "tables, without a budget; the 95 % interval of the best one is grey. Bars: 95 % intervals over devices, of each "
    "point alone; the table below has paired intervals of ratios, which are narrower."
)


def lead(result: RunResult) -> str:
    """The run in one sentence: the smallest elastic embedding that is not significantly worse than the best full table,
    or the best one.
    """
    best = _strongest(result)
    full = None if best is None else best.quality.recall.value
    rows = sorted(result.budgets, key=lambda row: row.share)
    if not rows or (full is not None and full <= 0):
        return "Federated training of item tables that shrink to any memory budget."
    matching = [row for row in rows if full is not None and _as_good(row, full)]
    row = max(
        (row for row in matching if row.share == matching[0].share) if matching else rows,
        key=lambda row: row.recall.value,
    )
    start = (
        f"At {format_share(row.share)} of the bytes ({format_bytes(row.budget_bytes)}), "
        f"{row.precision} blocks ranked by {selector_name(row.selector)} reach "
    )
    if best is None or full is None:
        return f"{start}a Recall@{result.top_n} of {format_metric(row.recall.value)}; the full table was not measured."
    known = row.to_strongest
    over = f"{row.recall.value / full:.2f}" if known is None else format_ratio(known)
    return f"{start}{over} times the Recall@{result.top_n} of the best full table, the {FULL_TABLES[best.key]}."


def _as_good(row: BudgetRow, recall: float) -> bool:
    """Whether a full table of that recall is not better beyond chance."""
    high = None if row.to_strongest is None else row.to_strongest.high
    return row.recall.value >= recall or (high is not None and high >= 1)


def why_less(result: RunResult) -> str:
    """Explain why a smaller table can be better, where the figure shows that it is; return nothing elsewhere."""
    left_out = (
        "An item without a stored block is not recommended, and the items left out are those with the least "
        f"{'exposure' if _best_selector(result) == 'exposure' else 'weight'} in the user group"
    )
    if shares := _significant(row for row in result.budgets if _low(row.to_strongest) > 1):
        return (
            f"At budgets of {shares} the smaller table is significantly better than the best full table. {left_out}, "
            "so that they do not displace relevant items from a list."
        )
    groups = [quality for name, quality in result.full_table.tables.items() if name != "global"]
    own = max(groups, key=lambda one: one.recall, default=None)
    shares = _significant(row for row in result.budgets if _low(row.to_global) > 1)
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


def _best_selector(result: RunResult) -> str:
    """Return the selector by which the best elastic table chose its blocks."""
    return max(result.budgets, key=lambda row: row.recall).selector if result.budgets else ""


NOT_MEASURED = "Not measured (evaluation.full_tables is false), so that ratios are not available."


def full_table_view(result: RunResult) -> TableView:
    """The full fp32 table, as pretrained, as user groups start with it, and as refined; its bytes alone where it was
    not measured.
    """
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
    note = _gained(full.gain) if rows else NOT_MEASURED
    rows = rows or (("any", format_bytes(full.bytes), *(format_metric(None),) * 2),)
    columns: tuple[str, ...] = ("table", "size", f"Recall@{result.top_n}", f"NDCG@{result.top_n}")
    columns += ("relative to global",) if over_global else ()
    return TableView("Full item table, fp32", columns, rows, note=note)


def _gained(gain: Gain | None) -> str:
    """Return a sentence on what refinement adds."""
    if gain is None:
        return ""
    return (
        f"Paired gain of refinement in recall: {gain.recall.value:+.4f} "
        f"[{gain.recall.low:+.4f}, {gain.recall.high:+.4f}] (95 % interval over {gain.devices:,} devices)."
    )


def budgets_view(result: RunResult) -> TableView:
    """Elastic embeddings per budget: recall, and over that of the full global table and of the strongest of the run."""
    named = dict.fromkeys(("global", result.full_table.strongest))
    against = [name for name in named if any(_against(row, name) is not None for row in result.budgets)]
    rows = tuple(
        (
            row.precision,
            row.selector,
            format_share(row.share),
            format_kilobytes(row.budget_bytes),
            format_kilobytes(row.stored_bytes_max),
            format_estimate(row.recall),
            format_metric(row.ndcg.value),
            *(format_ratio(_against(row, name)) for name in against),
        )
        for row in sorted(result.budgets, key=lambda row: (row.precision, row.selector, row.share))
    )
    columns = (
        *("precision", "selector", "share", "budget KB", "stored KB"),
        *(f"Recall@{result.top_n}", f"NDCG@{result.top_n}"),
        *(f"relative to {'global' if name == 'global' else 'best'}" for name in against),
    )
    best = f" ({FULL_TABLES[strongest]})" if (strongest := result.full_table.strongest) is not None else ""
    note = (
        "Share: budget as a share of the fp32 full table. Stored: largest size on any device. 1 KB = 1000 bytes. "
        f"Relative to: ratio of Recall@{result.top_n} to that of the full global table, and of the best full table on "
        f"the test part{best}. In brackets: 95 % intervals over devices, paired for ratios."
    )
    return TableView("Elastic embeddings by budget", columns, rows, 2, note, slider=len(rows) > 1)


def _against(row: BudgetRow, name: str | None) -> Estimate | None:
    """Recall over that of the global table, or of the strongest, by name."""
    return row.to_global if name == "global" else row.to_strongest


@dataclass(frozen=True)
class FullTableRecall:
    """A full table that was measured: its name in report.json and for readers, its quality, the colour of its line."""

    key: str
    name: str
    quality: Quality
    color: str


def _strongest(result: RunResult) -> FullTableRecall | None:
    """The full table that ratios are relative to."""
    return next((one for one in full_recalls(result) if one.key == result.full_table.strongest), None)


def full_recalls(result: RunResult) -> list[FullTableRecall]:
    """The full tables that were measured, as yardsticks."""
    lines = {"global": ("global", MUTED), "start": ("before refinement", PURPLE), "refined": ("refined", INK)}
    return [FullTableRecall(key, lines[key][0], one, lines[key][1]) for key, one in result.full_table.tables.items()]


@drawing.in_both_forms
def recall_by_budget(result: RunResult) -> Plot | None:
    """Recall against the budget, one line per precision and selector, from zero, with the best full table and its
    interval for comparison. The global table is drawn, too.
    """
    drawn = recall_figure(result)
    return None if drawn is None else drawing.finish(drawn[0], "recall", "Recall against the budget", drawn[1])


def recall_figure(result: RunResult) -> tuple[Figure, str] | None:
    """The same as a figure, and in words; draw it within `styled()`."""
    rows = sorted(result.budgets, key=lambda row: (row.precision, row.selector, row.share))
    if not rows:
        return None
    figure, (axes,) = drawing.new_figure(4.1)
    drawing.share_axis(axes, [row.share for row in rows], result.full_table.bytes)
    labels, words = [], []
    lines = [(key, list(group)) for key, group in groupby(rows, key=lambda row: (row.precision, row.selector))]
    for index, ((precision, selector), line) in enumerate(lines):
        x, y = [row.share for row in line], [row.recall.value for row in line]
        name = f"{precision}, {line_name(selector, {row.selector for row in rows})}".removesuffix(", ")
        words.append(f"{name} goes from {y[0]:.4f} at {format_share(x[0])} to {y[-1]:.4f} at {format_share(x[-1])}")
        tips, aside = [_budget_words(row, name) for row in line], drawing.line_aside(index, len(lines))
        recalls, style = [row.recall for row in line], drawing.line_kwargs(index)
        labels.append(drawing.draw_line(axes, drawing.Line(name, x, recalls, tips, bold=True, aside=aside), style))
    full = sorted(full_recalls(result), key=lambda one: -one.quality.recall.value)
    best = _strongest(result)
    for one in full:
        if one == best or one.name == "global":
            kind, color = ("best full table", INK) if one == best else ("full table", MUTED)
            caption = f"{kind}: {one.name} {one.quality.recall.value:.4f}"
            labels.append(replace(drawing.yardstick(axes, one.quality.recall.value, caption, color), bold=one == best))
            words.append(f"{kind}, {one.name}: {one.quality.recall.value:.4f}")
    if best is not None and best.quality.recall.ends is not None:
        axes.axhspan(*best.quality.recall.ends, color=INK, alpha=0.08, linewidth=0, zorder=0)
    tops = [row.recall.high or row.recall.value for row in rows]
    axes.set_ylim(0, 1.1 * max([*tops, *([best.quality.recall.value] if best else []), 1e-9]))
    axes.set_ylabel(f"Recall@{result.top_n} (test, mean over devices)")
    drawing.label_ends(axes, labels)
    return figure, f"Line chart of Recall@{result.top_n} against budget: {'; '.join(words)}."


def line_name(selector: str, selectors: Collection[str]) -> str:
    """Return the name that distinguishes a line from others of its precision: what chose its blocks, where there is a
    choice.
    """
    return f"by {selector_name(selector)}" if len(selectors) > 1 else ""


def _budget_words(row: BudgetRow, name: str) -> str:
    over = "" if row.to_strongest is None else f", {row.to_strongest.value:.3f} relative to the best full table"
    return f"{name}: {format_estimate(row.recall)} at {format_share(row.share)}, {format_bytes(row.budget_bytes)}{over}"
