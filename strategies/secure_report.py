"""What secure aggregation did and cost, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_peel.config import Scenario
from strategies.secure_rounds import SecureRecord

COUNTS = ("groups", "sat_out_groups", "void_groups", "announced", "devices", "dropped", "recovered", "void_devices")


def secure_report(scenario: Scenario, records: Sequence[SecureRecord]) -> dict[str, Any]:
    """``report.json["secure_aggregation"]``; a device counts once in every round that it takes part in.

    bytes_per_device: of one device in one round, besides blocks, ``vector`` being the larger part of ``upload``;
    seconds: of one processor, in all; devices_per_second: that are in a sum, by these seconds.
    """
    part = scenario.secure_aggregation
    total = {name: sum(getattr(record, name) for record in records) for name in COUNTS}
    shared = max(sum(record.shared for record in records), 1)
    device_s, server_s = (float(sum(getattr(record, name) for record in records)) for name in ("device_s", "server_s"))
    spent = device_s + server_s
    return {
        **part.model_dump(mode="json", exclude={"enabled"}),
        **total,
        "bytes_per_device": {
            name: sum(getattr(record, f"{name}_bytes") for record in records) / shared
            for name in ("download", "upload", "vector")
        },
        "seconds": {"devices": device_s, "server": server_s},
        "devices_per_second": total["devices"] / spent if spent > 0 else None,
        "rounds": [
            {
                "server_round": record.server_round,
                **{name: getattr(record, name) for name in COUNTS},
                "void": [{"group": group, "why": why} for group, why in sorted(record.why_void.items())],
            }
            for record in records
        ],
    }


__all__ = ["secure_report"]
