"""A comparison with central rivals or with federated ones: its tables, figure, page and files (`compare.json`, ...)."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fl_peel.figures import Estimate
from fl_peel.json_codec import from_plain
from simulations.report import drawing
from simulations.report.drawing import BLUE, INK, VERMILLION, Plot
from simulations.report.render import Chart, Page, ResultKind, Section
from simulations.report.run_files import SIGNIFICANT, significance, starred
from simulations.report.table_view import (
    ABSENT,
    TableColumn,
    TableView,
    format_bytes,
    format_estimate,
    format_kilobytes,
    format_margin,
    format_metric,
    format_point,
    format_ratio,
    format_share,
    metric_name,
    table_of,
)
from simulations.studies.schema import CompareResult, CompareRow, Leaderboard, LeaderboardRow, Tuning, Verdict


def compare_view(rows: Sequence[CompareRow], metric: str = "recall@20") -> TableView:
    """One line a method, one column a budget (share of the full table): the figure of the precision that validation
    chose for it there, and which that is. Marked in each column: the method that validation likes best, whatever the
    test says of it.

    `metric` is `recall@20` or `ndcg@20`; where seeds gave a spread it follows the mean as '±'.
    """
    shares = sorted({row.share for row in rows})
    servers = {row.method for row in rows if row.ceiling}
    lines = list(dict.fromkeys((row.method, row.group_aware) for row in rows))
    lines.sort(key=lambda line: line[0] in servers)  # rivals first, each in its place
    cells: dict[tuple[int, int], str] = {}
    liked: dict[int, tuple[float, int]] = {}
    for row in (row for row in rows if row.chosen):
        line, column = lines.index((row.method, row.group_aware)), shares.index(row.share)
        cells[line, column] = f"{format_margin(row.spread(metric))} {row.precision}".rstrip()
        if row.method not in servers and (column not in liked or row.validation_recall > liked[column][0]):
            liked[column] = (row.validation_recall, line)
    body = tuple(
        (
            method,
            "server" if method in servers else "yes" if aware else "no",
            trials(rows, method),
            *(cells.get((i, j), ABSENT) for j in range(len(shares))),
        )
        for i, (method, aware) in enumerate(lines)
    )
    columns = ("method", "groups", "trials", *(format_share(share) for share in shares))
    note = (
        "Test metrics of the settings chosen on validation, with the chosen precision; bold: the best method on "
        "validation at each budget. Columns: budget as a share of the fp32 full table. Groups: whether each user group "
        "may have its own table; server: an upper bound from a server that has the data of all devices. Trials: "
        "settings evaluated on validation per budget, precisions included (the largest number over budgets)."
    )
    best = frozenset((line, column + 3) for column, (_, line) in liked.items())
    return TableView(f"{metric_name(metric)} by budget", columns, body, 2, note, best, terminal=metric == "recall@20")


def trials(rows: Sequence[CompareRow], method: str) -> str:
    """Settings of a method that were looked at on validation for one budget, all precisions together; the most."""
    by_share: dict[float, int] = {}
    for row in rows:
        if row.method == method and row.trials is not None:
            by_share[row.share] = by_share.get(row.share, 0) + row.trials
    return str(max(by_share.values())) if by_share else ABSENT


def ceilings_view(result: CompareResult) -> TableView:
    """Return the methods of a server that has the data and knows no budget."""
    body = tuple(
        (
            row.method,
            format_kilobytes(row.server_bytes) if row.server_bytes else ABSENT,
            str(row.trials),
            *(
                format_metric(value) if row.server_bytes else ABSENT
                for value in (row.validation_recall, row.recall.value, row.ndcg.value)
            ),
            row.note,
        )
        for row in result.ceilings
    )
    columns = ("method", "KB on the server", "trials", "validation Recall@20", "Recall@20", "NDCG@20", "setting")
    note = "Upper bounds that no device stores. 1 KB = 1000 bytes."
    return TableView("Upper bounds: server with all data", columns, body, 1, note, terminal=True)


VERDICT = {
    "group_exposure": "group exposure",
    "group_popularity": "group popularity",
    "single_budget": "trained for the budget",
}


def verdict_view(result: CompareResult) -> TableView:
    """PEEL against the lines that matter, each as validation chose it: ratios of recall on the test."""
    rows = tuple(
        (
            format_share(line.share),
            line.precision,
            format_metric(line.recall),
            *(format_ratio(line.ratios.get(f"to_{name}")) for name in ("full_table", *VERDICT)),
            format_ratio(line.ratios.get("to_best_without_groups")),
            line.rival or ABSENT,
            format_ratio(line.ratios.get("to_best_with_groups")),
            line.rival_with_groups or ABSENT,
        )
        for line in result.summary.budgets
    )
    columns = (
        *("budget", "precision", "Recall@20", "global table", *VERDICT.values()),
        *("best without groups", "method", "best with groups", "method"),
    )
    note = (
        "Test recall of PEEL, and its ratio to that of: the full global table; group tables ranked by exposure, and by "
        "popularity, refined under that order; PEEL trained for that budget alone; the best methods on validation "
        "without user groups and with them, variants of PEEL excluded. In brackets: paired 95 % intervals."
    )
    return TableView("PEEL relative to other methods", columns, rows, 2, note, terminal=True)


RIVALS = {"to_best_without_groups": "without user groups", "to_best_with_groups": "with user groups"}
"""Ratios to the best other method of a kind, and the kind in words."""


def compare_verdicts(result: CompareResult) -> tuple[str, ...]:
    """Say what PEEL has of the recall of the best other methods, at the smallest budget and at the first at which it is
    not significantly worse than any of them, and of that of a cached list. P-values are corrected for all comparisons.
    """
    lines = result.summary.budgets
    corrected = {(f"{row.method} {row.precision}", row.share): row.p_holm for row in result.rows if row.chosen}
    keeps_up = (line for line in lines if all((ratio.high or ratio.value) >= 1 for ratio in _to_rivals(line).values()))
    shown = [*lines[:1], *[line for line in [next(keeps_up, None)] if line is not None and line is not lines[0]]]
    sentences = []
    for line in shown:
        known = [
            f"{format_ratio(ratio)} times that of {rival}, the best other method {RIVALS[key]}"
            f"{significance(ratio, corrected.get((rival or '', line.share)))}"
            for (key, ratio), rival in zip(_to_rivals(line).items(), (line.rival, line.rival_with_groups), strict=False)
        ]
        if known:
            sentences.append(f"At {format_share(line.share)} of the bytes the Recall@20 of PEEL is {'; '.join(known)}.")
    for row in result.rows:
        if row.method == "cached-list" and row.chosen and row.peel_over and shown and row.share == shown[-1].share:
            sentences.append(
                f"On a static split as here it has at {format_share(row.share)} {format_ratio(row.peel_over)} times "
                f"the recall of a cached list of 20 item ids{significance(row.peel_over, row.p_holm)}; over time the "
                "list falls behind (docs/timeline.md)."
            )
    return tuple(sentences)


def _to_rivals(line: Verdict) -> dict[str, Estimate]:
    return {key: ratio for key in RIVALS if (ratio := line.ratios.get(key)) is not None}


def peel_over_view(rows: Sequence[CompareRow]) -> TableView:
    """PEEL's recall over that of every method, by budget, with paired intervals."""
    shares = sorted({row.share for row in rows})
    cells = {(row.method, row.share): starred(row.peel_over, row.p_holm) for row in rows if row.peel_over is not None}
    methods = dict.fromkeys(method for method, _ in cells)
    body = tuple((method, *(cells.get((method, share), ABSENT) for share in shares)) for method in methods)
    note = (
        "Test recall of PEEL relative to each method, both with settings chosen on validation for that budget. In "
        "brackets: paired 95 % intervals. *: the two differ significantly, corrected for all comparisons of this table "
        f"(Holm, p < {SIGNIFICANT})."
    )
    columns = ("method", *map(format_share, shares))
    return TableView("PEEL relative to each method", columns, body, 1, note, terminal=True)


_DETAILS: Sequence[TableColumn[CompareRow]] = (
    TableColumn("method", lambda row: row.method),
    TableColumn("precision", lambda row: row.precision + (" (chosen)" if row.chosen else "")),
    TableColumn("share", lambda row: row.share, format_share),
    TableColumn("stored KB, max", lambda row: row.stored_bytes_max, format_kilobytes),
    TableColumn("validation Recall@20", lambda row: row.validation_recall, format_metric),
    TableColumn("Recall@20", lambda row: row.recall, format_point),
    TableColumn("NDCG@20", lambda row: row.ndcg, format_point),
    TableColumn("seconds", lambda row: f"{row.seconds:,.1f}"),
    TableColumn("trials", lambda row: row.trials),
)


def compare_details_view(rows: Sequence[CompareRow]) -> TableView:
    """Return every row of a comparison with its bytes, trials and seconds."""
    note = "1 KB = 1000 bytes. Seconds: time to serve that budget; trials: settings evaluated on validation."
    return table_of("All rows", rows, _DETAILS, note, 2)


def refinement_view(result: CompareResult) -> TableView:
    """The full table: the global one, as user groups start with it, refined by the federation, refined centrally."""
    refinement = result.refinement
    base = refinement.none.recall.value
    tables = {
        "none: global table": refinement.none,
        "none: group tables before refinement": refinement.start,
        "federated": refinement.federated,
        "central": refinement.central,
    }
    rows = tuple(
        (name, *[ABSENT] * 3)
        if quality is None
        else (
            name,
            format_estimate(quality.recall),
            format_metric(quality.ndcg.value),
            format_ratio(Estimate(quality.recall.value / base) if base else None),
        )
        for name, quality in tables.items()
    )
    columns = ("refinement", "Recall@20", "NDCG@20", "relative to global")
    return TableView("Refinement of the full table", columns, rows)


def _caption(lines: str) -> str:
    """Return the words beneath the figure of a comparison. lines: what its dashed and its level line are."""
    return (
        f"Every panel: PEEL (blue) and another method under the same budgets; dashed line of points: {lines}. Bars: "
        "95 % intervals over devices (and seeds, where there are several) of each point alone."
    )


def compare_page(result: CompareResult) -> Page:
    """Return the page of a comparison with central rivals."""
    caption = _caption("one table for all users; level line: full global table")
    quality = (
        Chart(lambda: compare_plot(result), caption),
        verdict_view(result),
        peel_over_view(result.rows),
        compare_view(result.rows),
        compare_view(result.rows, "ndcg@20"),
        ceilings_view(result) if result.ceilings else None,
    )
    sections = [
        Section("quality", "Quality against bytes", quality),
        Section("refinement", "Refinement", (refinement_view(result),)),
        Section("rows", "All rows", (compare_details_view(result.rows),)),
    ]
    return _page(result, sections, "methods under memory budgets", compare_verdicts(result), "full table, fp32")


def _page(
    result: CompareResult | Leaderboard, sections: Sequence[Section], title: str, lead: Sequence[str], full: str
) -> Page:
    """Return the page of either kind of comparison. full: what its full table is called."""
    name, table = result.name, result.full_table
    return Page(
        f"{name}: {title}" if name else title.capitalize(),
        sections,
        lead,
        [
            (full, format_bytes(table.bytes)),
            ("Recall@20", format_metric(table.recall.value)),
            ("NDCG@20", format_metric(table.ndcg.value)),
            ("methods", str(len({row.method for row in result.rows}))),
        ],
        f"fl-peel compare {shlex.quote(name)}" if name else "",
    )


_COLUMNS: Sequence[TableColumn[LeaderboardRow]] = (
    TableColumn("method", lambda row: row.method),
    TableColumn("size", lambda row: "full" if row.share == 1 else format_share(row.share)),
    TableColumn("precision", lambda row: row.precision),
    TableColumn("validation Recall@20", lambda row: row.validation_recall, format_metric),
    TableColumn("Recall@20", lambda row: row.spread("recall@20"), format_margin),
    TableColumn("NDCG@20", lambda row: row.spread("ndcg@20"), format_margin),
    TableColumn("relative to peel-full", lambda row: row.to_peel and starred(row.to_peel, row.p_holm)),
    TableColumn("peel at this budget, relative to it", lambda row: row.peel_over and format_ratio(row.peel_over)),
    TableColumn("stored KB, max", lambda row: row.stored_bytes_max, format_kilobytes),
    TableColumn("down", lambda row: row.bytes_down_mean, format_bytes),
    TableColumn("up", lambda row: row.bytes_up_mean, format_bytes),
    TableColumn("rounds", lambda row: f"{row.rounds:g}"),
    TableColumn("trials", lambda row: row.trials),
)


def leaderboard_view(rows: Sequence[LeaderboardRow], title: str = "Leaderboard", *, every: bool = False) -> TableView:
    """Return what validation chose, one line a method and budget, by recall on the test. every: all precisions."""
    shown = [row for row in rows if every or (row.chosen and row.stored_bytes_max)]
    shown.sort(key=lambda row: -row.recall.value)
    liked = max(range(len(shown)), key=lambda i: shown[i].validation_recall, default=-1)
    note = (
        "Fully federated: no interaction leaves a device. Test metrics at the precision chosen on validation; bold: "
        "best on validation. Size: budget as a share of the fp32 full table. Stored: bytes needed for ranking, "
        "largest of any device. Down, up: per device over the run, mean. Trials: settings evaluated on validation "
        "(peel: filters of stage 1). Relative to peel-full: ratio of recall to that of PEEL's full tables; in "
        f"brackets: paired 95 % intervals. *: differs significantly, corrected for all rows (Holm, p < {SIGNIFICANT})."
    )
    best = frozenset({(liked, 3)}) if shown else frozenset()
    return replace(table_of(title, shown, _COLUMNS, note, 3, terminal=not every), best=best)


def tuning_view(tuning: Mapping[str, Mapping[str, Tuning]]) -> TableView:
    """Return every setting that was tried, with its best round and its figures on validation there."""
    body = tuple(
        (
            *(method, seed, ", ".join(f"{key} {value}" for key, value in _flat(one.setting)) or "none"),
            *(str(one.round), str(one.last), format_metric(one.validation)),
        )
        for seed, methods in tuning.items()
        for method, method_tuning in methods.items()
        for one in method_tuning.tried
    )
    columns = ("method", "seed", "setting", "best round", "rounds run", "validation Recall@20")
    return TableView(
        "Settings tried", columns, body, 3, "On a sample of devices; the best setting is measured on the test."
    )


def _flat(setting: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        pair for key, value in setting.items() for pair in (_flat(value) if isinstance(value, dict) else [(key, value)])
    ]


def leaderboard_page(result: Leaderboard) -> Page:
    """Return the page of a comparison with federated rivals."""
    caption = _caption("one table for all users, or one for each width; level line: PEEL's full tables")
    sections = [
        Section("leaderboard", "Leaderboard", (leaderboard_view(result.rows),)),
        Section("quality", "Quality against stored bytes", (Chart(lambda: compare_plot(result), caption),)),
        Section("tuning", "Tuning", (tuning_view(result.tuning),)),
        Section("rows", "All rows", (leaderboard_view(result.rows, "All rows", every=True),)),
    ]
    lead = (
        "PEEL and other federated methods on the same devices, with all bytes counted; no interaction leaves a device."
    )
    return _page(result, sections, "fully federated methods", [lead], "PEEL's full tables, fp32")


PANELS, NARROW_PANELS = 4, 2
"""Panels beside one another on a page, and on a telephone."""
METRIC = "recall@20"


@drawing.in_both_forms
def compare_plot(result: CompareResult | Leaderboard) -> Plot:
    """The comparison's figure: a panel for each method, with recall against stored bytes; in every panel the line of
    `peel`, and the full table.

    Lines are of the precisions that validation chose; those of methods that have one table for all users are dashed.
    Error bars show intervals or, where these are not known, standard deviations over seeds. Rows of budgets in which
    nothing fits have no place on an axis of bytes.
    """
    lines: dict[str, list[CompareRow]] = {}
    fitting = [row for row in result.rows if row.stored_bytes_max > 0] or result.rows
    for row in sorted((row for row in fitting if row.chosen), key=lambda row: row.stored_bytes_max):
        lines.setdefault(row.method, []).append(row)
    peel = lines.pop("peel", [])
    order = sorted(lines, key=lambda method: not lines[method][0].group_aware) or ["peel"]
    columns = min(NARROW_PANELS if drawing.is_narrow() else PANELS, len(order))
    rows = math.ceil(len(order) / columns)
    figure, panels = drawing.new_figure(
        1.45 * rows + 0.6, rows, columns, narrow_columns=columns, sharex=True, sharey=True
    )
    for panel in panels[len(order) :]:
        panel.remove()
    for panel in panels[max(len(order) - columns, 0) : len(order)]:
        panel.tick_params(labelbottom=True)
    for panel, method in zip(panels, order, strict=False):
        panel.set_xscale("log")
        panel.axhline(result.full_table.metric(METRIC).value, color=INK, linewidth=0.8, linestyle=(0, (5, 3)))
        _draw(panel, "peel", peel, BLUE)
        if method in lines:
            _draw(panel, method, lines[method], VERMILLION)
        panel.set_title(method, fontsize=7.5, fontweight="normal")
    panels[0].xaxis.set_major_locator(LogLocator(numticks=3))
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.short_bytes(value)))
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylim(bottom=0)
    figure.supxlabel("bytes stored on the device (log scale)", fontsize=drawing.LABEL_PT)
    figure.supylabel("Recall@20 (test)", fontsize=drawing.LABEL_PT)
    return drawing.finish(figure, "compare", "Quality against bytes", compare_alt(result.rows))


def _draw(panel: Axes, method: str, rows: Sequence[CompareRow], color: str) -> None:
    """Draw a method's line, with words at its points."""
    if rows:
        tips = [f"{method}: {_point_text(row)}" for row in rows]
        style = {"color": color, "marker": "o", "markersize": 3, "linewidth": 1.3}
        style["linestyle"] = "-" if rows[0].group_aware else (0, (4, 2))
        x, recalls = [max(row.stored_bytes_max, 1) for row in rows], [row.metric(METRIC) for row in rows]
        drawing.draw_line(panel, drawing.Line(method, x, recalls, tips), style)


def _point_text(row: CompareRow) -> str:
    size = format_bytes(row.stored_bytes_max)
    return f"{format_estimate(row.metric(METRIC))} at {format_share(row.share)}, {size} stored"


def compare_alt(rows: Sequence[CompareRow]) -> str:
    """The figure in words: which method validation likes best at each budget."""
    best: dict[float, CompareRow] = {}
    for row in (row for row in rows if row.chosen and not row.ceiling):
        if row.share not in best or row.validation_recall > best[row.share].validation_recall:
            best[row.share] = row
    words = [
        f"at {format_share(share)} {best[share].method} with {best[share].recall.value:.4f}" for share in sorted(best)
    ]
    return f"Line charts of Recall@20 against stored bytes. Best on validation: {'; '.join(words)}."


def _read(plain: Any, what: str) -> CompareResult | Leaderboard:
    federated = isinstance(plain, dict) and "tuning" in plain
    return from_plain(Leaderboard, plain, what) if federated else from_plain(CompareResult, plain, what)


def _page_of(result: CompareResult | Leaderboard) -> Page:
    return leaderboard_page(result) if isinstance(result, Leaderboard) else compare_page(result)


COMPARE = ResultKind("compare", _read, _page_of)
