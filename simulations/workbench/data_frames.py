"""Parts of a report as pandas tables (extra ``pandas``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fl_peel.json_codec import laid_flat
from fl_peel.lazy_imports import optional
from strategies.figures.per_device import METRICS, PerDevice

if TYPE_CHECKING:
    import pandas as pd


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    pandas = optional("pandas", "pandas", "a table of a result")
    return pandas.DataFrame([laid_flat(row) for row in rows])


def budget_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each budget, precision and selector."""
    return _frame(report["budgets"])


def round_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each round. ``elapsed_virtual_seconds``: on the fleet's clock at its end."""
    rows = []
    for moved, measured in zip(report["rounds"], report["history"], strict=True):
        elapsed = {"elapsed_virtual_seconds": measured["virtual_seconds"]}
        rows.append({**measured, **moved, **elapsed})
    return _frame(rows)


def class_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each device class."""
    return _frame({"class": name, **row} for name, row in report["device_classes"].items())


def device_frame(devices: PerDevice) -> pd.DataFrame:
    """A row for each device, as per-device.parquet has it."""
    pandas = optional("pandas", "pandas", "a table of a result")
    columns: dict[str, Any] = {
        "device": devices.devices,
        "class": list(devices.classes),
        "group": devices.groups,
        "test_items": devices.items,
    }
    for place, table in enumerate(devices.tables):
        for metric, values in zip(METRICS, (devices.recall, devices.ndcg), strict=True):
            columns[f"{metric}@{devices.top_n} {table}"] = values[:, place]
    return pandas.DataFrame(columns)
