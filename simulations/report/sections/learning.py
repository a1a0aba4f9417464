"""Metrics after each round, over rounds and over the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulations.report import drawing
from simulations.report.drawing import EndLabel, Plot
from simulations.report.section import Chart, Section
from strategies.figures.schema import HistoryRow, RunResult


def learning(result: RunResult) -> Section:
    """Return the section."""
    caption = (
        "Metrics after each round, over the participating devices, without intervals (rounds do not release sums of "
        "squares)."
    )
    return Section("learning", TITLE, (Chart(lambda: learning_curves(result), caption),))


TITLE = "Metrics by round"


@drawing.in_both_forms
def learning_curves(result: RunResult) -> Plot | None:
    """Loss and recall (or NDCG) after each round; over the virtual clock too."""
    history = result.history
    losses = [_curve("loss", history, lambda row: row.loss)]
    losses += [_curve("controller loss", history, lambda row: row.controller_loss)]
    quality = [_curve("validation Recall@20", history, lambda row: row.recall)]
    quality += [_curve("validation NDCG@20", history, lambda row: row.ndcg)]
    panels: list[tuple[list[Curve], str, str]] = []
    if any(curve.values for curve in losses):
        panels.append((losses, "loss", "round"))
    if any(curve.values for curve in quality):
        panels += [(quality, "mean over devices", over) for over in ("round", "virtual clock, s")]
    if not panels:
        return None
    figure, plots = drawing.new_figure(2.4 * len(panels) + 0.1, len(panels), 1)
    words = []
    for axes, (curves, unit, over) in zip(plots, panels, strict=True):
        labels = []
        for index, curve in enumerate(curves):
            x, y = curve.rounds if over == "round" else curve.virtual_seconds, curve.values
            if not y:
                continue
            style = drawing.line_kwargs(index) | {"marker": "o" if len(x) <= 30 else ""}
            axes.plot(x, y, **style)
            drawing.hover(
                axes, x, y, [f"{curve.name} {value:.4g}, {over} {at:.4g}" for at, value in zip(x, y, strict=True)]
            )
            labels.append(EndLabel(f"{curve.name} {y[-1]:.4g}", x[-1], y[-1], style["color"]))
            words.append(f"{curve.name} goes from {y[0]:.4g} to {y[-1]:.4g} over the {over}")
        axes.set_xlabel(over)
        axes.set_ylabel(unit)
        if over == "round":
            drawing.round_axis(axes, max(row.server_round for row in history))
        drawing.label_ends(axes, labels)
    return drawing.finish(figure, "learning", TITLE, f"Line charts: {'; '.join(words)}.")


@dataclass(frozen=True)
class Curve:
    """The values measured in some of the rounds, by round and by time on the virtual clock; equally long."""

    name: str
    rounds: tuple[float, ...]
    virtual_seconds: tuple[float, ...]
    values: tuple[float, ...]


def _curve(name: str, history: Sequence[HistoryRow], of: Callable[[HistoryRow], float | None]) -> Curve:
    measured = [(row.server_round, row.virtual_seconds, value) for row in history if (value := of(row)) is not None]
    rounds, seconds, values = zip(*measured, strict=True) if measured else ((), (), ())
    return Curve(name, rounds, seconds, values)
