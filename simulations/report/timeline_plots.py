"""Figures of a timeline: recall of every serving method by period, and what devices download for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl_peel.figures import Estimate
from simulations.report import drawing
from simulations.report.drawing import EndLabel, Plot
from strategies.timeline.timeline_figures import PeriodResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "federation": "continual federated training",
    "federation, all rows": "continual federated training, all rows sent",
    "federation, own budgets": "continual federated training, own budgets",
    "retrained": "central retraining",
    "refreshed-list": "top-20 list, refreshed by the server",
    "start-table": "static table, local user update",
    "cached-list": "static top-20 list",
    "cached-list-fresh": "static top-20 list, recency-weighted",
    "popularity": "popularity, all periods so far",
    "recent-popularity": "popularity, last period",
}
"""Names of the serving methods, for readers."""
KINDS = {"start": "before the first period", "since": "joined later", "first": "joining in the period"}
"""Names of the kinds of devices, for readers."""
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


def line_label(line: str) -> str:
    """Return the name of a serving method for readers; of one under a budget, with the budget."""
    return LABELS.get(line) or line.replace("federation", LABELS["federation"])


@drawing.in_both_forms
def recall_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of all devices over the periods, a line for each way of serving, with 95 % intervals."""
    names = [name for name in LEAD if name in periods[0].lines]
    figure, (axes,) = drawing.new_figure(4.2)
    labels = []
    for index, name in enumerate(names):
        results = [period.lines[name]["all"] for period in periods]
        style = drawing.line_kwargs(index, strong=name == "federation", dashed=not name.startswith("federation"))
        x, y = list(range(1, len(periods) + 1)), [one.recall for one in results]
        label = _line(axes, line_label(name), x, y, style)
        labels.append(replace(label, bold=name == "federation"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("period")
    axes.set_ylabel("Recall@20 on the interactions of the period")
    drawing.label_ends(axes, labels)
    last = "; ".join(f"{line_label(name)} {periods[-1].lines[name]['all'].recall.value:.4f}" for name in names)
    return drawing.finish(
        figure, "timeline", "Recall over time", f"Line chart of Recall@20 by period. In the last: {last}."
    )


@drawing.in_both_forms
def kinds_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of the federation by when devices joined."""
    figure, panels = drawing.new_figure(3.2, 1, 3, sharey=True)
    for axes, (kind, words) in zip(panels, KINDS.items(), strict=True):
        for index, name in enumerate(("federation", "start-table", "cached-list")):
            results = [(number, period.lines[name].get(kind)) for number, period in enumerate(periods, start=1)]
            known = [(number, one) for number, one in results if one is not None]
            style = drawing.line_kwargs(index, strong=index == 0, dashed=index > 0) | {"label": line_label(name)}
            if known:
                x, recalls = zip(*((number, one.recall) for number, one in known), strict=True)
                drawing.draw_line(axes, drawing.Line(name, x, recalls), style)
        axes.set_title(words)
        axes.set_xlabel("period")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("Recall@20")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if drawing.is_narrow() else 3, frameon=False)
    return drawing.finish(
        figure, "kinds", "New and old devices", "Three line charts of Recall@20 by when devices joined."
    )


@drawing.in_both_forms
def life_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Over the periods: recall, bytes, what changed, own budgets at every moment, and re-selections."""
    figure, (recall, moved, changed, budgets, selected) = drawing.new_figure(10.0, 5, 1, sharex=True)
    _recall(recall, periods)
    _moved_bytes(moved, periods)
    _changed(changed, periods)
    _budgets(budgets, periods)
    x = list(range(1, len(periods) + 1))
    followed = [period.followed for period in periods]
    often = [one.figures.reselections / max(one.figures.devices, 1) if one else 0.0 for one in followed]
    selected.plot(x, often, **drawing.line_kwargs(0))
    _from_nought(selected, often)
    selected.set_ylabel("re-selections per device")
    selected.set_xlabel("period")
    return drawing.finish(
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
        style, y = (
            drawing.line_kwargs(index, strong=index == 0, dashed=index == 2),
            [one.recall for one in results],
        )
        labels.append(_line(axes, line_label(name), x, y, style))
        highest = max([highest, *(one.recall.high or one.recall.value for one in results)])
    _from_nought(axes, [highest])
    axes.set_ylabel("Recall@20")
    drawing.label_ends(axes, labels)


def _moved_bytes(axes: Axes, periods: Sequence[PeriodResult]) -> None:
    from matplotlib.ticker import NullFormatter

    x = list(range(1, len(periods) + 1))
    names = [name for name in periods[0].reads if name != "federation"] + ["federation"]
    lines = {line_label(name): [period.reads[name].sent_mean for period in periods] for name in names}
    lines["stage 1, both ways"] = [period.stage1_down + period.stage1_up for period in periods]
    if any(period.refinement_down for period in periods):
        lines["refinement, both ways"] = [period.refinement_down + period.refinement_up for period in periods]
    labels = []
    for index, (words, sent) in enumerate(lines.items()):
        style = drawing.line_kwargs(index, strong=index == len(names) - 1, dashed=index >= len(names))
        labels.append(_line(axes, words, x, [max(one, 1.0) / 1000 for one in sent], style))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("KB sent per device")
    drawing.label_ends(axes, labels)


def _changed(axes: Axes, periods: Sequence[PeriodResult]) -> None:
    later = periods[1:]  # in the first everything is new
    x = list(range(2, len(periods) + 1))
    shares = {
        "devices that changed group": [100 * period.reads["federation"].moved for period in later],
        "share of rows changed": [100 * period.changed_rows / max(period.items, 1) for period in later],
    }
    labels = []
    if later:
        labels = [_line(axes, words, x, y, drawing.line_kwargs(i)) for i, (words, y) in enumerate(shares.items())]
    _from_nought(axes, [value for values in shares.values() for value in values])
    axes.set_ylabel("per cent")
    drawing.label_ends(axes, labels)


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
        labels = [_line(axes, words, x, y, drawing.line_kwargs(i) | {"marker": ""}) for i, (words, y) in shown]
    _from_nought(axes, budgets)
    axes.set_ylabel("KB, mean over devices")
    drawing.label_ends(axes, labels)


@drawing.in_both_forms
def classes_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of each device class under its own budgets, over the periods, with 95 % intervals."""
    figure, (axes,) = drawing.new_figure(3.4)
    labels = []
    for index, name in enumerate(periods[0].classes):
        style = drawing.line_kwargs(index)
        known = [(number, period.classes[name]) for number, period in enumerate(periods, start=1)]
        points = [(number, one.recall) for number, one in known if one.recall is not None]
        if points:
            x, recalls = zip(*points, strict=True)
            labels.append(_line(axes, name, x, recalls, style))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("period")
    axes.set_ylabel("Recall@20, own budgets")
    drawing.label_ends(axes, labels)
    return drawing.finish(figure, "classes", "Device classes", "Line chart of Recall@20 by period and device class.")


def _line(
    axes: Axes, words: str, x: Sequence[float], figures: Sequence[Estimate | float], style: Mapping[str, Any]
) -> EndLabel:
    """Draw a line, and words at each of its points where it has markers; return its label."""
    known = [figure if isinstance(figure, Estimate) else Estimate(figure) for figure in figures]
    pairs = zip(x, known, strict=True)
    tips = [f"{words}, period {at:g}: {one.value:.4g}" for at, one in pairs] if style["marker"] else []
    return drawing.draw_line(axes, drawing.Line(words, x, known, tips), style)
