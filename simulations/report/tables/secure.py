"""Work and cost of secure aggregation, as rows of the table of bytes and seconds."""

from __future__ import annotations

from simulations.report.tables.table_view import ABSENT
from strategies.figures.schema import SecureAggregationResult


def secure_rows(result: SecureAggregationResult) -> list[tuple[str, str]]:
    """Devices, dropouts and void groups over all rounds; bytes and processor seconds of one device in one round."""
    counts, moved, seconds = result.counts, result.bytes_per_device, result.seconds
    devices, speed = max(counts.announced, 1), result.devices_per_second
    return [
        ("secure sums: devices, all rounds", f"{counts.devices:,}"),
        ("secure sums: dropped, masks recovered", f"{counts.dropped:,}, {counts.recovered:,}"),
        ("secure sums: void groups, sat out", f"{counts.void_groups:,}, {counts.sat_out_groups:,}"),
        ("secure sums: masked vector, bytes", f"{moved.vector:,.0f}"),
        ("secure sums: keys and shares up, down", f"{moved.upload - moved.vector:,.0f}, {moved.download:,.0f}"),
        ("secure sums: ms per device", f"{1e3 * seconds.devices / devices:.1f}"),
        ("secure sums: ms per device, server", f"{1e3 * seconds.server / devices:.1f}"),
        ("secure sums: devices/s, one processor", ABSENT if speed is None else f"{speed:,.0f}"),
    ]


__all__ = ["secure_rows"]
