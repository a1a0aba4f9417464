"""Fleets of memory as measured: transitions by hand from the counts, and a recording of the project's own."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from clients.fleet.fleet import Fleet, FleetBudgets, load_fleet
from clients.fleet.tabular import load_traces
from tests.helpers.fleets import TABLE, ids
from tests.helpers.root import ROOT

STATES = ("normal", "moderate", "low", "critical")
EXAMPLES = ROOT / "docs" / "fleets"
ROUNDS, DEVICES = 40, 500
STAY = {"relaxed": 0.998, "pressed": 0.97, "critical": 0.5}
"""Of the state normal."""


def matrix(name: str) -> np.ndarray:
    """Transitions of a class by hand: (4, 4), in the order of STATES."""
    # what followed what on 80 phones; normal has what is left over: critical is left 3670 + 1048 + 743 = 5461 times and
    # entered 1562 + 123 times, low is left 1562 + 4175 + 718 = 6455 times and entered 3670 + 824 times
    counts = np.array(
        [
            [0, 0, 6455 - 3670 - 824, 5461 - 1562 - 123],
            [2614, 0, 824, 123],
            [718, 4175, 0, 1562],
            [743, 1048, 3670, 0],
        ]
    )
    stay = np.array([[STAY[name]], [0.5], [0.5], [0.5]])
    return stay * np.eye(4) + (1 - stay) * counts / counts.sum(axis=1, keepdims=True)


def states_of(fleet: Fleet, name: str) -> np.ndarray:
    """State numbers of the devices of a class over all steps, (T, N), from their budgets."""
    budgets = FleetBudgets(fleet.only(name), 5, ids(DEVICES), TABLE)
    over_time = np.concatenate([budgets.during(server_round) for server_round in range(ROUNDS)])
    return 4 - np.rint(4 * over_time / budgets.ceiling()).astype(np.int64)  # budgets are all, 3/4, 1/2 and 1/4


@cache
def shipped(name: str) -> np.ndarray:
    """States of the shipped fleet, (T, N)."""
    return states_of(load_fleet("pressured-phones"), name)


def counted(states: np.ndarray) -> np.ndarray:
    """How often a state followed another, (4, 4)."""
    return np.bincount((4 * states[:-1] + states[1:]).ravel(), minlength=16).reshape(4, 4)


def errors_off(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many standard errors the farthest of the 16 shares is off; infinite where the impossible happened."""
    num = counts.sum(axis=1, keepdims=True)
    off = np.abs(counts / num - expected)
    error = np.sqrt(expected * (1 - expected) / num)
    return float(np.where(error > 0, off / np.where(error > 0, error, 1), np.where(off > 0, np.inf, 0)).max())


# ---------------------------------------------------------------- the phones of Waheed et al.


@pytest.mark.parametrize("name", STAY)
def test_devices_go_from_state_to_state_as_phones_were_counted(name):
    assert errors_off(counted(shipped(name)), matrix(name)) < 5


def test_a_third_of_the_phones_are_under_pressure_and_one_in_ten_is_critical():
    fleet = load_fleet("pressured-phones")
    assert fleet.names == ("relaxed", "pressed", "critical")
    assert fleet.shares == pytest.approx((0.65, 0.25, 0.10))  # 35% under pressure, 10% of them critical
    shares = [np.bincount(shipped(name).ravel(), minlength=4) / shipped(name).size for name in fleet.names]
    assert [1 - share[0] for share in shares] == pytest.approx([0.013, 0.16, 0.76], abs=0.005)  # as the file says
    assert [share[3] for share in shares] == pytest.approx([0.004, 0.05, 0.235], abs=0.005)


def test_critical_phones_change_30_times_an_hour():
    states = shipped("critical")
    assert load_fleet("pressured-phones").clock.step_s == 60
    assert 60 * (states[1:] != states[:-1]).mean() == pytest.approx(30, abs=0.28)  # 5 * 60 * sqrt(.25 / 300,000)


def test_what_states_leave_is_the_same_in_all_classes():
    factors = [profile.budget.states for profile in load_fleet("pressured-phones").profiles]
    assert factors == [{"normal": 1.0, "moderate": 0.75, "low": 0.5, "critical": 0.25}] * 3


# ---------------------------------------------------------------- the project's own recording


def test_recorded_devices_replay_the_recording():
    traces = load_traces(EXAMPLES / "machine.csv", "memory_bytes")
    assert (traces.num_traces, len(traces.values)) == (1, 60)
    budgets = FleetBudgets(load_fleet(EXAMPLES / "recorded-memory.yaml"), 0, ids(300), TABLE)
    shares = np.concatenate([budgets.during(server_round) for server_round in range(20)]) / budgets.ceiling()
    assert shares.max() == pytest.approx(1, abs=1e-4)
    # the least that was available is 11.19 of at most 22.49 GB
    assert shares.min() == pytest.approx(11.19 / 22.49, abs=1e-3)
