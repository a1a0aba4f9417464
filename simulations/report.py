"""From a result to its files: `report.json`, `metrics.csv` and `report.html`; the door to all of reporting.

The shape of a result is in `report_schema`, its tables in `report_tables`, its figures in `plots`; a comparison's
files are written by `compare_report`, and offered here too. The same result gives the same bytes in every file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from simulations.compare_report import compare_plot, compare_table, read_compare, write_compare
from simulations.plots import report_figures
from simulations.report_files import csv_bytes, json_bytes, to_plain, write_files
from simulations.report_page import run_page
from simulations.report_schema import CompareResult, ReportError, RunResult, check_run
from simulations.report_tables import summary_tables

__all__ = [
    "CompareResult",
    "ReportError",
    "RunResult",
    "compare_plot",
    "compare_table",
    "metric_rows",
    "read_compare",
    "read_report",
    "report_figures",
    "summary_tables",
    "write_compare",
    "write_report",
]

CSV_COLUMNS = ("kind", "name", "share", "budget_bytes", "precision", "selector", "metric", "value")
_BUDGET_KEYS = ("share", "budget_bytes", "precision", "selector")


def write_report(result: RunResult, out_dir: Path) -> list[Path]:
    """Write `report.json`, `metrics.csv` and `report.html` into `out_dir` and return their paths.

    All three are rendered before the first is written, and either all of them are replaced or none. Other files
    in `out_dir` stay. Raises `ReportError`, naming the key's path, for a missing key, a wrong type, NaN or
    infinity, and for a folder that cannot be written.
    """
    plain = cast(RunResult, to_plain(result))
    check_run(plain)
    return write_files(
        out_dir,
        {
            "report.json": json_bytes(plain),
            "metrics.csv": csv_bytes(CSV_COLUMNS, metric_rows(plain)),
            "report.html": run_page(plain, report_figures(plain)).encode(),
        },
    )


def read_report(path: Path) -> RunResult:
    """Read `report.json` (or the folder that holds it); raise `ReportError` if it is not a report."""
    file = path / "report.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ReportError(f"{file}: cannot read ({error.strerror}); give the --out folder of a run") from error
    except ValueError as error:
        raise ReportError(f"{file}: not a report ({error}); run again with --out") from error
    check_run(result, str(file))
    return cast(RunResult, result)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a report may hold")


def metric_rows(result: RunResult) -> Iterator[dict[str, Any]]:
    """Yield every number of `result` as one row of `metrics.csv`; what was not measured (None) has no row.

    `kind` is the part of the report, `name` the entry within it (a table, a class, a group, a round counted from
    1, a stage), and the four budget columns are filled for `kind=budget` alone. The traces of single devices and
    text are in `report.json` only.
    """
    full = result["full_table"]
    yield {"kind": "full_table", "name": "fp32", "metric": "bytes", "value": full["bytes"]}
    yield from _numbers("full_table", "global", full["global"])
    if "start" in full:
        yield from _numbers("full_table", "start", full["start"])
    yield from _numbers("full_table", "refined", full["refined"])
    for row in result["budgets"]:
        values: Mapping[str, Any] = row
        place = {key: values[key] for key in _BUDGET_KEYS}
        name = f"{row['precision']} {row['selector']}"
        rest = {key: value for key, value in values.items() if key not in _BUDGET_KEYS}
        yield from ({**place, **number} for number in _numbers("budget", name, rest))
    for name, by_class in result["device_classes"].items():
        yield from _numbers("device_class", name, by_class)
    for group in result.get("user_groups", []):
        rest = {key: value for key, value in group.items() if key != "group"}
        yield from _numbers("user_group", str(group["group"]), rest)
    for index, by_round in enumerate(result["rounds"], start=1):
        yield from _numbers("round", str(index), by_round)
    for entry in result.get("history", []):
        rest = {key: value for key, value in entry.items() if key != "server_round"}
        yield from _numbers("history", str(entry["server_round"]), rest)
    for stage, seconds in result["stages"].items():
        yield from _numbers("stage", stage, {"seconds": seconds})
    yield from _numbers("bytes_per_device", "all", result.get("bytes_per_device", {}))
    for kind in ("fairness", "elasticity", "secure_aggregation"):
        yield from _numbers(kind, "all", cast(Mapping[str, Any], result).get(kind, {}))
    if "peak_rss_bytes" in result:
        yield from _numbers("run", "all", {"peak_rss_bytes": result["peak_rss_bytes"]})


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
