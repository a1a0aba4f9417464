"""Work and cost of secure aggregation, for the report."""

from __future__ import annotations

from collections.abc import Sequence

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
    part = scenario.secure_aggregation
    counts = sum((counts_of(record) for record in records), SecureCounts())
    shared = max(sum(record.shared for record in records), 1)
    seconds = SecureSeconds(
        float(sum(record.device_s for record in records)), float(sum(record.server_s for record in records))
    )
    spent = seconds.devices + seconds.server
    return SecureAggregationResult(
        settings=SecureSettings(
            masked=part.masked,
            devices_per_group=part.devices_per_group,
            min_devices=part.min_devices,
            neighbours=part.neighbours,
            threshold=part.threshold,
            word_bits=part.word_bits,
            dropout_share=part.dropout_share,
        ),
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
                counts=counts_of(record),
                void=tuple(VoidGroup(group, why) for group, why in sorted(record.why_void.items())),
            )
            for record in records
        ),
    )


def counts_of(record: SecureRecord) -> SecureCounts:
    """Return the counts of one round."""
    return SecureCounts(
        groups=record.groups,
        sat_out_groups=record.sat_out_groups,
        void_groups=record.void_groups,
        announced=record.announced,
        devices=record.devices,
        dropped=record.dropped,
        recovered=record.recovered,
        void_devices=record.void_devices,
    )


__all__ = ["counts_of", "secure_report"]
