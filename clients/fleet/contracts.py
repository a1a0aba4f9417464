"""Contract suites: what every budget process and every device profile must do, to be subclassed in your own tests.

::

    from fl_peel import BudgetContract
    from my_package import TidalBudget

    class TestTidalBudget(BudgetContract):
        def make(self):
            return TidalBudget(period_hours=12)

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clients.fleet.budgets import BudgetProcess, Clock, Devices, State
from clients.fleet.distributions import FloatArray
from clients.fleet.fleet import Fleet, FleetBudgets
from clients.fleet.profile import DeviceProfile

_FULL_TABLE_BYTES = 10_000_000


def _assert_ignores_company(ask: Callable[[Devices], NDArray[np.generic]], devices: Devices, what: str) -> None:
    """The answer for a device is the same alone, in a chunk, among others and in another order."""
    whole = ask(devices)
    assert whole.shape == (len(devices),), f"{what}: {len(devices)} devices gave shape {whole.shape}"
    assert np.array_equal(ask(devices[::-1])[::-1], whole), f"{what} depends on the order of the devices"
    chunks = [ask(chunk) for chunk in np.array_split(devices, 7)]
    assert np.array_equal(np.concatenate(chunks), whole), f"{what} depends on which devices are asked together"
    alone = [ask(devices[i : i + 1])[0] for i in range(0, len(devices), 50)]
    assert np.array_equal(alone, whole[::50]), f"{what} differs when a device is asked alone"
    assert ask(devices[:0]).shape == (0,), f"{what} must take no devices at all"
    assert np.array_equal(ask(devices), whole), f"{what} differs when asked again"


class _Devices:
    """The devices that a suite tests with."""

    num_devices: int = 200

    def devices(self) -> Devices:
        """Return the ids to test with: not consecutive, and some of them large."""
        ids = np.arange(self.num_devices, dtype=np.int64) * 7919 + 3
        ids[-1] = 2**40
        return ids


class BudgetContract(_Devices):
    """Contract suite of a budget process: subclass it, override :meth:`make`, and change the class attributes where
    your process needs it.

    ``seeds`` and ``num_steps`` set how much is tested; ``base_bytes`` is the largest base budget.
    """

    seeds: tuple[int, ...] = (0, 1, 2**31)
    num_steps: int = 40
    base_bytes: float = 1_000_000.0
    clock: Clock = Clock()

    def make(self) -> BudgetProcess:
        """Return the process to be tested."""
        raise NotImplementedError("override make() to return your budget process")

    def base(self, devices: Devices) -> FloatArray:
        """Return base budgets as a function of the id: (N,)."""
        return np.asarray(self.base_bytes * (1.0 + devices % 97) / 97.0, dtype=np.float64)

    def budget_at(self, seed: int, devices: Devices, step: int) -> FloatArray:
        """Return budgets at a step, computed from scratch: (N,)."""
        process = self.make()
        state = process.state_at(seed, devices, step)
        return process.budget(state, seed, devices, self.base(devices), self.clock.moment(step))

    def test_budgets_lie_between_zero_and_the_ceiling(self) -> None:
        """Budgets lie between 0 and the ceiling, at every step and for every seed."""
        process, devices = self.make(), self.devices()
        for seed in self.seeds:
            ceiling = process.ceiling(seed, devices, self.base(devices))
            assert ceiling.shape == (len(devices),), f"ceiling of {len(devices)} devices has shape {ceiling.shape}"
            assert np.isfinite(ceiling).all(), "a ceiling is not finite"
            state = process.start(seed, devices)
            for step in range(self.num_steps):
                state = state if step == 0 else process.advance(state, seed, devices, step)
                budget = process.budget(state, seed, devices, self.base(devices), self.clock.moment(step))
                assert (budget >= 0).all(), f"a budget is below 0 or not a number at step {step}, seed {seed}"
                assert (budget <= ceiling).all(), f"a budget is above its ceiling at step {step}, seed {seed}"

    def test_from_scratch_equals_step_by_step(self) -> None:
        """``state_at(t)`` equals the state that ``advance`` reaches."""
        process, devices = self.make(), self.devices()
        for seed in self.seeds:
            state = process.start(seed, devices)
            for step in range(self.num_steps):
                state = state if step == 0 else process.advance(state, seed, devices, step)
                budget = process.budget(state, seed, devices, self.base(devices), self.clock.moment(step))
                scratch = self.budget_at(seed, devices, step)
                assert np.array_equal(budget, scratch), f"advance and state_at differ at step {step}, seed {seed}"

    def test_a_device_ignores_its_company(self) -> None:
        """The budget of a device depends neither on the order nor on the number of devices in a call."""
        for step in (0, 1, self.num_steps - 1):
            _assert_ignores_company(
                lambda ids, step=step: self.budget_at(self.seeds[0], ids, step),  # type: ignore[misc]
                self.devices(),
                f"the budget at step {step}",
            )
        _assert_ignores_company(
            lambda ids: self.make().ceiling(self.seeds[0], ids, self.base(ids)), self.devices(), "the ceiling"
        )

    def test_advance_leaves_its_arguments_alone(self) -> None:
        """Neither the state nor the ids nor the base budgets are changed."""
        process, devices = self.make(), self.devices()
        devices.setflags(write=False)
        base = self.base(devices)
        base.setflags(write=False)
        state: State = process.start(self.seeds[0], devices)
        before = None if state is None else state.copy()
        process.advance(state, self.seeds[0], devices, 1)
        process.budget(state, self.seeds[0], devices, base, self.clock.moment(0))
        process.ceiling(self.seeds[0], devices, base)
        if state is not None:
            assert before is not None
            assert np.array_equal(state, before), "advance or budget changed the state it was given"
            assert len(state) == len(devices), "a state's first axis must be the device"

    def test_survives_pickling(self) -> None:
        """The process can be pickled, since a fleet travels to the workers that host its devices."""
        process, devices = self.make(), self.devices()
        twin = pickle.loads(pickle.dumps(process))
        base = self.base(devices)
        first = process.budget(process.state_at(1, devices, 3), 1, devices, base, self.clock.moment(3))
        second = twin.budget(twin.state_at(1, devices, 3), 1, devices, base, self.clock.moment(3))
        assert np.array_equal(first, second), "a pickled copy gives other budgets"


class ProfileContract(_Devices):
    """Contract suite of a device profile: subclass it and override :meth:`make` to return one DeviceProfile."""

    seeds: tuple[int, ...] = (0, 1, 2**31)
    rounds: tuple[float, ...] = (0, 0.5, 1, 7.25, 30)

    def make(self) -> DeviceProfile:
        """Return the profile to be tested."""
        raise NotImplementedError("override make() to return your device profile")

    def fleet(self) -> Fleet:
        """Return the fleet of this profile alone."""
        alone = self.make().model_copy(update={"population_share": None, "population_count": None})
        return Fleet((alone,))

    def test_budgets_stay_below_ceiling_and_total(self) -> None:
        """Budgets are whole bytes in 0..ceiling, and the ceiling is at most the device's memory."""
        fleet, devices = self.fleet(), self.devices()
        for seed in self.seeds:
            budgets = FleetBudgets(fleet, seed, devices, _FULL_TABLE_BYTES)
            ceiling = budgets.ceiling()
            assert (ceiling <= self.make().limit_bytes(seed, devices)).all(), "a ceiling is above the total memory"
            for server_round in self.rounds:
                now = budgets.at(server_round)
                assert (now >= 0).all(), f"a budget is negative in round {server_round}"
                assert (now <= ceiling).all(), f"a budget is above its ceiling in round {server_round}"

    def test_rates_make_sense(self) -> None:
        """Speeds are above 0, latency and energy at least 0."""
        for seed in self.seeds:
            for key, values in self.fleet().rates(seed, self.devices()).items():
                assert np.isfinite(values).all(), f"{key} is not finite"
                above_zero = key in ("samples_per_s", "uplink_mbps", "downlink_mbps")
                assert (values > 0 if above_zero else values >= 0).all(), f"{key} is out of range"

    def test_a_device_ignores_its_company(self) -> None:
        """The values of a device depend neither on the order nor on the number of devices in a call."""
        fleet, seed, devices = self.fleet(), self.seeds[0], self.devices()
        for server_round in self.rounds:
            _assert_ignores_company(
                lambda ids, t=server_round: fleet.budget_bytes(  # type: ignore[misc]
                    seed, ids, t, full_table_bytes=_FULL_TABLE_BYTES
                ),
                devices,
                f"the budget in round {server_round}",
            )
            _assert_ignores_company(
                lambda ids, t=server_round: fleet.available(seed, ids, t),  # type: ignore[misc]
                devices,
                f"availability in round {server_round}",
            )
        for key in fleet.rates(seed, devices):
            _assert_ignores_company(lambda ids, key=key: fleet.rates(seed, ids)[key], devices, key)  # type: ignore[misc]

    def test_going_back_in_time_changes_nothing(self) -> None:
        """Budgets do not depend on earlier calls."""
        budgets = FleetBudgets(self.fleet(), self.seeds[0], self.devices(), _FULL_TABLE_BYTES)
        forward = [budgets.at(server_round) for server_round in self.rounds]
        backward = [budgets.at(server_round) for server_round in reversed(self.rounds)]
        for first, second in zip(forward, reversed(backward), strict=True):
            assert np.array_equal(first, second), "a budget depends on what was asked before"

    def test_survives_pickling(self) -> None:
        """The profile can be pickled, since a fleet travels to the workers that host its devices."""
        devices = self.devices()
        twin: Fleet = pickle.loads(pickle.dumps(self.fleet()))
        for server_round in self.rounds:
            ours = self.fleet().budget_bytes(1, devices, server_round, full_table_bytes=_FULL_TABLE_BYTES)
            theirs = twin.budget_bytes(1, devices, server_round, full_table_bytes=_FULL_TABLE_BYTES)
            assert np.array_equal(ours, theirs), "a pickled copy gives other budgets"
