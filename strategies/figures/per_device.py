"""Figures over devices: of every single one, and of all of them with intervals and ratios.

One row a device: its number, class, user group and how many test items it has, then recall and NDCG (float64) from each
table, in columns named ``recall@20 TABLE``. Tables are ``global``, ``start`` and ``refined`` (full, fp32), ``own
budget``, and those under a budget by share, precision and selector, such as ``1% int8 controller``. The file records
which test items figures are of, so that runs are compared on the same ones alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import IntArray
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ReportError
from fl_peel.figures import Estimate
from fl_peel.ranking.bootstrap import Replicates, interval, over
from fl_peel.ranking.top import MetricSums
from strategies.figures.schema import Gain, Quality

FILE = "per-device.parquet"
OWN_BUDGET = "own budget"
METRICS = ("recall", "ndcg")
_ABOUT = b"fl_peel"
"""Key of the file's metadata."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class PerDevice:
    """devices (N,), ascending; classes, groups and items to find of each, (N,); recall, ndcg (N, T) from each of the
    ``tables``. test_items: digest of what there was to find.
    """

    tables: tuple[str, ...]
    devices: IntArray
    classes: tuple[str, ...]
    groups: IntArray
    items: IntArray
    recall: Doubles
    ndcg: Doubles
    top_n: int
    seed: int
    test_items: str

    @staticmethod
    def from_replies(
        replies: Mapping[str, tuple[wire.EvaluateReply, int]],
        class_names: Sequence[str],
        *,
        top_n: int,
        seed: int,
        test: UserItems,
    ) -> PerDevice:
        """Build the figures from replies by table, with the place of its budget. test: test items of all devices."""
        single = [(reply.single, place) for reply, place in replies.values()]
        orders = [np.argsort(one.devices, kind="stable") for one, _ in single]
        whole, order = single[0][0], orders[0]
        recall, ndcg = (
            np.stack([getattr(one, m)[o, place] for (one, place), o in zip(single, orders, strict=True)], axis=1)
            for m in METRICS
        )
        classes = tuple(class_names[number] for number in whole.classes[order].tolist())
        mine = (whole.devices[order], classes, whole.groups[order], whole.items[order])
        return PerDevice(tuple(replies), *mine, recall, ndcg, top_n, seed, digest(test))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Return which devices have items to find, (N,): figures are means over these."""
        return self.items > 0

    def means(self) -> Doubles:
        """Mean recall and NDCG over the devices that count, (2, T)."""
        return np.stack([values[self.counted].mean(axis=0) for values in (self.recall, self.ndcg)])

    def replicates(self, tables: Sequence[str], count: int) -> Doubles:
        """The same of some of the tables, in every replicate of the bootstrap, (2, T, B)."""
        places = [self.tables.index(table) for table in tables]
        sums = Replicates.from_devices(self.devices, self.recall[:, places], self.ndcg[:, places], self.counted, count)
        return np.stack(sums.means())

    def columns(self) -> dict[str, Any]:
        """Return the columns of the file, by name, (N,) each."""
        columns: dict[str, Any] = {
            "device": self.devices,
            "class": list(self.classes),
            "group": self.groups,
            "test_items": self.items,
        }
        for place, table in enumerate(self.tables):
            for metric, values in zip(METRICS, (self.recall, self.ndcg), strict=True):
                columns[f"{metric}@{self.top_n} {table}"] = values[:, place]
        return columns

    def write(self, path: Path) -> None:
        columns = {name: pa.array(values) for name, values in self.columns().items()}
        columns["class"] = columns["class"].dictionary_encode()
        about = {"tables": self.tables, "top_n": self.top_n, "seed": self.seed, "test_items": self.test_items}
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        pa.parquet.write_table(table, path)

    @staticmethod
    def read(path: Path) -> PerDevice:
        """Read the figures of single devices from a `per-device.parquet` file.

        Raises:
            ReportError: it is not there, or not such a file.
        """
        if not path.is_file():
            raise ReportError(f"{path}: not there; run again with --per-device, then compare")
        try:
            table = pa.parquet.read_table(path)
            about = json.loads(table.schema.metadata[_ABOUT])
            column = {name: table.column(name).to_numpy() for name in ("device", "group", "test_items")}
            recall, ndcg = (
                np.stack([table.column(f"{m}@{about['top_n']} {name}").to_numpy() for name in about["tables"]], axis=1)
                for m in METRICS
            )
            return PerDevice(
                tuple(about["tables"]),
                column["device"],
                tuple(table.column("class").to_pylist()),
                column["group"],
                column["test_items"],
                recall,
                ndcg,
                int(about["top_n"]),
                int(about["seed"]),
                str(about["test_items"]),
            )
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ReportError(f"{path}: not a file of --per-device ({reason}); run again with --per-device") from error


def digest(items: UserItems) -> str:
    """Return the digest of every device's items, as they are numbered."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in (items.indptr, items.items):
        hashed.update(np.ascontiguousarray(part).astype("<i8").tobytes())
    return hashed.hexdigest()


@dataclass(frozen=True)
class MeasuredQuality:
    """Mean recall and NDCG of ``devices`` devices with test items, from one table, and of replicates, (B,)."""

    recall: float
    ndcg: float
    recalls: Doubles
    ndcgs: Doubles
    devices: int

    @staticmethod
    def from_reply(reply: wire.EvaluateReply, place: int = 0) -> MeasuredQuality:
        """Measure the quality under one of the budgets asked for, the one at ``place``."""
        sums, (recalls, ndcgs) = reply.by_budget()[place], reply.replicates.means()
        recall, ndcg = sums.mean()
        return MeasuredQuality(float(recall), float(ndcg), recalls[place], ndcgs[place], int(sums.devices))

    def over(self, base: MeasuredQuality | None) -> Estimate | None:
        """Recall over that of another table."""
        if base is None or base.recall <= 0:
            return None
        return self._estimate(self.recall / base.recall, over(self.recalls, base.recalls))

    def quality(self, base: MeasuredQuality | None = None) -> Quality:
        """Return the quality as the report has it. base: quality of the global table, which it is compared with."""
        recall, ndcg = self._estimate(self.recall, self.recalls), self._estimate(self.ndcg, self.ndcgs)
        return Quality(recall, ndcg, self.over(base))

    def gain(self, first: MeasuredQuality) -> Gain | None:
        """Recall less that of a first table; None without replicates."""
        gain = self._estimate(self.recall - first.recall, self.recalls - first.recalls)
        return None if gain.ends is None else Gain(gain, self.devices)

    def _estimate(self, value: float, replicates: Doubles) -> Estimate:
        return Estimate(value, *(interval(replicates, self.devices) or (None, None)))


def qualities(reply: wire.EvaluateReply) -> list[Quality]:
    """Means over devices, for each of the budgets asked for."""
    recall, ndcg = reply.by_budget().mean()
    return [Quality(Estimate(float(r)), Estimate(float(n))) for r, n in zip(recall, ndcg, strict=True)]


def cell_recalls(sums: MetricSums) -> list[Estimate | None]:
    """Mean recall of every cell, with half its interval where two devices count; None: no devices."""
    cells = zip(sums.mean()[0].tolist(), sums.margin().tolist(), sums.devices.tolist(), strict=True)
    return [estimate_within(recall, margin) if devices else None for recall, margin, devices in cells]


def estimate_within(value: float, margin: float) -> Estimate:
    """Return the estimate of a margin, which is NaN where it is not known."""
    return Estimate.from_margin(value, None if np.isnan(margin) else margin)
