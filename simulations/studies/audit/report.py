"""Files of an audit: `audit.json`, `audit.csv`, `audit.html` (a table, a plot) and `audit.svg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.report.plots.style import (
    INK,
    Ends,
    Plot,
    error_bars,
    finish,
    hover,
    in_both_forms,
    is_narrow,
    line_kwargs,
    new_figure,
)
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import to_plain
from simulations.report.tables.table_view import ABSENT, TableView, format_metric, format_share
from simulations.studies.compare.paired import ratio_text
from simulations.studies.study_files import write_study

Row = Mapping[str, Any]
SUCCEEDS, HOLDS = 0.2, 0.02
"""Advantage that an attack must have on the unprotected run, and may have under protection at most."""
CSV_COLUMNS = (
    *("mechanism", "view", "epsilon", "recall@20", "attack", "secret", "advantage", "advantage_low", "advantage_high"),
    *("auc", "devices", "candidates", "precision", "recall", "f1", "random_f1"),
)


def write_audit(result: dict[str, Any], out_dir: Path) -> list[Path]:
    """Write the four files into `out_dir`, all or none, and return their paths."""
    plain = to_plain(result, "audit")
    plot = audit_plot(plain["rows"])
    rows = [
        {**{key: row[key] for key in ("mechanism", "view", "epsilon", "recall@20")}, "attack": name, **figures}
        for row in plain["rows"]
        for name, figures in row["attacks"].items()
    ]
    return write_study(out_dir, plain, rows, audit_page(plain, plot), plot, CSV_COLUMNS)


def audit_view(result: Mapping[str, Any]) -> TableView:
    """One line a mechanism: epsilon, recall, and the advantage of every attack."""
    rows: Sequence[Row] = result["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["attacks"]))
    body = []
    for row in rows:
        canary = row.get("canary")
        cells = [_advantage(row["attacks"][name]) if name in row["attacks"] else ABSENT for name in names]
        epsilon = ABSENT if row["epsilon"] is None else f"{row['epsilon']:.3g}"
        least = ABSENT if canary is None else f"{canary['epsilon_low']:.2f}"
        recall = (format_metric(row["recall@20"]), ratio_text(row.get("to_none")))
        body.append((row["mechanism"], row["view"], epsilon, least, *recall, *cells))
    columns = ("mechanism", "server sees", "epsilon", "epsilon, lower bound", "Recall@20", "relative to none", *names)
    share = rows[0]["share"] if rows else 0.01
    note = (
        f"Advantage (TPR - FPR) ± half its 95 % interval; Recall@20 at {format_share(share)} of the full table, "
        "and its paired ratio to the run without protection. "
        "Epsilon, lower bound: empirical, from canary devices; without noise, the most that the trials can show."
    )
    decoded = [
        f"{row['mechanism']}: the decoder of stage 1's sums finds {one['exact']} of {one['single_owners']} whole "
        f"histories of devices that alone have some item, F1 {one['f1']:.3f} over the {one['items']} items with the "
        f"fewest owners (guessing by popularity: {one['popularity_f1']:.3f})."
        for row in rows
        if (one := row.get("reconstruction")) is not None
    ]
    note = " ".join((note, *decoded))
    return TableView("Leakage of each mechanism", columns, tuple(body), 2, note)


def _advantage(figures: Mapping[str, Any]) -> str:
    half = (figures["advantage_high"] - figures["advantage_low"]) / 2
    return f"{figures['advantage']:.3f} ±{half:.3f}"


@in_both_forms
def audit_plot(rows: Sequence[Row]) -> Plot:
    """Plot privacy against utility: the largest advantage and that of every attack, beside recall, one mark a
    mechanism.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["attacks"]))
    places = list(range(len(rows), 0, -1))
    figure, (left, right) = new_figure(1.6 + 0.34 * len(rows), 1, 2, sharey=True, width_ratios=(3, 2))
    for index, name in enumerate(names):
        shown = [(row["attacks"][name], y) for row, y in zip(rows, places, strict=True) if name in row["attacks"]]
        style = line_kwargs(index, strong=False) | {"linestyle": "none", "label": name}
        x, y = [one["advantage"] for one, _ in shown], [place + 0.07 * (index % 5 - 2) for _, place in shown]
        left.plot(x, y, **style)
        ends: list[Ends] = [(one["advantage_low"], one["advantage_high"]) for one, _ in shown]
        error_bars(left, x, y, ends, style["color"], across=True)
        texts = [
            f"{row['mechanism']}, {name}: {_advantage(row['attacks'][name])}" for row in rows if name in row["attacks"]
        ]
        hover(left, x, y, texts)
    left.axvline(0.0, color=INK, linewidth=1.0)
    for edge in (-HOLDS, HOLDS):
        left.axvline(edge, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
    left.set_yticks(places, [row["mechanism"] for row in rows])
    left.set_xlabel("attack advantage (dotted: ±0.02)")
    recalls = [row["recall@20"] for row in rows]
    right.barh(places, recalls, height=0.5, color=line_kwargs(0)["color"])
    error_bars(right, recalls, places, [_ends(row) for row in rows], INK, across=True)
    right.set_xlabel("Recall@20 (test)")
    right.set_xlim(left=0)
    if names:
        figure.legend(loc="outside upper right", ncols=2 if is_narrow() else 4, frameon=False, fontsize=7.5)
    worst = {row["mechanism"]: max((a["advantage"] for a in row["attacks"].values()), default=0.0) for row in rows}
    words = "; ".join(
        f"{row['mechanism']} {worst[row['mechanism']]:.2f} at recall {row['recall@20']:.4f}" for row in rows
    )
    return finish(figure, "audit", "Privacy and utility", f"Largest attack advantage by mechanism: {words}.")


def _ends(row: Row) -> Ends:
    ends = row.get("recall@20_interval")
    return None if ends is None else (ends[0], ends[1])


def audit_page(result: Mapping[str, Any], plot: Plot) -> str:
    """The page of an audit."""
    name = scenario_name(result["scenario"])
    settings = result["settings"]
    facts = [
        ("devices attacked", str(settings["devices"])),
        ("rounds observed", str(settings["rounds"])),
        ("mechanisms", str(len(result["rows"]))),
        ("collected for pretraining", format_share(result["collected_share"])),
    ]
    return render(
        "audit.html",
        title=f"{name}: privacy audit",
        lead="Attacks on single devices, from exactly what the protocol reveals to the server, for every mechanism.",
        facts=facts,
        leaks=audit_view(result),
        plot=plot,
        **provenance(result, f"fl-peel audit {name}"),
    )


__all__ = ["HOLDS", "SUCCEEDS", "audit_page", "audit_plot", "audit_view", "write_audit"]
