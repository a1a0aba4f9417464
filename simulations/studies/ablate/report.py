"""Files of an ablation: `ablate.json`, `ablate.csv`, `ablate.html` (one table, one plot) and `ablate.svg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter

from simulations.report.plots.style import (
    INK,
    Ends,
    Plot,
    error_bars,
    finish,
    in_both_forms,
    is_narrow,
    line_kwargs,
    new_figure,
)
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import to_plain
from simulations.report.tables.table_view import TableView, format_bytes, format_metric, format_share
from simulations.studies.compare.paired import ratio_text
from simulations.studies.study_files import write_study

Row = Mapping[str, Any]


def write_ablate(result: dict[str, Any], out_dir: Path) -> list[Path]:
    """Write the four files into `out_dir`, all or none, and return their paths."""
    plain = to_plain(result, "ablation")
    plot = ablate_plot(plain["rows"])
    return write_study(out_dir, plain, plain["rows"], ablate_page(plain, plot), plot)


def _lines(rows: Sequence[Row]) -> dict[tuple[str, str], dict[float, Row]]:
    lines: dict[tuple[str, str], dict[float, Row]] = {}
    for row in rows:
        lines.setdefault((row["part"], row["setting"]), {})[row["share"]] = row
    return lines


def ablate_view(result: Mapping[str, Any]) -> TableView:
    """One line a variation: groups, blocks, recall at each budget, and of the refined full table."""
    rows: Sequence[Row] = result["rows"]
    shares = sorted({row["share"] for row in rows})
    body = []
    for (part, setting), by_share in _lines(rows).items():
        first = next(iter(by_share.values()))
        cells = [_cell(by_share[share]) for share in shares]
        full = [_cell(first, f"{when}_full_") for when in ("start", "refined")]
        counts = (f"{first['user_groups']}", f"{first['smallest_group']}", f"{first['blocks']:,}")
        body.append((part, setting, *counts, *cells, *full))
    columns = (
        *("part", "setting", "user groups", "smallest group", "blocks"),
        *map(format_share, shares),
        *("full, before refinement", "full, refined"),
    )
    note = "Recall@20 on test, by budget as a share of the fp32 full table; each line changes one part of the scenario."
    return TableView("Contribution of each part", columns, tuple(body), 2, note)


def _cell(row: Row, prefix: str = "") -> str:
    spread = row.get(f"{prefix}recall@20_std")
    return format_metric(row[f"{prefix}recall@20"]) + ("" if spread is None else f" ±{spread:.4f}")


def ratios_view(result: Mapping[str, Any]) -> TableView:
    """Return every variation's recall over that of the scenario as it is, by budget and of the full tables."""
    rows: Sequence[Row] = result["rows"]
    shares = sorted({row["share"] for row in rows})
    body = []
    for (part, setting), by_share in list(_lines(rows).items())[1:]:
        first = next(iter(by_share.values()))
        full = [ratio_text(first.get(f"{when}_full_to_scenario")) for when in ("start", "refined")]
        cells = [ratio_text(by_share[share].get("to_scenario")) for share in shares]
        body.append((part, setting, *cells, *full))
    columns = ("part", "setting", *map(format_share, shares), "full, before refinement", "full, refined")
    note = (
        "Recall@20 on test relative to that of the unchanged scenario. In brackets: paired 95 % intervals; an interval "
        "above 1 means that the change is significantly better, without correction for multiple comparisons."
    )
    return TableView("Relative to the unchanged scenario", columns, tuple(body), 2, note)


@in_both_forms
def ablate_plot(rows: Sequence[Row]) -> Plot:
    """Recall of every variation as a ratio to that of the scenario itself, one mark a budget."""
    lines = list(_lines(rows).items())
    (_, base), others = lines[0], lines[1:]
    shares = sorted(base)
    figure, (axes,) = new_figure(1.3 + 0.24 * len(others))
    for index, share in enumerate(shares):
        reference = base[share]["recall@20"]
        if reference <= 0:
            continue
        ratios = [by_share[share]["recall@20"] / reference for _, by_share in others]
        places = [len(others) - i + 0.16 * (index - (len(shares) - 1) / 2) for i in range(len(others))]
        style = line_kwargs(index) | {"linestyle": "none", "label": format_share(share)}
        axes.plot(ratios, places, **style)
        ends = [_ends(by_share[share].get("to_scenario")) for _, by_share in others]
        error_bars(axes, ratios, places, ends, style["color"], across=True)
    axes.axvline(1.0, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    labels = [f"{part}: {setting}" for (part, setting), _ in others]
    axes.set_yticks(range(len(others), 0, -1), labels)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    # names at the left leave little room below the axes of a telephone
    axes.set_xlabel("Recall@20 (test), relative to the unchanged scenario", loc="right" if is_narrow() else "center")
    figure.legend(
        title="budget",
        loc="outside upper right",
        ncols=min(max(len(shares), 1), 4 if is_narrow() else 9),
        frameon=False,
    )
    worst = min(others, key=lambda line: sum(row["recall@20"] for row in line[1].values()), default=None)
    alt = f"Dot chart of {len(others)} variations by their recall relative to the scenario."
    if worst is not None:
        alt += f" Lowest: {worst[0][0]}, {worst[0][1]}."
    return finish(figure, "ablate", "Contribution of each part", alt)


def _ends(ratio: Mapping[str, Any] | None) -> Ends:
    return None if ratio is None or ratio["low"] is None else (ratio["low"], ratio["high"])


@in_both_forms
def collected_plot(rows: Sequence[Row]) -> Plot | None:
    """Recall of the full tables against the share that is collected, at the start and refined, a line for each source;
    None where fewer than two shares were tried.
    """
    lines: dict[str, list[tuple[float, Row]]] = {}
    for (part, setting), by_share in _lines(rows).items():
        if part == "collected":
            share, _, source = setting.partition("% ")
            lines.setdefault(source, []).append((float(share.rstrip("%")), next(iter(by_share.values()))))
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    figure, (axes,) = new_figure(3.2)
    for index, (source, points) in enumerate(lines.items()):
        shares = [share for share, _ in points]
        for when, dashes in (("start", (0, (4, 2))), ("refined", "solid")):
            recall = [row[f"{when}_full_recall@20"] for _, row in points]
            name = f"{SOURCES.get(source, source)}, {WHEN[when]}" if source else WHEN[when]
            style = line_kwargs(index) | {"linestyle": dashes, "label": name}
            axes.plot(shares, recall, **style)
            if when == "refined":  # one of the two: they lie over one another
                error_bars(axes, shares, recall, [_full_ends(row, when) for _, row in points], style["color"])
    axes.set_xlabel("Collected share, per cent")
    axes.set_ylabel("Recall@20 (test), full tables")
    figure.legend(loc="outside upper center", ncols=1 if is_narrow() else 2, frameon=False)
    best = max((row["refined_full_recall@20"], share) for points in lines.values() for share, row in points)
    alt = f"Recall of the full tables by collected share, {len(lines)} sources; the best is {best[0]:.4f}."
    return finish(figure, "collected", "Recall by collected share", alt)


def _full_ends(row: Row, when: str = "start") -> Ends:
    """Return the ends of the interval of a full table's recall."""
    ends = row.get(f"{when}_full_recall@20_interval")
    return None if ends is None else (ends[0], ends[1])


@in_both_forms
def noise_plot(rows: Sequence[Row]) -> Plot | None:
    """Recall of the full tables as stage 1 leaves them against epsilon, next to that without noise; None where fewer
    than two epsilons were tried.
    """
    points: list[tuple[float, float]] = []
    ends: list[Ends] = []
    without = None
    for (part, setting), by_share in _lines(rows).items():
        if part == "noise":
            first = next(iter(by_share.values()))
            recall = first["start_full_recall@20"]
            epsilon = setting.partition(" ")[2]
            if epsilon:
                points.append((float(epsilon), recall))
                ends.append(_full_ends(first))
            else:
                without = recall
    if len(points) < 2:
        return None
    figure, (axes,) = new_figure(3.0)
    style = line_kwargs(0) | {"label": "under noise"}
    at, recalls = [x for x, _ in points], [y for _, y in points]
    axes.plot(at, recalls, **style)
    error_bars(axes, at, recalls, ends, style["color"])
    if without is not None:
        axes.axhline(without, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="without noise")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("Epsilon of the whole run, user level")
    axes.set_ylabel("Recall@20 (test), full tables")
    figure.legend(loc="outside upper center", ncols=1 if is_narrow() else 2, frameon=False)
    best = max(recall for _, recall in points)
    alt = f"Recall of the full tables at {len(points)} epsilons; the best is {best:.4f}."
    return finish(figure, "noise", "Recall by epsilon", alt)


@in_both_forms
def population_plot(rows: Sequence[Row]) -> Plot | None:
    """Recall of the full tables as stage 1 leaves them against the number of devices, under noise and without; None
    where fewer than two numbers were tried.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    ends: dict[str, list[Ends]] = {}
    for (part, setting), by_share in _lines(rows).items():
        if part == "population":
            number, _, words = setting.rpartition(", ")
            first = next(iter(by_share.values()))
            lines.setdefault(words, []).append((int(number.replace(",", "")), first["start_full_recall@20"]))
            ends.setdefault(words, []).append(_full_ends(first))
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    figure, (axes,) = new_figure(3.0)
    for index, (words, points) in enumerate(lines.items()):
        style = line_kwargs(index) | {"label": words}
        at, recalls = [number for number, _ in points], [recall for _, recall in points]
        axes.plot(at, recalls, **style)
        error_bars(axes, at, recalls, ends[words], style["color"])
    axes.set_xscale("log")
    axes.set_xlabel("Devices (synthetic)")
    axes.set_ylabel("Recall@20 (test), full tables")
    figure.legend(loc="outside upper center", ncols=1 if is_narrow() else 2, frameon=False)
    last = ", ".join(f"{words} {points[-1][1]:.4f}" for words, points in lines.items())
    alt = f"Recall of the full tables by number of synthetic devices; with the most of them: {last}."
    return finish(figure, "population", "Recall by number of devices", alt)


SOURCES = {"and devices": "the rest by devices", "alone": "collected share alone"}
WHEN = {"start": "before refinement", "refined": "refined"}
"""Names for readers."""


def ablate_page(result: Mapping[str, Any], plot: Plot) -> str:
    """The page of an ablation."""
    full = result["full_table"]
    name = scenario_name(result["scenario"])
    facts = [
        ("full table, fp32", format_bytes(full["bytes"])),
        ("Recall@20 of the full table", format_metric(full["recall@20"])),
        ("variations", str(len(_lines(result["rows"])) - 1)),
        ("seeds", str(result["seeds"])),
    ]
    return render(
        "ablate.html",
        title=f"{name}: contribution of each part",
        lead="One part of the method at a time is left out or changed; all other keys are those of the scenario.",
        facts=facts,
        table_of_parts=ablate_view(result),
        ratios=ratios_view(result),
        plot=plot,
        collected=collected_plot(result["rows"]),
        noise=noise_plot(result["rows"]),
        population=population_plot(result["rows"]),
        **provenance(result, f"fl-peel ablate {name}"),
    )
