"""The virtual clock: how long a round takes on a device, at its profile's rates, and what it costs the battery.

    time = latency + download bytes / downlink + samples / samples_per_s + upload bytes / uplink

in this order, one after the other; choosing blocks is part of the training rate. A deadline cuts the work off where
it stands: a straggler has moved, computed and burnt what fits in the time, and its update counts for nothing (the
reporting window of Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019). No real clock is read, so the
figures are those of the simulated devices whatever machine simulates them.

Sums over devices are integers (microseconds, millijoules, bytes), so that they do not depend on order or nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.fleet.fleet import held_once

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BYTES_PER_MEGABIT = 125_000
MICROSECONDS = 1e6
MILLIJOULES = 1e3
MOST = 1 << 43
"""Microseconds (101 days) and millijoules of a device in a round, at most, so that sums over a million fit 64 bits."""


@dataclass(frozen=True)
class DeviceRates:
    """Rates of devices, (N,) each: seconds, bytes per second, samples per second, watts, joules per 10^6 bytes."""

    latency_s: FloatArray
    downlink_bytes_per_s: FloatArray
    uplink_bytes_per_s: FloatArray
    samples_per_s: FloatArray
    train_watts: FloatArray
    radio_joules_per_mb: FloatArray

    @staticmethod
    def from_rates(rates: Mapping[str, FloatArray]) -> DeviceRates:
        return DeviceRates(
            held_once(rates["latency_ms"] / 1e3),
            held_once(rates["downlink_mbps"] * BYTES_PER_MEGABIT),
            held_once(rates["uplink_mbps"] * BYTES_PER_MEGABIT),
            held_once(rates["samples_per_s"]),
            held_once(rates["train_watts"]),
            held_once(rates["radio_joules_per_mb"]),
        )

    def select(self, index: NDArray[np.integer]) -> DeviceRates:
        return DeviceRates(
            self.latency_s[index],
            self.downlink_bytes_per_s[index],
            self.uplink_bytes_per_s[index],
            self.samples_per_s[index],
            self.train_watts[index],
            self.radio_joules_per_mb[index],
        )


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round for each device, (N,) each; late: whether it missed the deadline and was cut off there."""

    time_us: IntArray
    energy_mj: IntArray
    download_bytes: IntArray
    upload_bytes: IntArray
    late: NDArray[np.bool_]


def round_seconds(
    rates: DeviceRates, download_bytes: IntArray, samples: IntArray, upload_bytes: IntArray
) -> FloatArray:
    """Virtual seconds (N,) from the request to the last byte of the reply, without a deadline."""
    return (
        rates.latency_s
        + download_bytes / rates.downlink_bytes_per_s
        + samples / rates.samples_per_s
        + upload_bytes / rates.uplink_bytes_per_s
    )


def spend(
    rates: DeviceRates,
    download_bytes: IntArray,
    samples: IntArray,
    upload_bytes: IntArray,
    deadline_s: float | None = None,
) -> RoundCost:
    """Return what devices spend on a round, each stopping at the deadline.

    download_bytes, samples, upload_bytes: (N,), the work of the whole round. Energy is train_watts over the training
    time plus radio_joules_per_mb over the bytes moved either way. Neither is reported beyond :data:`MOST`.
    """
    limit = np.inf if deadline_s is None else deadline_s
    left = np.full(len(download_bytes), limit) - np.minimum(rates.latency_s, limit)
    down_s = np.minimum(download_bytes / rates.downlink_bytes_per_s, left)
    left = left - down_s
    train_s = np.minimum(samples / rates.samples_per_s, left)
    left = left - train_s
    up_s = np.minimum(upload_bytes / rates.uplink_bytes_per_s, left)
    seconds = round_seconds(rates, download_bytes, samples, upload_bytes)
    late = seconds > limit
    moved_down = np.where(
        late, np.minimum(np.floor(down_s * rates.downlink_bytes_per_s), download_bytes), download_bytes
    )
    moved_up = np.where(late, np.minimum(np.floor(up_s * rates.uplink_bytes_per_s), upload_bytes), upload_bytes)
    joules = rates.train_watts * train_s + rates.radio_joules_per_mb * (moved_down + moved_up) / 1e6
    return RoundCost(
        _whole(np.minimum(seconds, limit) * MICROSECONDS),
        _whole(joules * MILLIJOULES),
        moved_down.astype(np.int64),
        moved_up.astype(np.int64),
        late,
    )


def _whole(values: FloatArray) -> IntArray:
    return np.rint(np.minimum(values, MOST)).astype(np.int64)


def never_within_deadline(
    rates: DeviceRates, download_bytes: IntArray, samples: IntArray, deadline_s: float | None
) -> NDArray[np.bool_]:
    """Devices (N,) that miss the deadline before they upload anything: there is no need to simulate their training."""
    if deadline_s is None:
        return np.zeros(len(download_bytes), np.bool_)
    return round_seconds(rates, download_bytes, samples, np.zeros_like(download_bytes)) > deadline_s
