"""Files of a comparison with federated rivals: what compare.json then holds, its tables and its page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from simulations.report.plots.style import Plot
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import to_plain
from simulations.report.tables.table_view import (
    ABSENT,
    TableView,
    format_bytes,
    format_kilobytes,
    format_metric,
    format_share,
)
from simulations.studies.compare.compare_plot import compare_plot
from simulations.studies.compare.paired import ratio_text
from simulations.studies.compare.report import plotted_rows
from simulations.studies.compare.schema import CompareFullTable, CompareRow, PairedRatio, check_of
from simulations.studies.study_files import write_study
from strategies.figures.schema import Bytes, Count, Mean, Metric


class LeaderboardRow(CompareRow):
    """One method at one budget, or with its full table (share 1). Bytes down, up: of a device over the run, on average,
    down with what it holds in the end; stored: what a device holds to rank; rounds: of training; trials: settings that
    validation chose from.
    """

    budget_bytes: Bytes
    stored_bytes_mean: Mean
    bytes_down_mean: Mean
    bytes_up_mean: Mean
    rounds: Mean
    note: str
    to_peel: NotRequired[PairedRatio]  # recall over that of PEEL's full tables


class TriedSetting(TypedDict):
    """A setting, and its figures on validation at its best round. last: number of rounds that were run."""

    setting: dict[str, Any]
    round: Count
    last: Count
    validation: Metric


class Tuning(TypedDict):
    """The setting that was chosen, and all that were tried. own_rows: devices rank with rows of their own."""

    setting: dict[str, Any]
    own_rows: bool
    tried: list[TriedSetting]


class Leaderboard(TypedDict):
    """The content of `compare.json` where nothing is collected. tuning, stages: by seed, then by method or stage."""

    full_table: CompareFullTable
    rows: list[LeaderboardRow]
    tuning: dict[str, dict[str, Tuning]]
    stages: dict[str, dict[str, float]]
    seeds: Count
    scenario: NotRequired[dict[str, Any] | str]
    seed: NotRequired[int]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[str]


_LEADERBOARD: TypeAdapter[Leaderboard] = TypeAdapter(Leaderboard)


def write_leaderboard(result: Leaderboard, out_dir: Path) -> list[Path]:
    """Write `compare.json`, `compare.csv`, `compare.html` and `compare.svg` into `out_dir`, all or none; their paths.

    Raises:
        ReportError: naming the key's path, for a missing key, a wrong type, NaN or infinity.
    """
    plain = cast(Leaderboard, to_plain(result, "comparison"))
    check_of(_LEADERBOARD, plain, "comparison")
    shown = plotted_rows(plain["rows"])
    plot = compare_plot(shown, plain["full_table"])
    return write_study(out_dir, plain, plain["rows"], leaderboard_page(plain, plot), plot)


def leaderboard_view(rows: Sequence[LeaderboardRow], title: str = "Leaderboard", *, every: bool = False) -> TableView:
    """Return what validation chose, one line a method and budget, by recall on the test. every: all precisions."""
    shown = [row for row in rows if every or (row["chosen"] and row["stored_bytes_max"])]
    shown.sort(key=lambda row: -row["recall@20"])
    liked = max(range(len(shown)), key=lambda i: shown[i]["validation_recall@20"], default=-1)
    body = tuple(
        (
            *(row["method"], _size(row), row["precision"]),
            format_metric(row["validation_recall@20"]),
            *(format_metric(row[metric]) + _spread(row, metric) for metric in ("recall@20", "ndcg@20")),
            ratio_text(row.get("to_peel")),
            format_kilobytes(row["stored_bytes_max"]),
            *(format_bytes(row[key]) for key in ("bytes_down_mean", "bytes_up_mean")),
            f"{row['rounds']:g}",
            str(row.get("trials", ABSENT)),
        )
        for row in shown
    )
    columns = (
        *("method", "size", "precision", "validation Recall@20", "Recall@20", "NDCG@20", "relative to peel-full"),
        *("stored KB, max", "down", "up", "rounds", "trials"),
    )
    note = (
        "Fully federated: no interaction leaves a device. Test metrics at the precision chosen on validation; bold: "
        "best on validation. Size: budget as a share of the fp32 full table. Stored: bytes needed for ranking, "
        "largest of any device. Down, up: per device over the run, mean. Trials: settings evaluated on validation "
        "(peel: filters of stage 1). Relative to peel-full: ratio of recall to that of PEEL's full tables; in "
        "brackets: paired 95 % intervals."
    )
    return TableView(title, columns, body, 3, note, frozenset({(liked, 3)}) if shown else frozenset())


def _size(row: LeaderboardRow) -> str:
    return "full" if row["share"] == 1 else format_share(row["share"])


def _spread(row: LeaderboardRow, metric: str) -> str:
    spread = cast(dict[str, Any], row).get(f"{metric}_std")
    return "" if spread is None else f" ±{spread:.4f}"


def tuning_view(tuning: dict[str, dict[str, Tuning]]) -> TableView:
    """Return every setting that was tried, with its best round and its figures on validation there."""
    body = tuple(
        (
            *(method, seed, ", ".join(f"{key} {value}" for key, value in _flat(one["setting"])) or "none"),
            *(str(one["round"]), str(one["last"]), format_metric(one["validation"])),
        )
        for seed, methods in tuning.items()
        for method, method_tuning in methods.items()
        for one in method_tuning["tried"]
    )
    columns = ("method", "seed", "setting", "best round", "rounds run", "validation Recall@20")
    return TableView(
        "Settings tried", columns, body, 3, "On a sample of devices; the best setting is measured on the test."
    )


def _flat(setting: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        pair for key, value in setting.items() for pair in (_flat(value) if isinstance(value, dict) else [(key, value)])
    ]


def leaderboard_page(result: Leaderboard, plot: Plot) -> str:
    """Return the page."""
    full = result["full_table"]
    name = scenario_name(result["scenario"]) if "scenario" in result else ""
    return render(
        "leaderboard.html",
        title=f"{name}: fully federated methods" if name else "Fully federated methods",
        lead="PEEL and other federated methods on the same devices, with all bytes counted; no interaction leaves a "
        "device.",
        facts=[
            ("PEEL's full tables, fp32", format_bytes(full["bytes"])),
            ("Recall@20", format_metric(full["recall@20"])),
            ("NDCG@20", format_metric(full["ndcg@20"])),
            ("methods", str(len({row["method"] for row in result["rows"]}))),
        ],
        leaderboard=leaderboard_view(result["rows"]),
        tuning=tuning_view(result["tuning"]),
        details=leaderboard_view(result["rows"], "All rows", every=True),
        plot=plot,
        **provenance(result, f"fl-peel compare {shlex.quote(name)}" if name else ""),
    )


__all__ = ["Leaderboard", "LeaderboardRow", "leaderboard_view", "write_leaderboard"]
