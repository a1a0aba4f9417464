"""Files of a result: `report.json`, `metrics.csv` and `report.html`; the door to all of reporting.

The shape of a result is in `strategies.figures.schema`, its tables in `tables`, its figures in `plots`. Studies write
files of their own. The same result gives the same bytes in every file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fl_peel.errors import ReportError
from simulations.report.plots.run_plots import report_figures
from simulations.report.result_files import csv_bytes, json_bytes, to_plain
from simulations.report.result_writer import write_results
from simulations.report.run_page import run_page
from simulations.report.tables.run_tables import summary_tables
from strategies.figures.schema import RunResult, from_json, to_json

__all__ = [
    "ReportError",
    "RunResult",
    "metric_rows",
    "read_report",
    "report_contents",
    "report_figures",
    "run_page",
    "summary_tables",
    "write_report",
]

CSV_COLUMNS = ("kind", "name", "share", "budget_bytes", "precision", "selector", "metric", "value")
_BUDGET_KEYS = ("share", "budget_bytes", "precision", "selector")


def write_report(result: RunResult, out_dir: Path) -> list[Path]:
    """Write `report.json`, `metrics.csv` and `report.html` into `out_dir` and return their paths.

    All three are rendered before the first is written, and either all of them are replaced or none. Other files
    in `out_dir` stay. Raises `ReportError`, naming the key's path, for a value out of range or of the wrong type, NaN
    or infinity, and for a folder that cannot be written.
    """
    return write_results(out_dir, report_contents(result))


def report_contents(result: RunResult, demo: str | None = None) -> dict[str, bytes]:
    """The three files by name. demo: as in :func:`run_page`.

    Raises:
        ReportError: as :func:`write_report`, of the value.
    """
    plain = to_plain(to_json(result))
    checked = from_json(plain)
    return {
        "report.json": json_bytes(plain),
        "metrics.csv": csv_bytes(CSV_COLUMNS, metric_rows(plain)),
        "report.html": run_page(checked, report_figures(checked), demo).encode(),
    }


def read_report(path: Path) -> RunResult:
    """Read `report.json` (or the folder that holds it); raise `ReportError` if it is not a report."""
    file = path / "report.json" if path.is_dir() else path
    try:
        plain = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ReportError(f"{file}: cannot read ({error.strerror}); give the --out folder of a run") from error
    except ValueError as error:
        raise ReportError(f"{file}: not a report ({error}); run again with --out") from error
    return from_json(plain, str(file))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a report may hold")


def metric_rows(plain: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every number of the content of `report.json` as one row of `metrics.csv`; null has no row.

    `kind` is the part of the report, `name` the entry within it (a table, a class, a group, a round counted from
    1, a stage), and the four budget columns are filled for `kind=budget` alone. The traces of single devices and
    text are in `report.json` only.
    """
    full = plain["full_table"]
    yield {"kind": "full_table", "name": "fp32", "metric": "bytes", "value": full["bytes"]}
    for name in ("global", "start", "start_validation", "refined", "gain"):
        yield from _numbers("full_table", name, full.get(name))
    for row in plain["budgets"]:
        place = {key: row[key] for key in _BUDGET_KEYS}
        rest = {key: value for key, value in row.items() if key not in _BUDGET_KEYS}
        numbers = _numbers("budget", f"{row['precision']} {row['selector']}", rest)
        yield from ({**place, **number} for number in numbers)
    for name, by_class in plain["device_classes"].items():
        yield from _numbers("device_class", name, by_class)
    for group in plain["user_groups"]:
        rest = {key: value for key, value in group.items() if key != "group"}
        yield from _numbers("user_group", str(group["group"]), rest)
    for index, by_round in enumerate(plain["rounds"], start=1):
        yield from _numbers("round", str(index), by_round)
    for entry in plain["history"]:
        rest = {key: value for key, value in entry.items() if key != "server_round"}
        yield from _numbers("history", str(entry["server_round"]), rest)
    for stage, seconds in plain["stages"].items():
        yield from _numbers("stage", stage, {"seconds": seconds})
    for kind in ("bytes_per_device", "fairness", "elasticity", "secure_aggregation"):
        yield from _numbers(kind, "all", plain.get(kind))
    if "peak_rss_bytes" in plain:
        yield from _numbers("run", "all", {"peak_rss_bytes": plain["peak_rss_bytes"]})


def _numbers(kind: str, name: str, value: object, path: str = "") -> Iterator[dict[str, Any]]:
    """Yield the numbers under `value`; nested keys and positions join into a dotted metric name."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(kind, name, part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _numbers(kind, name, part, f"{path}.{index}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield {"kind": kind, "name": name, "metric": path, "value": value}
