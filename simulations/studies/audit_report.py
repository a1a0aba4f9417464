"""Files of an audit: `audit.json`, `.csv`, `.parquet`, `.html` (a table, a plot) and `.svg`."""

from __future__ import annotations

import math
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fl_peel.figures import Estimate
from fl_peel.json_codec import from_plain
from simulations.report import drawing
from simulations.report.drawing import BLUE, INK, MUTED, Plot
from simulations.report.render import Page, ResultKind
from simulations.report.section import Chart, Section
from simulations.report.table_view import (
    ABSENT,
    TableView,
    format_estimate,
    format_metric,
    format_ratio,
    format_share,
)
from simulations.studies.schema import AttackFigures, AuditedRow, AuditResult

SUCCEEDS, HOLDS = 0.2, 0.02
"""Advantage that an attack must have on the unprotected run, and may have under protection at most."""
PANELS, TITLE_PT = 5, 7.5
"""Panels beside one another in the figure, and the size of their titles."""


def audit_view(result: AuditResult) -> TableView:
    """One line a mechanism: epsilon, recall, and the advantage of every attack."""
    rows = result.rows
    names = list(dict.fromkeys(name for row in rows for name in row.attacks))
    body = []
    for row in rows:
        cells = [_advantage(row.attacks[name]) if name in row.attacks else ABSENT for name in names]
        epsilon = ABSENT if row.epsilon is None else f"{row.epsilon:.3g}"
        shown = None if row.canary is None else row.canary["epsilon_low"]
        least = ABSENT if shown is None else f"{shown:.2f}"
        recall = (format_metric(row.recall.value), format_ratio(row.to_none))
        body.append((row.mechanism, row.view, epsilon, least, *recall, *cells))
    columns = ("mechanism", "server sees", "epsilon", "epsilon shown", "Recall@20", "relative to none", *names)
    share = rows[0].share if rows else 0.01
    note = (
        f"Advantage (TPR - FPR) ± half its 95 % interval; Recall@20 at {format_share(share)} of the full table, "
        "and its paired ratio to the run without protection. "
        "Epsilon shown: lower bound at 95 %, empirical, from many canary devices in one run (without noise, the most "
        "that these can show)."
    )
    decoded = [
        f"{row.mechanism}: the decoder of stage 1's sums finds {one.exact} of {one.single_owners} whole histories of "
        f"devices that alone have some item, and of {one.devices} owners of the {one.items} opened items with the "
        f"fewest owners the histories of {one.exact_devices}, but for items that are not opened: F1 {one.f1:.3f} "
        f"(guessing by popularity: {one.popularity_f1:.3f})."
        for row in rows
        if (one := row.reconstruction) is not None
    ]
    decoded += [
        f"{row.mechanism}: differences of two sums of vectors are the vectors of {alone.devices} devices, F1 "
        f"{alone.f1:.3f} (guessing by popularity: {alone.popularity_f1:.3f})."
        for row in rows
        if (alone := row.differencing) is not None
    ]
    note = " ".join((note, *decoded))
    return TableView("Leakage of each mechanism", columns, tuple(body), 2, note, terminal=True)


def audit_verdicts(result: AuditResult) -> tuple[str, ...]:
    """Say what the strongest attack gains over guessing, where most leaks and where least does."""
    rows = [row for row in result.rows if row.attacks]
    rows.sort(key=lambda row: -_strongest(row)[1].advantage.value)  # of equal ones, the first stays first
    shown = [("Most", row) for row in rows[:1]] + [("Least", row) for row in rows[1:][-1:]]
    return tuple(_verdict(word, row, *_strongest(row)) for word, row in shown)


def _strongest(row: AuditedRow) -> tuple[str, AttackFigures]:
    return max(row.attacks.items(), key=lambda attack: attack[1].advantage.value)


def _verdict(word: str, row: AuditedRow, attack: str, figures: AttackFigures) -> str:
    return (
        f"{word} leaks under {row.mechanism}, where the server sees {row.view}: the strongest of {len(row.attacks)} "
        f"attacks, {attack}, guesses {figures.secret} with an advantage of {format_estimate(figures.advantage)} over "
        f"chance (1: certainty){_beyond_chance(figures.advantage)}."
    )


def _beyond_chance(advantage: Estimate) -> str:
    if advantage.low is None:
        return ""
    return f": {'' if advantage.low > 0 else 'not '}significantly better than chance"


def _advantage(figures: AttackFigures) -> str:
    low, high = figures.advantage.ends or (0.0, 0.0)
    return f"{figures.advantage.value:.3f} ±{(high - low) / 2:.3f}"


@drawing.in_both_forms
def audit_plot(result: AuditResult) -> Plot:
    """Plot privacy against utility: a panel for each attack and for recall; grey: no better than chance."""
    rows = result.rows
    names = list(dict.fromkeys(name for row in rows for name in row.attacks))
    places = list(range(len(rows), 0, -1))
    panel_rows = math.ceil((len(names) + 1) / PANELS)
    figure, panels = drawing.new_figure(
        (0.7 + 0.2 * len(rows)) * panel_rows, panel_rows, PANELS, narrow_columns=2, sharey=True
    )
    for panel in panels[len(names) + 1 :]:
        panel.remove()
    known = [one.advantage for row in rows for one in row.attacks.values()]
    lowest = min((one.low if one.low is not None else one.value for one in known), default=0.0)
    for panel, name in zip(panels, names, strict=False):
        for row, place in zip(rows, places, strict=True):
            if name in row.attacks:
                advantage = row.attacks[name].advantage
                color = BLUE if (advantage.ends or (advantage.value,))[0] > 0 else MUTED
                _dot(panel, place, advantage, color, f"{row.mechanism}, {name}: {_advantage(row.attacks[name])}")
        panel.axvline(0.0, color=INK, linewidth=0.8, zorder=1)
        panel.set_xlim(min(-0.1, lowest - 0.05), 1.05)
        panel.set_title(name, fontsize=TITLE_PT, fontweight="normal")
    recall = panels[len(names)]
    for row, place in zip(rows, places, strict=True):
        _dot(recall, place, row.recall, INK, f"{row.mechanism}: Recall@20 {format_estimate(row.recall)}")
    recall.set_title("Recall@20", fontsize=TITLE_PT, fontweight="normal")
    recall.xaxis.set_major_locator(MaxNLocator(2))
    recall.set_yticks(places, [row.mechanism for row in rows])
    recall.set_ylim(0.4, len(rows) + 0.6)
    worst = {row.mechanism: max((a.advantage.value for a in row.attacks.values()), default=0.0) for row in rows}
    words = "; ".join(f"{row.mechanism} {worst[row.mechanism]:.2f} at recall {row.recall.value:.4f}" for row in rows)
    return drawing.finish(figure, "audit", "Privacy and utility", f"Largest attack advantage by mechanism: {words}.")


def _dot(panel: Axes, place: float, figure: Estimate, color: str, words: str) -> None:
    """Draw a figure as a dot with its interval across, and words where it is pointed at."""
    panel.plot([figure.value], [place], "o", color=color, markersize=4)
    drawing.error_bars(panel, [place], [figure], color, across=True)
    drawing.hover(panel, [figure.value], [place], [words])


def audit_page(result: AuditResult) -> Page:
    """Return the page of an audit."""
    caption = (
        "Attacks on single devices, from exactly what the protocol reveals to the server. A panel for each attack: "
        "its advantage (TPR - FPR) under each mechanism, grey where it does not significantly exceed 0. Last panel: "
        "recall. Bars: 95 % intervals."
    )
    parts = (Chart(lambda: audit_plot(result), caption), audit_view(result))
    return Page(
        f"{result.name}: privacy audit",
        [Section("leaks", "Leakage and cost of each mechanism", parts)],
        audit_verdicts(result),
        [
            ("devices attacked", str(result.settings["devices"])),
            ("rounds observed", str(result.settings["rounds"])),
            ("mechanisms", str(len(result.rows))),
            ("collected for pretraining", format_share(result.collected_share)),
        ],
        f"fl-peel audit {result.name}",
    )


AUDIT = ResultKind("audit", partial(from_plain, AuditResult), audit_page)
