"""Figures of a timeline: recall of every serving method by period, and what devices download for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from simulations.report.plots.style import (
    EndLabel,
    Ends,
    Plot,
    error_bars,
    finish,
    hover,
    in_both_forms,
    is_narrow,
    label_ends,
    line_kwargs,
    new_figure,
)
from simulations.timeline.timeline_labels import KINDS, LABELS
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


@in_both_forms
def recall_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of all devices over the periods, a line for each way of serving, with 95 % intervals."""
    names = [name for name in LEAD if name in periods[0].lines]
    figure, (axes,) = new_figure(4.2)
    labels = []
    for index, name in enumerate(names):
        results = [period.lines[name]["all"] for period in periods]
        style = line_kwargs(index, strong=name == "federation", dashed=not name.startswith("federation"))
        x, y = list(range(1, len(periods) + 1)), [one.recall for one in results]
        label = _line(axes, LABELS.get(name, name), x, y, style, [_ends(one) for one in results])
        labels.append(replace(label, bold=name == "federation"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("period")
    axes.set_ylabel("Recall@20 on the interactions of the period")
    label_ends(axes, labels)
    last = "; ".join(f"{LABELS.get(name, name)} {periods[-1].lines[name]['all'].recall:.4f}" for name in names)
    return finish(figure, "timeline", "Recall over time", f"Line chart of Recall@20 by period. In the last: {last}.")


@in_both_forms
def kinds_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of the federation by when devices joined."""
    figure, panels = new_figure(3.2, 1, 3, sharey=True)
    for axes, (kind, words) in zip(panels, KINDS.items(), strict=True):
        for index, name in enumerate(("federation", "start-table", "cached-list")):
            results = [(number, period.lines[name].get(kind)) for number, period in enumerate(periods, start=1)]
            known = [(number, one) for number, one in results if one is not None]
            style = line_kwargs(index, strong=index == 0, dashed=index > 0) | {"label": LABELS.get(name, name)}
            x, y = [number for number, _ in known], [one.recall for _, one in known]
            axes.plot(x, y, **style)
            error_bars(axes, x, y, [_ends(one) for _, one in known], style["color"])
        axes.set_title(words)
        axes.set_xlabel("period")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("Recall@20")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if is_narrow() else 3, frameon=False)
    return finish(figure, "kinds", "New and old devices", "Three line charts of Recall@20 by when devices joined.")


@in_both_forms
def life_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Below one another, over the periods: recall, bytes of a device, what changed, devices' own budgets at every
    moment, and how often they re-selected because these moved.
    """
    figure, (recall, moved, changed, budgets, selected) = new_figure(10.0, 5, 1, sharex=True)
    _recall(recall, periods)
    _moved_bytes(moved, periods)
    _changed(changed, periods)
    _budgets(budgets, periods)
    x = list(range(1, len(periods) + 1))
    followed = [period.followed for period in periods]
    often = [one.figures.reselections / max(one.figures.devices, 1) if one else 0.0 for one in followed]
    selected.plot(x, often, **line_kwargs(0))
    _from_nought(selected, often)
    selected.set_ylabel("re-selections per device")
    selected.set_xlabel("period")
    return finish(
        figure,
        "life",
        "Costs and budgets",
        "Line charts by period: recall, bytes sent to a device, what changed, mean budgets, re-selections.",
    )


def _from_nought(axes: Axes, values: Sequence[float]) -> None:
    """An axis from nought to a little above the largest value, however flat the line is."""
    axes.set_ylim(0, 1.12 * max([*values, 1e-9]))


def _recall(axes: Axes, periods: Sequence[PeriodResult]) -> None:
    labels, x, highest = [], list(range(1, len(periods) + 1)), 0.0
    for index, name in enumerate(("federation", "federation, own budgets", "cached-list")):
        results = [period.lines[name]["all"] for period in periods]
        style, y = line_kwargs(index, strong=index == 0, dashed=index == 2), [one.recall for one in results]
        labels.append(_line(axes, LABELS.get(name, name), x, y, style, [_ends(one) for one in results]))
        highest = max([highest, *(one.interval.high if one.interval else one.recall for one in results)])
    _from_nought(axes, [highest])
    axes.set_ylabel("Recall@20")
    label_ends(axes, labels)


def _moved_bytes(axes: Axes, periods: Sequence[PeriodResult]) -> None:
    x = list(range(1, len(periods) + 1))
    names = [name for name in periods[0].reads if name != "federation"] + ["federation"]
    lines = {LABELS.get(name, name): [period.reads[name].sent_mean for period in periods] for name in names}
    lines["stage 1, both ways"] = [period.stage1_down + period.stage1_up for period in periods]
    if any(period.refinement_down for period in periods):
        lines["refinement, both ways"] = [period.refinement_down + period.refinement_up for period in periods]
    labels = []
    for index, (words, sent) in enumerate(lines.items()):
        style = line_kwargs(index, strong=index == len(names) - 1, dashed=index >= len(names))
        labels.append(_line(axes, words, x, [max(one, 1.0) / 1000 for one in sent], style))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("KB sent per device")
    label_ends(axes, labels)


def _changed(axes: Axes, periods: Sequence[PeriodResult]) -> None:
    later = periods[1:]  # in the first everything is new
    x = list(range(2, len(periods) + 1))
    shares = {
        "devices that changed group": [100 * period.reads["federation"].moved for period in later],
        "share of rows changed": [100 * period.changed_rows / max(period.items, 1) for period in later],
    }
    labels = []
    if later:
        labels = [_line(axes, words, x, y, line_kwargs(i)) for i, (words, y) in enumerate(shares.items())]
    _from_nought(axes, [value for values in shares.values() for value in values])
    axes.set_ylabel("per cent")
    label_ends(axes, labels)


def _budgets(axes: Axes, periods: Sequence[PeriodResult]) -> None:
    """Means over devices, at every step of the clock, from when they are asked in a period until the next one."""
    x, budgets, held = [], [], []
    for number, period in enumerate(periods, start=1):
        moments = () if period.followed is None else period.followed.moments
        x += [number + step / len(moments) for step in range(len(moments))]
        budgets += [moment.budget_bytes_mean / 1000 for moment in moments]
        held += [moment.stored_bytes_mean / 1000 for moment in moments]
    labels = []
    if x:
        shown = enumerate((("own budget", budgets), ("stored", held)))
        labels = [_line(axes, words, x, y, line_kwargs(i) | {"marker": ""}) for i, (words, y) in shown]
    _from_nought(axes, budgets)
    axes.set_ylabel("KB, mean over devices")
    label_ends(axes, labels)


@in_both_forms
def classes_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of each device class under its own budgets, over the periods, with 95 % intervals."""
    figure, (axes,) = new_figure(3.4)
    labels = []
    for index, name in enumerate(periods[0].classes):
        style = line_kwargs(index)
        known = [(number, period.classes[name]) for number, period in enumerate(periods, start=1)]
        points = [(number, one.recall, one.margin) for number, one in known if one.recall is not None]
        x, y = [number for number, _, _ in points], [recall for _, recall, _ in points]
        ends = [None if margin is None else (recall - margin, recall + margin) for _, recall, margin in points]
        if points:
            labels.append(_line(axes, name, x, y, style, ends))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("period")
    axes.set_ylabel("Recall@20, own budgets")
    label_ends(axes, labels)
    return finish(figure, "classes", "Device classes", "Line chart of Recall@20 by period and device class.")


def _line(
    axes: Axes,
    words: str,
    x: Sequence[float],
    y: Sequence[float],
    style: Mapping[str, Any],
    ends: Sequence[Ends] = (),
) -> EndLabel:
    """Draw a line, with error bars where there are any, and return its label."""
    axes.plot(x, y, **style)
    if style["marker"]:
        hover(axes, x, y, [f"{words}, period {at:g}: {value:.4g}" for at, value in zip(x, y, strict=True)])
    if ends:
        error_bars(axes, x, y, ends, style["color"])
    return EndLabel(words, x[-1], y[-1], style["color"])


def _ends(one: LineResult) -> Ends:
    return None if one.interval is None else (one.interval.low, one.interval.high)


__all__ = ["classes_plot", "kinds_plot", "life_plot", "recall_plot"]
