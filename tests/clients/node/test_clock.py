"""The virtual clock by numbers worked out by hand, and what must hold for any device."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clients.fleet.fleet import held_once
from clients.node.cohort import MOST, DeviceRates, never_within_deadline, round_seconds, spend

# 0.5 s latency, 8 Mbit/s down = 1,000,000 B/s, 0.8 Mbit/s up = 100,000 B/s, 50 samples/s, 2 W, 4 J/MB
PHONE = DeviceRates.from_rates(
    {
        "latency_ms": np.array([500.0]),
        "downlink_mbps": np.array([8.0]),
        "uplink_mbps": np.array([0.8]),
        "samples_per_s": np.array([50.0]),
        "train_watts": np.array([2.0]),
        "radio_joules_per_mb": np.array([4.0]),
    }
)
DOWN, SAMPLES, UP = (np.array([n], np.int64) for n in (2_000_000, 150, 50_000))


def test_time_is_the_sum_of_its_parts():
    # 0.5 + 2,000,000 / 1,000,000 + 150 / 50 + 50,000 / 100,000 = 0.5 + 2 + 3 + 0.5
    assert round_seconds(PHONE, DOWN, SAMPLES, UP).tolist() == [6.0]
    spent = spend(PHONE, DOWN, SAMPLES, UP)
    assert spent.time_us.tolist() == [6_000_000]
    # 2 W x 3 s + 4 J/MB x 2.05 MB = 6 + 8.2 J
    assert spent.energy_mj.tolist() == [14_200]
    assert not spent.late.any()


@pytest.mark.parametrize(
    ("deadline_s", "time_us", "down", "up", "energy_mj"),
    [
        (0.25, 250_000, 0, 0, 0),  # within the latency: nothing has moved
        (1.5, 1_500_000, 1_000_000, 0, 4_000),  # 1 s of download: 1 MB at 4 J/MB
        (4.5, 4_500_000, 2_000_000, 0, 12_000),  # 2 s of training: 2 W x 2 s + 8 J
        (5.75, 5_750_000, 2_000_000, 25_000, 14_100),  # 0.25 s of upload: 6 J + 4 x 2.025 J
    ],
)
def test_a_straggler_stops_where_the_deadline_finds_it(deadline_s, time_us, down, up, energy_mj):
    spent = spend(PHONE, DOWN, SAMPLES, UP, deadline_s)
    assert spent.late.tolist() == [True]
    assert spent.time_us.tolist() == [time_us]
    assert spent.download_bytes.tolist() == [down]
    assert spent.upload_bytes.tolist() == [up]
    assert spent.energy_mj.tolist() == [energy_mj]


def test_a_device_that_ends_on_the_deadline_is_in_time():
    spent = spend(PHONE, DOWN, SAMPLES, UP, 6.0)
    assert not spent.late.any()
    assert spent.upload_bytes.tolist() == [50_000]
    assert spend(PHONE, DOWN, SAMPLES, UP, 5.999).late.all()


def test_no_need_to_train_what_is_late_before_its_upload():
    # latency, download and training alone take 5.5 s
    assert never_within_deadline(PHONE, DOWN, SAMPLES, 5.4).all()
    assert not never_within_deadline(PHONE, DOWN, SAMPLES, 5.5).any()
    assert not never_within_deadline(PHONE, DOWN, SAMPLES, None).any()


def test_devices_that_would_never_end_add_up_all_the_same():
    """10^9 samples at 0.001 a second and 10 MW: 10^18 us and 10^22 mJ, which no 64 bits hold."""
    rates = DeviceRates(*(np.array([value]) for value in (1.0, 1.0, 1.0, 1e-3, 1e7, 1.0)))
    spent = spend(rates, DOWN, np.array([10**9]), UP)
    for values in (spent.time_us, spent.energy_mj):
        assert values.tolist() == [MOST]
        assert int((values * 2**19).sum()) == MOST * 2**19 > 0  # of half a million devices


positive = st.floats(1e-3, 1e5)
counts = st.integers(0, 10**6)  # at the slowest rates and the most watts, millijoules still fit 64 bits


@example((1.0, 1.0, 1.0, 1e-3, 1e5, 1.0), 0, 10**9, 0, 1.0)
@given(st.tuples(positive, positive, positive, positive, positive, positive), counts, counts, counts, positive)
def test_a_deadline_only_ever_takes_away(values, down, samples, up, deadline_s):
    rates = DeviceRates(*(np.array([value]) for value in values))
    work = [np.array([n], np.int64) for n in (down, samples, up)]
    free, cut = spend(rates, *work), spend(rates, *work, deadline_s)
    for name in ("time_us", "energy_mj", "download_bytes", "upload_bytes"):
        assert 0 <= getattr(cut, name)[0] <= getattr(free, name)[0]
    assert cut.time_us[0] <= round(deadline_s * 1e6)
    assert cut.late[0] == (round_seconds(rates, *work)[0] > deadline_s)
    if not cut.late[0]:
        assert (cut.energy_mj, cut.upload_bytes) == (free.energy_mj, free.upload_bytes)
    assert not never_within_deadline(rates, work[0], work[1], deadline_s)[0] or cut.late[0]


def test_a_value_that_all_devices_have_is_held_once():
    same, apart = np.full(1000, 2.5), np.append(np.full(999, 2.5), 2.0)
    assert held_once(same).strides == (0,)
    assert np.array_equal(held_once(same), same)
    assert held_once(apart) is apart
    assert np.isnan(held_once(np.full(3, np.nan))).all()
    assert len(held_once(same[:0])) == 0


def test_rates_that_all_devices_share_take_no_memory_for_each():
    names = ("latency_ms", "downlink_mbps", "uplink_mbps", "samples_per_s", "train_watts", "radio_joules_per_mb")
    rates = DeviceRates.from_rates({name: np.full(1000, number + 1.0) for number, name in enumerate(names)})
    assert {array.strides for array in vars(rates).values()} == {(0,)}
    assert rates.downlink_bytes_per_s[-1] == 250_000
