"""Recall of user groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.section import Chart, Section
from simulations.report.sections.quality import full_recalls
from simulations.report.theme import GREEN, INK, MUTED, PAPER, darker
from strategies.figures.schema import RunResult, UserGroupRow


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
    marks = [one for one in full_recalls(result) if one.name != "before refinement"]
    axes.set_ylabel(f"Recall@{result.top_n}")
    top = max([*heights, *(one.quality.recall.value for one in marks), *(recall.high or 0.0 for recall in recalls)])
    axes.set_ylim(0, top * 1.12 if top else 1)
    drawing.label_ends(
        axes, [drawing.yardstick(axes, one.quality.recall.value, f"full table, {one.name}", one.color) for one in marks]
    )
    low, high = min(measured, key=lambda bar: bar[1]), max(measured, key=lambda bar: bar[1])
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(measured)} user groups: from {low[1]:.4f} ({low[0]}) "
        f"to {high[1]:.4f} ({high[0]})."
    )
    return drawing.finish(figure, "groups", "Recall by user group", alt)
