"""Budget processes: hand-computed values, contracts, bounds, and the same answer from every direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.fleet.budgets import (
    BudgetProcess,
    Clock,
    ConstantBudget,
    MarkovBudget,
    PeriodicBudget,
    RandomWalkBudget,
    ShockBudget,
    TraceBudget,
)
from clients.fleet.contracts import BudgetContract
from clients.fleet.fleet import FleetBudgets, fleet_from_mapping, load_fleet, shipped_names
from clients.fleet.tabular import load_traces
from fl_peel.errors import ProfileError
from tests.helpers.examples import examples

CLOCK = Clock(step_s=900, steps_per_round=4)


def devices_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def series(process: BudgetProcess, count: int, steps: int, seed: int = 0, base: float = 1000.0) -> np.ndarray:
    """Budgets step by step, (steps, count)."""
    ids = devices_of(count)
    state = process.start(seed, ids)
    rows = []
    for step in range(steps):
        state = state if step == 0 else process.advance(state, seed, ids, step)
        rows.append(process.budget(state, seed, ids, np.full(count, base), CLOCK.moment(step)))
    return np.stack(rows)


def chain(**keys) -> MarkovBudget:
    return MarkovBudget.model_validate(
        {
            "states": {"foreground": 1.0, "background": 0.5, "low-memory": 0.1},
            "transitions_per_step": [[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5]],
            **keys,
        }
    )


def write_trace(folder, text: str, name: str = "memory.csv"):
    path = folder / name
    path.write_text(text)
    return path


# ---------------------------------------------------------------- contracts


def recorded(folder, scale: str) -> TraceBudget:
    rng = np.random.default_rng(0)
    rows = [f"d{d},{t * 600},{rng.integers(0, 10**9)}" for t in range(20) for d in range(5)]
    path = write_trace(folder, "device,time_s,memory_bytes\n" + "\n".join(rows))
    return TraceBudget(file=load_traces(path, "memory_bytes"), scale=scale)


def two_states(*rows: list[float], **keys) -> MarkovBudget:
    return MarkovBudget.model_validate({"states": {"a": 1.0, "b": 0.2}, "transitions_per_step": rows, **keys})


PROCESSES = {
    "constant": lambda _: ConstantBudget(),
    "periodic": lambda _: PeriodicBudget.model_validate({"period_hours": 5, "amplitude": {"uniform": [0.2, 1.0]}}),
    "markov": lambda _: chain(),
    "rows share nothing, so nothing is ever forgotten": lambda _: two_states([0, 1], [1, 0], first="a"),
    "all rows are equal, so everything is always forgotten": lambda _: two_states([0.3, 0.7], [0.3, 0.7]),
    "random walk": lambda _: RandomWalkBudget(largest_step=0.3, min_factor=0.1, max_factor=1.5),
    "shock": lambda _: ShockBudget(at_round=3, factor=0.1, until_round=6, of=chain()),
    "trace": lambda folder: recorded(folder, "relative"),
    "absolute trace": lambda folder: recorded(folder, "absolute"),
}


class TestContract(BudgetContract):
    @pytest.fixture(autouse=True, params=PROCESSES)
    def _process(self, request, tmp_path):
        self.process = PROCESSES[request.param](tmp_path)

    def make(self):
        return self.process


# ---------------------------------------------------------------- values by hand


def test_clock_turns_rounds_into_steps():
    # four steps a round: round 2 begins at step 8, 2.25 is one step on, 2.49 is still in that step
    assert [CLOCK.step_of(t) for t in (0, 1, 2, 2.25, 2.49, 2.5)] == [0, 4, 8, 9, 9, 10]
    assert CLOCK.moment(9).time_s == 8100.0  # 9 * 900
    assert CLOCK.moment(9).server_round == 2.25
    # 0.1 + 0.7 is 0.7999999999999999 in floating point, and is step 8 of ten all the same
    assert Clock(steps_per_round=10).step_of(0.1 + 0.7) == 8
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="rounds"):
            CLOCK.step_of(wrong)


def test_periodic_phases_spread_over_the_devices():
    process = PeriodicBudget.model_validate({"period_hours": 1, "amplitude": 1.0})
    first = series(process, 20_000, 1)[0]
    # mean of 1 + sin(U) is 1; its standard error is 1000 * sqrt(1/2) / sqrt(20000) = 5
    assert abs(first.mean() - 1000) < 25
    assert first.min() < 1 < 1999 < first.max()


def test_markov_transitions_match_every_entry_of_the_matrix():
    # the split of each row into a common and an own part must not change its probabilities
    process = chain(first="foreground")
    ids = devices_of(200_000)
    matrix = np.asarray(process.transitions_per_step)
    for state in range(3):
        after = process.advance(np.full(len(ids), state, dtype=np.int8), 5, ids, 1)
        np.testing.assert_allclose(np.bincount(after, minlength=3) / len(ids), matrix[state], atol=0.005)


def test_fleet_shock_equals_a_shock_in_every_profile():
    calm = load_fleet("default")
    shocked = calm.with_shock(at_round=5, factor=0.1)
    ids = devices_of(500)
    before, after = FleetBudgets(calm, 1, ids, 10**7), FleetBudgets(shocked, 1, ids, 10**7)
    assert np.array_equal(before.at(4.75), after.at(4.75))
    np.testing.assert_allclose(after.at(5), before.at(5) * 0.1, atol=1.0)  # both are rounded down to bytes
    with pytest.raises(ProfileError, match=r"^shock: factor: must be >= 0 \(got -1\)$"):
        calm.with_shock(at_round=5, factor=-1)


# ---------------------------------------------------------------- traces


def test_trace_replays_each_sample_until_the_next(tmp_path):
    path = write_trace(tmp_path, "device,time_s,memory_bytes\na,100,1000\na,1000,400\na,1900,200\n")
    keys = {"scale": "absolute", "recommender_share": 0.5, "random_start": False}
    # relative times 0, 900, 1800; the last sample holds for the median gap, 900 s: one turn is 2700 s = 3 steps
    loop = TraceBudget(file=load_traces(path, "memory_bytes"), **keys)
    assert series(loop, 1, 5)[:, 0].tolist() == [500.0, 200.0, 100.0, 500.0, 200.0]
    hold = TraceBudget(file=load_traces(path, "memory_bytes"), at_end="hold", **keys)
    assert series(hold, 1, 5)[:, 0].tolist() == [500.0, 200.0, 100.0, 100.0, 100.0]
    relative = TraceBudget(file=load_traces(path, "memory_bytes"), random_start=False)
    # shares of the recording's largest value, 1000: 1, 0.4, 0.2 of the base 2000
    assert series(relative, 1, 3, base=2000.0)[:, 0].tolist() == [2000.0, 800.0, 400.0]


def test_trace_devices_are_drawn_evenly_and_may_be_interleaved(tmp_path):
    text = "time_s;memory_bytes;device\n0;100;x\n0;200;y\n900;110;x\n5;300;z\n900;210;y\n"
    traces = load_traces(write_trace(tmp_path, text), "memory_bytes")
    assert traces.num_traces == 3
    process = TraceBudget(file=traces, scale="absolute", random_start=False, at_end="hold")
    rows = series(process, 30_000, 2)
    values, counts = np.unique(rows[0], return_counts=True)
    assert values.tolist() == [100.0, 200.0, 300.0]
    assert abs(counts - 10_000).max() < 400  # five standard errors of sqrt(30000 * 1/3 * 2/3) = 82
    assert {(a, b) for a, b in rows.T.tolist()} == {(100.0, 110.0), (200.0, 210.0), (300.0, 300.0)}


def test_trace_random_start_spreads_devices_over_the_recording(tmp_path):
    text = "device,time_s,memory_bytes\na,0,1\na,900,2\na,1800,3\na,2700,4\n"
    process = TraceBudget(file=load_traces(write_trace(tmp_path, text), "memory_bytes"), scale="absolute")
    _, counts = np.unique(series(process, 40_000, 1)[0], return_counts=True)
    assert abs(counts - 10_000).max() < 450  # a quarter each; standard error 87


def test_trace_parquet_gives_what_csv_gives(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    csv = write_trace(tmp_path, "device,time_s,memory_bytes\na,0,10\na,900,20\nb,0,30\nb,60,5\n")
    table = pa.table({"device": ["a", "a", "b", "b"], "time_s": [0, 900, 0, 60], "memory_bytes": [10, 20, 30, 5]})
    pq.write_table(table, tmp_path / "memory.parquet")
    first = TraceBudget(file=load_traces(csv, "memory_bytes"), scale="absolute")
    second = TraceBudget(file=load_traces(tmp_path / "memory.parquet", "memory_bytes"), scale="absolute")
    assert np.array_equal(series(first, 300, 20), series(second, 300, 20))


# ---------------------------------------------------------------- what must always hold


@examples(60)
@given(
    name=st.sampled_from(shipped_names()),
    seed=st.integers(0, 2**63),
    times=st.lists(st.floats(0, 40), min_size=1, max_size=6),
    table=st.integers(1, 10**10),
)
def test_fleet_budgets_do_not_depend_on_what_was_asked_before(name, seed, times, table):
    fleet, ids = load_fleet(name), devices_of(60)
    budgets = FleetBudgets(fleet, seed, ids, table)
    for time in times:
        budgets.within(time, [0.75, 0.0])
        now = budgets.at(time)
        assert now.dtype == np.int64
        assert (now >= 0).all()
        assert (now <= budgets.ceiling()).all()
        assert np.array_equal(now, fleet.budget_bytes(seed, ids, time, full_table_bytes=table))


def test_the_budget_of_a_process_that_breaks_its_ceiling_is_refused():
    class Liar(ConstantBudget):
        def budget(self, state, seed, devices, base_bytes, now):
            return base_bytes * 2

    fleet = fleet_from_mapping({"profiles": [{"name": "liar", "memory": {"table_share": 0.5}, "budget": Liar()}]})
    with pytest.raises(ProfileError, match=r"^liar: its budget process gave a budget at step 0 out of range"):
        fleet.budget_bytes(0, devices_of(3), 0, full_table_bytes=100)


def test_the_contract_catches_a_process_that_uses_the_order_of_arrival():
    class ByPlace(ConstantBudget):
        def budget(self, state, seed, devices, base_bytes, now):
            return base_bytes * (np.arange(len(devices)) % 2)

    class Suite(BudgetContract):
        def make(self):
            return ByPlace()

    Suite().test_budgets_lie_between_zero_and_the_ceiling()
    with pytest.raises(AssertionError, match="depends on"):
        Suite().test_a_device_ignores_its_company()


def test_a_budget_never_exceeds_the_memory_of_the_device():
    # 64 KB, all of it for the recommender, times up to 1.5: cut at 65,536 bytes
    fleet = fleet_from_mapping(
        {
            "profiles": [
                {
                    "name": "mcu",
                    "memory": {"total_kb": 64, "recommender_share": 1},
                    "budget": {"process": "periodic", "period_hours": 1, "amplitude": 0.5},
                }
            ]
        }
    )
    budgets = FleetBudgets(fleet, 0, devices_of(500), 10**7)
    assert budgets.ceiling().tolist() == [65_536] * 500
    assert budgets.at(1).max() == 65_536
    assert budgets.at(1).min() < 40_000


def test_budgets_of_a_round_are_found_once_and_those_of_the_next_anew():
    fleet, devices = load_fleet("default"), devices_of(300)
    budgets = FleetBudgets(fleet, 0, devices, 10**7)
    for server_round in (3, 3, 4, 2):
        steps = fleet.clock.steps_per_round
        alone = FleetBudgets(fleet, 0, devices, 10**7).within(server_round, [step / steps for step in range(steps)])
        assert np.array_equal(budgets.during(server_round), alone)
        assert budgets.during(server_round) is budgets.during(server_round)
    assert not np.array_equal(budgets.during(3), budgets.during(4))
    assert np.array_equal(budgets.at(3), budgets.during(3)[0])
    assert np.array_equal(budgets.within(5, [0.5, 0.0, 0.6]), budgets.during(5)[[2, 0, 2]]), "in the order asked"


def test_devices_of_one_constant_budget_take_no_memory_for_each():
    one = {"name": "one", "memory": {"table_share": 1.0}, "budget": {"process": "constant"}}
    budgets = FleetBudgets(fleet_from_mapping({"profiles": [one]}), 0, devices_of(1000), 10**7)
    for result in (budgets.during(1), budgets.working()):
        assert set(result.strides) == {0}
        assert result.shape[-1] == 1000
    assert (budgets.during(1) == 10**7).all()
