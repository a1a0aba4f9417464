"""Figures of a timeline: what every way of serving finds, period by period, and what devices are sent for it."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report.plots.style import (
    EndLabel,
    Ends,
    Plot,
    error_bars,
    finish,
    label_ends,
    line_kwargs,
    new_figure,
    styled,
)
from simulations.timeline.words import KINDS, LABELS
from strategies.timeline.schema import LineResult, PeriodResult

LEAD = (
    "federation",
    "federation at 1%",
    "retrained",
    "start-table",
    "cached-list",
    "cached-list-fresh",
    "recent-popularity",
)
"""Lines of the lead figure; the tables have all of them."""


def recall_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of all devices over the periods, a line for each way of serving, with 95 % intervals."""
    names = [name for name in LEAD if name in periods[0].lines]
    with styled():
        figure, (axes,) = new_figure(4.2)
        labels = []
        for index, name in enumerate(names):
            found = [period.lines[name]["all"] for period in periods]
            style = line_kwargs(index, strong=name == "federation", dashed=not name.startswith("federation"))
            x, y = list(range(1, len(periods) + 1)), [one.recall for one in found]
            axes.plot(x, y, **style)
            error_bars(axes, x, y, [_ends(one) for one in found], style["color"])
            labels.append(EndLabel(LABELS.get(name, name), x[-1], y[-1], style["color"], name == "federation"))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("period")
        axes.set_ylabel("Recall@20 of what devices do in the period")
        label_ends(axes, labels)
        last = "; ".join(f"{LABELS.get(name, name)} {periods[-1].lines[name]['all'].recall:.4f}" for name in names)
        return finish(
            figure, "timeline", "Recall over time", f"Line chart of Recall@20 by period. In the last: {last}."
        )


def kinds_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of the federation by when devices joined."""
    with styled():
        figure, panels = new_figure(3.2, 1, 3, sharey=True)
        for axes, (kind, words) in zip(panels, KINDS.items(), strict=True):
            for index, name in enumerate(("federation", "start-table", "cached-list")):
                found = [(number, period.lines[name].get(kind)) for number, period in enumerate(periods, start=1)]
                known = [(number, one) for number, one in found if one is not None]
                style = line_kwargs(index, strong=index == 0, dashed=index > 0) | {"label": LABELS.get(name, name)}
                x, y = [number for number, _ in known], [one.recall for _, one in known]
                axes.plot(x, y, **style)
                error_bars(axes, x, y, [_ends(one) for _, one in known], style["color"])
            axes.set_title(words)
            axes.set_xlabel("period")
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("Recall@20")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return finish(figure, "kinds", "New devices and old", "Three line charts of Recall@20 by when devices joined.")


def bytes_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Below one another: bytes of a device in each period, devices and items, and the groups that changed."""
    with styled():
        figure, (moved, there) = new_figure(4.2, 2, 1, sharex=True)
        x = list(range(1, len(periods) + 1))
        budgets = [name for name in periods[0].reads if name != "federation"] + ["federation"]
        labels = []
        for index, name in enumerate(budgets):
            style = line_kwargs(index, strong=name == "federation")
            y = [period.reads[name].sent_mean / 1000 for period in periods]
            moved.plot(x, y, **style)
            labels.append(EndLabel(LABELS.get(name, name), x[-1], y[-1], style["color"]))
        style = line_kwargs(len(budgets), dashed=True)
        y = [(period.stage1_down + period.stage1_up) / 1000 for period in periods]
        moved.plot(x, y, **style)
        labels.append(EndLabel("stage 1, both ways", x[-1], y[-1], style["color"]))
        moved.set_yscale("log")
        moved.set_ylabel("KB a device is sent")
        label_ends(moved, labels)
        for index, (words, values) in enumerate(
            (
                ("changed their user group", [100 * period.reads["federation"].moved for period in periods]),
                (
                    "of the table's rows changed",
                    [100 * period.changed_rows / max(period.items, 1) for period in periods],
                ),
            )
        ):
            style = line_kwargs(index)
            there.plot(x[1:], values[1:], **style | {"label": words})
        there.set_ylim(bottom=0)
        there.set_ylabel("per cent")
        there.set_xlabel("period")
        there.legend(frameon=False)
        return finish(
            figure, "bytes", "What it takes", "Line charts of bytes sent to a device by period, and of what changed."
        )


def _ends(one: LineResult) -> Ends:
    return None if one.interval is None else (one.interval.low, one.interval.high)


__all__ = ["bytes_plot", "kinds_plot", "recall_plot"]
