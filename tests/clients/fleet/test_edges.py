"""Budgets and availability at the edges of what their keys allow, by hand."""

import numpy as np
import pytest

from clients.fleet.budgets import (
    Clock,
    MarkovBudget,
    Moment,
    PeriodicBudget,
    RandomWalkBudget,
    ShockBudget,
    TraceBudget,
)
from clients.fleet.fleet import fleet_from_mapping
from clients.fleet.tabular import load_traces
from fl_peel.errors import ProfileError
from tests.clients.fleet.test_budgets import CLOCK, series
from tests.helpers.fleets import fleet_of, ids, one_line

P = "profiles[0]"


def budget_of(folder=None, **budget):
    return lambda: fleet_from_mapping(
        {"profiles": [{"name": "phone", "memory": {"table_share": 0.1}, "budget": budget}]}, folder=folder
    )


def availability_of(availability, folder=None):
    profile = {"name": "phone", "memory": {"table_share": 0.1}, "availability": availability}
    return lambda: fleet_from_mapping({"profiles": [profile]}, folder=folder)


# ---------------------------------------------------------------- clock


def test_what_a_clock_is_without_keys_and_at_its_ends():
    assert Clock() == CLOCK
    assert CLOCK.moment(6) == Moment(6, 5400.0, 1.5)
    assert Clock(steps_per_round=1000).steps_per_round == 1000
    assert Clock(steps_per_round=1).step_of(2.9) == 2
    assert CLOCK.step_of(0.0) == 0
    assert CLOCK.step_of(0.9999999999) == 4  # rounding of a time is no step
    one_line(lambda: fleet_from_mapping({"profiles": [{"name": "a", "memory": {"table_share": 1}}], "clock":
             {"steps_per_round": 0}}), "steps_per_round: must be")  # fmt: skip


# ---------------------------------------------------------------- budgets


def test_amplitudes_and_phases_are_a_device_s_own():
    process = PeriodicBudget.model_validate({"period_hours": 2, "amplitude": {"uniform": [0.2, 0.8]}, "phase": 0.25})
    devices = ids(500)
    top = series(process, 500, 1)[0]  # a quarter of the period on: the sine is 1
    ceiling = process.ceiling(0, devices, np.full(500, 1000.0))
    np.testing.assert_allclose(top, ceiling)
    assert 1200 <= ceiling.min() < 1230
    assert 1770 < ceiling.max() <= 1800
    bottom = process.budget(None, 0, devices, np.full(500, 1000.0), Moment(4, 3600.0, 1.0))  # half a period later
    np.testing.assert_allclose(top + bottom, 2000.0)
    again = process.budget(None, 0, devices, np.full(500, 1000.0), Moment(8, 2 * 3600.0, 2.0))
    np.testing.assert_allclose(again, top)
    assert (process.ceiling(1, devices, np.full(500, 1000.0)) != ceiling).any()


def test_a_walk_starts_where_it_is_told_and_is_reflected():
    walk = RandomWalkBudget(largest_step=0.4, min_factor=0.5, max_factor=1.0, first=0.5)
    path = series(walk, 4000, 2, base=1.0)
    assert (path[0] == 0.5).all()
    # a step within +-0.4, reflected at 0.5: evenly in [0.5, 0.9]
    assert 0.5 <= path[1].min() < 0.51
    assert 0.89 < path[1].max() <= 0.9
    assert path[1].mean() == pytest.approx(0.7, abs=0.01)
    top = series(RandomWalkBudget(largest_step=0.4, min_factor=0.5, max_factor=1.0, first=1.0), 4000, 2, base=1.0)
    assert (top[0] == 1.0).all()
    assert 0.6 <= top[1].min() < 0.61
    assert top[1].max() <= 1.0
    assert top[1].mean() == pytest.approx(0.8, abs=0.01)  # evenly in [0.6, 1]: what passes the top comes back
    drawn = series(RandomWalkBudget(largest_step=0.1, min_factor=0.5, max_factor=1.0), 4000, 1, base=1.0)[0]
    assert 0.5 <= drawn.min() < 0.51
    assert 0.99 < drawn.max() <= 1.0
    defaults = RandomWalkBudget(largest_step=0.1)
    assert (defaults.min_factor, defaults.max_factor, defaults.first) == (0.1, 1.0, None)
    assert defaults.ceiling(0, ids(1), np.array([50.0])).tolist() == [50.0]


def test_steps_of_a_walk_are_drawn_anew():
    path = series(RandomWalkBudget(largest_step=0.001, min_factor=0.5, max_factor=1.0), 4000, 4, base=1.0)
    draws = np.concatenate([path[:1], np.diff(path, axis=0)])  # where it begins, and three steps
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.08  # five standard errors


def test_bounds_of_a_walk():
    walk = {"process": "random-walk", "largest_step": 0.1}
    one_line(budget_of(**walk, min_factor=1.0), "budget.min_factor: must be below max_factor 1 (got 1)")
    for first in (0.2, 0.8):  # a bound is within
        budget_of(**walk, min_factor=0.2, max_factor=0.8, first=first)()
    for first in (0.19, 0.81):
        one_line(
            budget_of(**walk, min_factor=0.2, max_factor=0.8, first=first), "budget.first: must lie within 0.2 and 0.8"
        )


def test_a_shock_lasts_from_round_to_round():
    forever = series(ShockBudget(at_round=1, factor=0.5), 1, 12)[:, 0]
    assert forever.tolist() == [1000.0] * 4 + [500.0] * 8
    once = series(ShockBudget(at_round=0, factor=0.5, until_round=1), 1, 6)[:, 0]
    assert once.tolist() == [500.0] * 4 + [1000.0] * 2
    base = np.array([1000.0])
    assert ShockBudget(at_round=0, factor=0.5, until_round=1).ceiling(0, ids(1), base).tolist() == [1000.0]
    assert ShockBudget(at_round=0, factor=3.0).ceiling(0, ids(1), base).tolist() == [3000.0]
    budget_of(process="shock", at_round=5, factor=0.1, until_round=6)()


def test_a_shock_moves_as_what_is_below_it():
    chain = MarkovBudget.model_validate(
        {"states": {"a": 1.0, "b": 0.2}, "transitions_per_step": [[0.5, 0.5], [0.5, 0.5]], "first": "b"}
    )
    shock = ShockBudget(at_round=1, factor=0.5, of=chain)
    devices = ids(300)
    below, above = series(chain, 300, 8), series(shock, 300, 8)
    assert (above[:4] == below[:4]).all()
    assert (above[4:] == below[4:] / 2).all()
    assert (shock.state_at(0, devices, 7) == chain.state_at(0, devices, 7)).all()
    assert shock.needs_memory()


def test_a_budget_is_named_or_given_with_keys():
    named = budget_of(process="constant")()
    assert fleet_of(budget="constant").budget_bytes(0, ids(3), 2, full_table_bytes=1000).tolist() == [100] * 3
    assert named.budget_bytes(0, ids(3), 2, full_table_bytes=1000).tolist() == [100] * 3
    one_line(lambda: fleet_of(budget={"process": 7}), f"{P}.budget.process: must name a budget process: constant")


def test_traces_are_scaled_by_their_own_peak_or_taken_as_they_are(tmp_path):
    (tmp_path / "trace.csv").write_text("device,time_s,memory_bytes\na,0,400\na,900,100\n")
    (tmp_path / "nothing.csv").write_text("device,time_s,memory_bytes\na,0,0\na,900,0\n")

    def budgets(file="trace.csv", **keys):
        fleet = budget_of(tmp_path, process="trace", file=file, random_start=False, **keys)()
        return [int(fleet.budget_bytes(0, ids(1), time, full_table_bytes=1000)[0]) for time in (0, 0.25, 0.5)]

    assert budgets() == [100, 25, 100]  # of a tenth of 1000 bytes
    assert budgets(at_end="hold") == [100, 25, 25]
    assert budgets(scale="absolute", recommender_share=0.5) == [200, 50, 200]
    assert budgets("nothing.csv") == [0, 0, 0]
    (tmp_path / "halves.csv").write_text("device,time_s,memory_bytes\na,0,0.5\na,900,0.25\n")
    assert budgets("halves.csv") == [100, 50, 100]  # of the peak, however small
    (tmp_path / "huge.csv").write_text(f"device,time_s,memory_bytes\na,0,{2**53 + 2}\n")
    one_line(budget_of(tmp_path, process="trace", file="huge.csv"), "memory_bytes must be between 0 and 9.0072e+15")


def test_a_trace_never_exceeds_its_peak(tmp_path):
    (tmp_path / "trace.csv").write_text("device,time_s,memory_bytes\na,0,400\na,900,100\n")
    trace, base = load_traces(tmp_path / "trace.csv", "memory_bytes"), np.array([1000.0, 30.0])

    def ceiling(**keys):
        return TraceBudget(file=trace, **keys).ceiling(0, ids(2), base).tolist()

    assert ceiling() == [1000.0, 30.0]
    assert ceiling(scale="absolute") == [400.0, 400.0]
    assert ceiling(scale="absolute", recommender_share=0.5) == [200.0, 200.0]


# ---------------------------------------------------------------- the Markov chain

STATES = {"on": 1.0, "off": 0.5}


def chain(transitions, **keys):
    return {"process": "markov", "states": STATES, "transitions_per_step": transitions, **keys}


def test_rows_of_a_chain_may_be_lists_or_mappings_and_what_is_left_out_is_nought():
    by_name = MarkovBudget.model_validate(
        {"states": STATES, "transitions_per_step": {"off": {"on": 1.0}, "on": {"on": 0.25, "off": 0.75}}}
    )
    assert by_name.transitions_per_step == ((0.25, 0.75), (1.0, 0.0))
    # rows sum to one up to a millionth, and are made to do so exactly
    nearly = MarkovBudget.model_validate({"states": STATES, "transitions_per_step": [[0.5, 0.5000009], [0, 1]]})
    assert sum(nearly.transitions_per_step[0]) == pytest.approx(1.0, abs=1e-12)
    one_line(budget_of(**chain([[0.5, 0.500002], [0, 1]])), "transitions_per_step[0]: must sum to 1")
    one_line(budget_of(**chain([[0, 1], {"of": 1}])), "transitions_per_step[1]: must have 2 numbers")
    one_line(budget_of(**chain([[0, 1], ["x", 1]])), "transitions_per_step[1]: must be a number (got 'x')")
    one_line(budget_of(**chain("x")), "transitions_per_step: must have 2 rows, one per state (got 'x')")
    one_line(budget_of(**chain([[1.0, -0.1], [0, 1]])), "transitions_per_step[0]: must be >= 0")


def test_states_have_factors_from_nought_to_a_thousand_and_are_a_hundred_at_most():
    def states(given):
        rows = [[1.0] + [0.0] * (len(given) - 1)] * len(given)
        return budget_of(process="markov", states=given, transitions_per_step=rows)

    states({"a": 0, "b": 1000})()
    states({f"s{i}": 1 for i in range(100)})()
    one_line(states({"a": 1000.5}), "budget.states.a: must be <= 1000")
    one_line(states({f"s{i}": 1 for i in range(101)}), "budget.states: has 101 states; at most 100")
    one_line(states({"a": "x"}), "budget.states.a: must be a number")
    one_line(
        budget_of(process="markov", states=["a"], transitions_per_step=[[1]]),
        "must be a mapping from state to its factor",
    )


def test_a_chain_without_a_first_state_starts_as_it_goes_on():
    process = MarkovBudget.model_validate({"states": STATES, "transitions_per_step": [[0.0, 1.0], [0.5, 0.5]]})
    # balance: on = off / 2
    assert process.long_run() == pytest.approx([1 / 3, 2 / 3], abs=1e-12)
    shares = [(series(process, 30_000, 3)[step] == 1000.0).mean() for step in range(3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.015)
    flip = MarkovBudget.model_validate({"states": STATES, "transitions_per_step": [[0, 1], [1, 0]]})
    assert flip.long_run() == pytest.approx([0.5, 0.5])  # a cycle of two has no limit, but a share of the time
    first = MarkovBudget.model_validate({"states": STATES, "transitions_per_step": [[0, 1], [1, 0]], "first": "off"})
    assert series(first, 2, 4)[:, 0].tolist() == [500.0, 1000.0, 500.0, 1000.0]
    assert first.start(0, ids(2)).dtype == first.advance(first.start(0, ids(2)), 0, ids(2), 1).dtype == np.int8
    assert first.ceiling(0, ids(2), np.array([10.0, 20.0])).tolist() == [10.0, 20.0]


def test_a_chain_of_one_state_stays_there():
    process = MarkovBudget.model_validate({"states": {"on": 0.5}, "transitions_per_step": [[1]]})
    assert series(process, 3, 4).tolist() == [[500.0] * 3] * 4
    assert process.state_at(0, ids(3), 9).tolist() == [0] * 3
    assert process.ceiling(0, ids(2), np.array([10.0, 20.0])).tolist() == [5.0, 10.0]


def test_a_chain_of_three_states_starts_as_it_goes_on():
    """Balance: b = (a + c) / 4 and a / 2 = b / 2 + 3 c / 8, so 16, 7 and 12 in 35."""
    rows = [[0.5, 0.25, 0.25], [0.5, 0.0, 0.5], [0.375, 0.25, 0.375]]
    process = MarkovBudget.model_validate({"states": {"a": 1.0, "b": 0.5, "c": 0.25}, "transitions_per_step": rows})
    shares = np.array([16, 7, 12]) / 35
    assert process.long_run() == pytest.approx(shares, abs=1e-12)
    assert np.bincount(process.start(0, ids(30_000)), minlength=3) / 30_000 == pytest.approx(shares, abs=0.015)


ALMOST_ONE = [0.94 / (0.94 + 0.13), 0.13 / (0.94 + 0.13)]
"""Probabilities that a chain makes sum to one as nearly as it can: to the largest number that is ever drawn."""


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize(
    "rows",
    [
        [[0, 0.5, 0.5], [0, 1, 0], [0, 0.25, 0.75]],
        [[0.5, 0.5, 0], [0.25, 0, 0.75], [0, 0.5, 0.5]],
        [[0.82, 0.18, 0], [0.48, 0.52, 0], [0.115, 0.115, 0.77]],
        [[0, *ALMOST_ONE]] * 3,
        [[*ALMOST_ONE, 0]] * 3,
        [[0, 1], [1, 0]],
    ],
)
def test_whatever_number_is_drawn_no_transition_of_probability_nought_is_taken(monkeypatch, number, rows):
    """Not by the least number and not by the largest that there are, nor at the end of what rows have in common. And a
    state is found by looking back, whether the number is the last that forgets or the first that does not.
    """
    rows = [[float(entry) for entry in row] for row in rows]
    given = {"states": {str(place): 1.0 for place in range(len(rows))}, "transitions_per_step": rows, "first": "1"}
    process = MarkovBudget.model_validate(given)
    monkeypatch.setattr("clients.fleet.budgets.device_uniforms", lambda *name, devices: np.full(len(devices), number))
    for state, row in enumerate(rows):
        assert row[process.advance(np.array([state], np.int8), 0, ids(1), 1)[0]] > 0
    reached = process.start(0, ids(1))
    for step in range(1, 4):
        reached = process.advance(reached, 0, ids(1), step)
        assert process.state_at(0, ids(1), step) == reached


def test_the_state_is_found_by_looking_back_no_further_than_needed(monkeypatch):
    """All rows are equal: one number says the state, whatever came before."""
    process = MarkovBudget.model_validate({"states": STATES, "transitions_per_step": [[0.3, 0.7]] * 2})
    asked = []
    advance = MarkovBudget.advance

    def counted(self, state, seed, devices, step):
        asked.append(step)
        return advance(self, state, seed, devices, step)

    monkeypatch.setattr(MarkovBudget, "advance", counted)
    result = process.state_at(3, ids(50), 1000)
    assert asked == [1000]
    assert (result == process.state_at(3, ids(50), 1000)).all()
    assert (process.state_at(3, ids(50), 0) == process.start(3, ids(50))).all()


# ---------------------------------------------------------------- availability


def there(fleet, time, count=20_000, seed=0):
    return fleet.available(seed, ids(count), time)


def test_shares_inside_and_outside_of_the_window():
    window = {
        "window_hours": 1,
        "phase_hours": 0,
        "period_hours": 2,
        "inside_probability": 0.75,
        "outside_probability": 0.25,
    }
    fleet = availability_of({"diurnal": window})()
    # a round is an hour: rounds 0, 2, ... lie inside, 1, 3, ... outside
    assert [there(fleet, time).mean() for time in range(4)] == pytest.approx([0.75, 0.25, 0.75, 0.25], abs=0.015)
    assert (there(fleet, 0) != there(fleet, 2)).any()  # anew each round
    assert (there(fleet, 0) == there(fleet, 0.5)).all()  # and held within it
    certain = availability_of({"diurnal": {"window_hours": 1, "phase_hours": 0, "period_hours": 2}})()
    assert [there(certain, time).mean() for time in range(2)] == [1.0, 0.0]


def test_windows_and_phases_are_a_device_s_own():
    drawn = {"window_hours": {"uniform": [1, 3]}, "phase_hours": {"uniform": [0, 6]}}
    fleet = availability_of({"diurnal": drawn})()
    shares = [there(fleet, hour).mean() for hour in range(24)]
    # phase f in [0, 6], width w in [1, 3]: all open between hours 0 and 9, two hours of six at 5
    assert shares[5] == pytest.approx(2 / 6, abs=0.02)
    assert shares[9:] == [0.0] * 15
    assert 0 < shares[8] < shares[7] < shares[6]
    assert (there(fleet, 5, seed=1) != there(fleet, 5)).any()
    evenly = availability_of({"diurnal": {"window_hours": 8}})()  # phases of all hours alike
    assert [there(evenly, hour).mean() for hour in (0, 7, 15)] == pytest.approx([1 / 3] * 3, abs=0.015)
    whole_day = availability_of({"diurnal": {"window_hours": 24}})()
    assert there(whole_day, 5).all()


def test_a_share_may_be_drawn_for_each_device():
    fleet = availability_of({"uniform": [0.2, 0.6]})()
    rounds = np.array([there(fleet, time, 400) for time in range(200)]).mean(axis=0)
    assert rounds.min() < 0.3 < 0.5 < rounds.max() < 0.75
    assert rounds.mean() == pytest.approx(0.4, abs=0.02)
    same = availability_of({"probability": {"uniform": [0.2, 0.6]}})()
    assert (there(same, 3) == there(fleet, 3)).all()
    assert (there(fleet, 3.75) == there(fleet, 3)).all()  # held within a round
    assert (there(fleet, 2.9999999999) == there(fleet, 3)).all()  # rounding of a time is no round
    assert there(availability_of(1)(), 3).all()
    assert not there(availability_of(0)(), 3).any()


@pytest.mark.parametrize(
    "given",
    [
        {"lognormal": {"median": 0.25, "sigma": 0}},
        {"categorical": {"values": [0.25]}},
        {"empirical": {"counts": {0.25: 3}}},
        {"empirical": {"file": "shares.csv", "column": "share"}},
    ],
)
def test_a_share_may_be_of_any_distribution(given, tmp_path):
    """Files lie beside the fleet's."""
    (tmp_path / "shares.csv").write_text("share\n0.25\n")
    for availability in (given, {"probability": given}):
        assert there(availability_of(availability, tmp_path)(), 3).mean() == pytest.approx(0.25, abs=0.015)


def test_recorded_availability_is_there_from_a_half_on(tmp_path):
    (tmp_path / "charging.csv").write_text("device,time_s,available\na,0,0.5\na,3600,0.49\n")
    loop = availability_of({"trace": {"file": "charging.csv", "random_start": False}}, tmp_path)()
    assert [bool(there(loop, time, 1)[0]) for time in range(4)] == [True, False, True, False]
    hold = availability_of({"trace": {"file": "charging.csv", "random_start": False, "at_end": "hold"}}, tmp_path)()
    assert [bool(there(hold, time, 1)[0]) for time in range(4)] == [True, False, False, False]
    spread = availability_of({"trace": {"file": "charging.csv"}}, tmp_path)()
    assert there(spread, 0).mean() == pytest.approx(0.5, abs=0.02)
    (tmp_path / "wrong.csv").write_text("device,time_s,available\na,0,1.5\n")
    with pytest.raises(ProfileError, match="available must be between 0 and 1"):
        availability_of({"trace": {"file": "wrong.csv"}}, tmp_path)()
