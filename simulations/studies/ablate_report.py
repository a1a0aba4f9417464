"""Files of an ablation: `ablate.json`, `.csv`, `.parquet`, `.html` (tables and figures) and `.svg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.ticker import FuncFormatter

from fl_peel.figures import Estimate
from fl_peel.json_codec import from_plain
from simulations.report import drawing
from simulations.report.drawing import INK, Plot
from simulations.report.render import Page, ResultKind
from simulations.report.section import Chart, Section
from simulations.report.table_view import (
    TableView,
    format_bytes,
    format_margin,
    format_metric,
    format_share,
)
from simulations.report.verdict import SIGNIFICANT, starred
from simulations.studies.schema import AblateResult, AblateRow


def _lines(rows: Sequence[AblateRow]) -> dict[tuple[str, str], dict[float, AblateRow]]:
    lines: dict[tuple[str, str], dict[float, AblateRow]] = {}
    for row in rows:
        lines.setdefault((row.component, row.setting), {})[row.share] = row
    return lines


def ablate_view(result: AblateResult) -> TableView:
    """One line a variation: groups, blocks, recall at each budget, and of the full tables."""
    shares = sorted({row.share for row in result.rows})
    body = []
    for (component, setting), by_share in _lines(result.rows).items():
        first = next(iter(by_share.values()))
        measured = [*(by_share[share] for share in shares), first.start, first.refined]
        counts = (f"{first.user_groups}", f"{first.smallest_group}", f"{first.blocks:,}")
        body.append((component, setting, *counts, *(format_margin(one.spread("recall@20")) for one in measured)))
    columns = (
        *("part", "setting", "user groups", "smallest group", "blocks"),
        *map(format_share, shares),
        *("full, before refinement", "full, refined"),
    )
    note = "Recall@20 on test, by budget as a share of the fp32 full table; each line changes one part of the scenario."
    return TableView("Contribution of each part", columns, tuple(body), 2, note, terminal=True)


def ratios_view(result: AblateResult) -> TableView:
    """Return every variation's recall over that of the scenario as it is, by budget and of the full tables."""
    shares = sorted({row.share for row in result.rows})
    body = []
    for (component, setting), by_share in list(_lines(result.rows).items())[1:]:
        first = next(iter(by_share.values()))
        ratios = [starred(by_share[share].to_scenario, by_share[share].p_holm) for share in shares]
        ratios.append(starred(first.start_full_to_scenario, first.start_full_p_holm))
        ratios.append(starred(first.refined_full_to_scenario, first.refined_full_p_holm))
        body.append((component, setting, *ratios))
    columns = ("part", "setting", *map(format_share, shares), "full, before refinement", "full, refined")
    note = (
        "Recall@20 on test relative to that of the unchanged scenario. In brackets: paired 95 % intervals. *: differs "
        f"significantly, corrected for all comparisons of this table (Holm, p < {SIGNIFICANT})."
    )
    return TableView("Relative to the unchanged scenario", columns, tuple(body), 2, note)


@drawing.in_both_forms
def ablate_plot(result: AblateResult) -> Plot:
    """Recall of every variation as a ratio to that of the scenario itself, one mark a budget."""
    lines = list(_lines(result.rows).items())
    (_, base), others = lines[0], lines[1:]
    shares = sorted(base)
    figure, (axes,) = drawing.new_figure(1.3 + 0.24 * len(others))
    for index, share in enumerate(shares):
        reference = base[share].recall.value
        if reference <= 0:
            continue
        ratios = [by_share[share].recall.value / reference for _, by_share in others]
        places = [len(others) - i + 0.16 * (index - (len(shares) - 1) / 2) for i in range(len(others))]
        style = drawing.line_kwargs(index) | {"linestyle": "none", "label": format_share(share)}
        axes.plot(ratios, places, **style)
        known = [by_share[share].to_scenario for _, by_share in others]
        shown = [ratio or Estimate(value) for ratio, value in zip(known, ratios, strict=True)]
        drawing.error_bars(axes, places, shown, style["color"], across=True)
    axes.axvline(1.0, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    labels = [f"{part}: {setting}" for (part, setting), _ in others]
    axes.set_yticks(range(len(others), 0, -1), labels)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    # names at the left leave little room below the axes of a telephone
    axes.set_xlabel(
        "Recall@20 (test), relative to the unchanged scenario", loc="right" if drawing.is_narrow() else "center"
    )
    figure.legend(
        title="budget",
        loc="outside upper right",
        ncols=min(max(len(shares), 1), 4 if drawing.is_narrow() else 9),
        frameon=False,
    )
    worst = min(others, key=lambda line: sum(row.recall.value for row in line[1].values()), default=None)
    alt = f"Dot chart of {len(others)} variations by their recall relative to the scenario."
    if worst is not None:
        alt += f" Lowest: {worst[0][0]}, {worst[0][1]}."
    return drawing.finish(figure, "ablate", "Contribution of each part", alt)


Points = list[tuple[float, Estimate]]
"""Recall of full tables, each with its place on the axis across."""


@drawing.in_both_forms
def _full_tables_plot(
    name: str, title: str, across: str, lines: Mapping[str, Points], log: int = 0, level: Estimate | None = None
) -> Plot | None:
    """Recall of the full tables, a line for each name; None where no line has two points. log: base of the axis across,
    where that is logarithmic; level: a line across all, of what has no place on the axis.
    """
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    figure, (axes,) = drawing.new_figure(3.1)
    for index, (words, points) in enumerate(lines.items()):
        dashed = words.endswith(WHEN["start"])  # lies over the one after refinement, which has the error bars
        style = drawing.line_kwargs(index // 2 if WHEN["refined"] in "".join(lines) else index, dashed=dashed)
        x, recalls = zip(*points, strict=True)
        shown = [Estimate(recall.value) for recall in recalls] if dashed else recalls
        drawing.draw_line(axes, drawing.Line(words, x, shown), style | {"label": words})
    if level is not None:
        axes.axhline(level.value, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="without noise")
    if log:
        axes.set_xscale("log", base=log)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel(across)
    axes.set_ylabel("Recall@20 (test), full tables")
    figure.legend(loc="outside upper center", ncols=1 if drawing.is_narrow() else 2, frameon=False)
    last = "; ".join(f"{words} {points[-1][1].value:.4f}" for words, points in lines.items())
    return drawing.finish(figure, name, title, f"{title}, full tables; at the right end: {last}.")


WHEN = {"start": "before refinement", "refined": "refined"}
SOURCES = {"and devices": "the rest by devices", "alone": "collected share alone"}
"""Names for readers."""


def _variations(rows: Sequence[AblateRow], component: str) -> list[tuple[str, AblateRow]]:
    """Return the settings of a component, each with one of its rows: figures of full tables are the same in all."""
    lines = _lines(rows).items()
    return [(setting, next(iter(by_share.values()))) for (part, setting), by_share in lines if part == component]


def collected_plot(rows: Sequence[AblateRow]) -> Plot | None:
    """Recall of the full tables against the share that is collected, before and after refinement, by source."""
    lines: dict[str, Points] = {}
    for setting, row in _variations(rows, "collected"):
        share, _, source = setting.partition("% ")
        for when, quality in (("start", row.start), ("refined", row.refined)):
            name = f"{SOURCES.get(source, source)}, {WHEN[when]}" if source else WHEN[when]
            lines.setdefault(name, []).append((float(share.rstrip("%")), quality.recall))
    return _full_tables_plot("collected", "Recall by collected share", "Collected share, per cent", lines)


def noise_plot(rows: Sequence[AblateRow]) -> Plot | None:
    """Recall of the full tables as stage 1 leaves them against epsilon, next to that without noise."""
    recalls = {setting.partition(" ")[2]: row.start.recall for setting, row in _variations(rows, "noise")}
    lines = {"under noise": [(float(epsilon), recall) for epsilon, recall in recalls.items() if epsilon]}
    across = "Epsilon of the whole run, user level"
    return _full_tables_plot("noise", "Recall by epsilon", across, lines, 2, recalls.get(""))


def population_plot(rows: Sequence[AblateRow]) -> Plot | None:
    """Recall of the full tables as stage 1 leaves them against the number of devices, under noise and without."""
    lines: dict[str, Points] = {}
    for setting, row in _variations(rows, "population"):
        number, _, words = setting.rpartition(", ")
        lines.setdefault(words, []).append((int(number.replace(",", "")), row.start.recall))
    return _full_tables_plot("population", "Recall by number of devices", "Devices (synthetic)", lines, 10)


def ablate_page(result: AblateResult) -> Page:
    """Return the page of an ablation."""
    full, rows = result.full_table, result.rows
    population = (
        "Group tables before refinement, on synthetic devices: the same noise is smaller relative to a sum over more "
        "devices."
    )
    parts = (
        Chart(
            lambda: ablate_plot(result),
            "One mark per budget; right of the dashed line: better than the unchanged scenario.",
        ),
        ablate_view(result),
        ratios_view(result),
        Chart(
            lambda: collected_plot(rows),
            "Dashed: group tables before federated refinement. Solid: after it.",
        ),
        Chart(
            lambda: noise_plot(rows),
            "Group tables before refinement. Epsilon covers everything that devices send, stage 1 included.",
        ),
        Chart(lambda: population_plot(rows), population),
    )
    return Page(
        f"{result.name}: contribution of each part",
        [Section("parts", "Contribution of each part", parts)],
        ["One part of the method at a time is left out or changed; all other keys are those of the scenario."],
        [
            ("full table, fp32", format_bytes(full.bytes)),
            ("Recall@20 of the full table", format_metric(full.recall.value)),
            ("variations", str(len(_lines(rows)) - 1)),
            ("seeds", str(result.seeds)),
        ],
        f"fl-peel ablate {result.name}",
    )


ABLATE = ResultKind("ablate", partial(from_plain, AblateResult), ablate_page)
