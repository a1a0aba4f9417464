"""Whole runs under privacy: the same on any number of nodes, noise really there, and nothing else on the wire."""

import dataclasses
import math

import numpy as np
import pytest

from clients.node import channel as members
from fl_peel import wire
from fl_peel.errors import ScenarioError
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.noise_plan import make_plan
from simulations.report.sections.costs import privacy_views
from simulations.scenario_files import load_scenario, shipped_scenarios
from strategies.figures.schema import to_json
from strategies.rounds.noised import PrivateRounds, empty_sums
from strategies.rounds.strategy import sample_cohort
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.clients.node.test_cohort import LAYOUT
from tests.helpers.loopback import LoopbackGrid

CENTRAL = (
    "privacy.mechanism=central-gaussian",
    "privacy.noise_multiplier=1",
    "privacy.clipping.kind=flat",
    "privacy.rows=all-sent",
    "privacy.requests=group-prefix",
)
LOCAL = (*CENTRAL, "privacy.mechanism=local-gaussian")
SHIPPED = {"private": 2, "local-dp": 8}


def run_of(tiny, folder, overrides, nodes=2):
    scenario = load_scenario(tiny, overrides)
    grid = LoopbackGrid(nodes)
    return serve(grid, scenario, RunPaths("", str(folder / f"run-{nodes}-{len(list(folder.iterdir()))}"))), grid


def figures(result):
    return result.budgets, result.full_table, result.privacy, result.user_groups


def test_off_is_off(tiny_run):
    plain, grid = tiny_run
    assert to_json(plain)["privacy"] == {
        "mechanism": "none",
        "epsilon": None,
        "delta": None,
        "rows": "touched",
        "requests": "own-budget",
        "counters": "withheld",
    }
    assert privacy_views(plain.privacy) == []
    request = next(content for kind, content in grid.crossed if kind == wire.ROUND)
    assert wire.unpack(wire.RoundRequest, request).clip_norm == math.inf


def released_noise(scenario, plan, server_round, group):
    rounds = PrivateRounds.start(scenario, plan)
    total = empty_sums(LAYOUT, np.arange(LAYOUT.num_blocks), ("updates", "signals"))
    return rounds.released(total, server_round, group, 10.0)


def test_the_server_adds_noise_of_the_planned_deviation_once_per_round_and_group():
    scenario = load_scenario(
        "ml-100k", [*CENTRAL, "privacy.clipping.norm=3", "privacy.shares={updates: 3, signals: 1}"]
    )
    plan = make_plan(scenario)
    one = released_noise(scenario, plan, 1, 0)
    # z / sqrt(share) x bound
    assert one.std["updates"] == pytest.approx(plan.multiplier / math.sqrt(0.75) * 3)
    assert one.std["signals"] == pytest.approx(plan.multiplier / math.sqrt(0.25) * 1)
    drawn = [released_noise(scenario, plan, number, group) for number in range(1, 30) for group in range(4)]
    values = np.stack([release.sums["updates"].ravel() for release in drawn])  # 116 draws of 96 numbers
    assert values.std() == pytest.approx(one.std["updates"], rel=0.03)
    assert np.abs(np.corrcoef(values)[np.triu_indices(len(values), 1)]).mean() < 0.12  # independent: about 0.08
    again = released_noise(scenario, plan, 1, 0)
    assert (again.sums["updates"] == one.sums["updates"]).all()


@pytest.mark.parametrize("overrides", [CENTRAL, LOCAL])
def test_nothing_but_the_released_parts_leaves_a_node(tiny, tmp_path, overrides):
    _, grid = run_of(tiny, tmp_path, overrides)
    replies = [content for kind, content in grid.crossed if kind == f"reply to {wire.ROUND}"]
    assert replies
    for content in replies:
        reply = wire.unpack(wire.RoundReply, content)
        for arrays in reply.groups.values():
            assert set(arrays) == {"updates", "signals"}
            if overrides is LOCAL:  # rows that no device touched are as noisy as the others: the support says nothing
                assert all((array != 0).all() for array in arrays.values())
        assert not reply.counts.classes.stacked().any()
        clock = dataclasses.replace(reply.counts.clock, sampled=np.zeros_like(reply.counts.clock.sampled)).stacked()
        assert not clock.any()
        assert not reply.counts.slowest_us
        assert not reply.counts.totals.stacked().any()
        assert len(reply.counts.traces.device) == 0


def test_measured_counters_change_nothing_else(tiny, tmp_path):
    withheld, _ = run_of(tiny, tmp_path, CENTRAL)
    measured, _ = run_of(tiny, tmp_path, (*CENTRAL, "privacy.counters=measured"))
    assert figures(withheld)[:2] == figures(measured)[:2]
    assert withheld.history[0].loss is None
    assert measured.history[0].loss > 0
    assert any("measured by the simulation" in text for text in measured.privacy.accounted.not_covered)
    # what a device moves is the same for all of its user group: the server knows the bytes that nobody told it
    assert [row.download_bytes for row in withheld.rounds] == [row.download_bytes for row in measured.rounds]
    assert [row.upload_bytes for row in withheld.rounds] == [row.upload_bytes for row in measured.rounds]


def test_the_report_names_what_was_released(tiny, tmp_path):
    events = run_of(tiny, tmp_path, (*CENTRAL, "privacy.clipping.kind=adaptive"))[0].privacy
    assert events.epsilon == pytest.approx(6.573, abs=0.01)  # two rounds of multiplier 1 are one of 1 / sqrt(2)
    assert (events.delta, events.accounted.accountant) == (1e-5, "PLD")
    assert [release.part for release in events.accounted.releases] == ["updates", "signals", "quantile"]
    assert sum(release.share for release in events.accounted.releases) == pytest.approx(1)
    assert len(events.accounted.clip_norms) == 2
    assert events.accounted.clip_norms[0] != events.accounted.clip_norms[1]
    assert "the train interactions of all users" in events.accounted.not_covered[0]


def test_the_bound_follows_the_quantile():
    """Norms 1..100 and hardly any noise: the bound settles where the share below it is 0.3, at 30."""
    scenario = load_scenario(
        "ml-100k",
        [
            *CENTRAL,
            "privacy.noise_multiplier=0.01",
            "privacy.clipping={kind: adaptive, quantile: 0.3, norm: 1.0}",
        ],
    )
    rounds = PrivateRounds.start(scenario, make_plan(scenario))
    for number in range(200):
        within = np.arange(1, 101) <= rounds.clip_norm
        quantile = np.array([int(FIXED_POINT / 2) * (int(within.sum()) - int((~within).sum()))])
        rounds.end_round(quantile, number, 100.0)
    assert rounds.clip_norm == pytest.approx(30, rel=0.15)
    assert rounds.clip_norms[0] == 1.0


def test_poisson_cohorts_are_coins():
    devices = np.arange(20_000)
    first, second = (sample_cohort(3, number, devices, 0.2, poisson=True) for number in (1, 2))
    for cohort in (first, second):
        assert len(cohort) == pytest.approx(4000, abs=250)  # standard deviation 57
    assert len(np.intersect1d(first, second)) == pytest.approx(800, abs=140)  # independent: 0.04
    assert first.tolist() == [d for d in range(20_000) if len(sample_cohort(3, 1, np.array([d]), 0.2, poisson=True))]
    assert len(sample_cohort(0, 1, np.arange(3), 1e-9, poisson=True)) == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_meet_their_target(name):
    """private: at 8 the audit can still tell validation items (docs/audit.md)."""
    assert name in shipped_scenarios()
    plan = make_plan(load_scenario(name))
    assert 0.98 * SHIPPED[name] < plan.epsilon <= SHIPPED[name]


def test_a_target_out_of_reach_stops_the_run_before_pretraining(tiny, tmp_path):
    with pytest.raises(ScenarioError, match=r"^privacy\.target_epsilon: 1e-06"):
        run_of(
            tiny, tmp_path, ("privacy.target_epsilon=0.000001", "privacy.delta=0.00000000001", CENTRAL[0], CENTRAL[2])
        )


def test_no_train_item_is_in_a_list_that_signals_are_counted_on(tiny, tmp_path, monkeypatch):
    """A device's hits are of items that it has not: else they would say what it trained on."""
    seen = []
    real = members.train_within_deadline

    def listen(context, ranked, memory, devices, traffic):
        done = real(context, ranked, memory, devices, traffic)
        if done.best is not None:
            seen.append((ranked, devices.train.select(done.kept), done.best))
        return done

    monkeypatch.setattr(members, "train_within_deadline", listen)
    run_of(tiny, tmp_path, CENTRAL)
    lists = [
        (set(ranked.items[best[best >= 0]].tolist()), set(train.row(i).tolist()))
        for ranked, train, result in seen
        for i, best in enumerate(result)
    ]
    assert len(lists) >= 40
    assert sum(len(shown) for shown, _ in lists) > 10 * len(lists)
    assert not [shown & had for shown, had in lists if shown & had]
