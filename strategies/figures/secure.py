"""Work and cost of secure aggregation, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from fl_peel.figures import read_fields
from fl_peel.scenario.scenario import Scenario
from strategies.figures.schema import (
    SecureAggregationResult,
    SecureBytes,
    SecureCounts,
    SecureRound,
    SecureSeconds,
    SecureSettings,
    VoidGroup,
)
from strategies.rounds.record import SecureRecord


def secure_report(scenario: Scenario, records: Sequence[SecureRecord]) -> SecureAggregationResult:
    """``report.json["secure_aggregation"]``; a device counts once in every round that it takes part in.

    bytes_per_device: of one device in one round, besides blocks, ``vector`` being the larger part of ``upload``;
    seconds: of one processor, in all; devices_per_second: that are in a sum, by these seconds.
    """
    counts = sum((read_fields(SecureCounts, record) for record in records), SecureCounts())
    shared = max(sum(record.shared for record in records), 1)
    seconds = SecureSeconds(
        float(sum(record.device_s for record in records)), float(sum(record.server_s for record in records))
    )
    spent = seconds.devices + seconds.server
    return SecureAggregationResult(
        settings=read_fields(SecureSettings, scenario.secure_aggregation),
        counts=counts,
        bytes_per_device=SecureBytes(
            download=sum(record.download_bytes for record in records) / shared,
            upload=sum(record.upload_bytes for record in records) / shared,
            vector=sum(record.vector_bytes for record in records) / shared,
        ),
        seconds=seconds,
        devices_per_second=counts.devices / spent if spent > 0 else None,
        rounds=tuple(
            SecureRound(
                server_round=record.server_round,
                counts=read_fields(SecureCounts, record),
                void=tuple(VoidGroup(group, why) for group, why in sorted(record.why_void.items())),
            )
            for record in records
        ),
    )
