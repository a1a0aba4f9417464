"""Devices that differ: deadlines, availability, budgets that fall while a device trains, nodes of one profile."""

from __future__ import annotations

import types

import numpy as np
import pytest
from flwr.app import Message

from clients.node.channel import clear_round, work_samples
from clients.node.cohort import open_cohort
from clients.node.round_context import RoundMemory
from fl_peel import wire
from fl_peel.blocks.layout import budget_bytes
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.errors import ProfileError
from fl_peel.events import Event
from fl_peel.ranking.bootstrap import Histogram
from fl_peel.ranking.top import MetricSums
from fl_peel.store import Store
from fl_peel.wire import RoundReply
from simulations.scenario_files import load_scenario
from strategies.evaluation.evaluator import BudgetRequest
from strategies.evaluation.heterogeneity import (
    FALLS,
    TIERS,
    TIERS_ON_VALIDATION,
    FairnessTally,
    fall_rows,
    falling,
    tier_rows,
)
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.clients.node.test_cohort import GROUPS, LAYOUT, NUM_USERS, World, filled
from tests.helpers.blocks import rows_of
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import node_reply

EVERYBODY = np.arange(NUM_USERS)
SLOW = """
profiles:
  - name: quick
    population_share: 0.5
    memory: {table_share: 0.7136, working_factor: 100}
    network: {latency_ms: 100, uplink_mbps: 1, downlink_mbps: 1}
    energy: {train_watts: 2, radio_joules_per_mb: 5}
  - name: slow
    population_share: 0.5
    memory: {table_share: 0.7136, working_factor: 100}
    compute: {samples_per_s: {lognormal: {median: 5, sigma: 1}}}
    network: {latency_ms: 500, uplink_mbps: {lognormal: {median: 0.001, sigma: 2}}, downlink_mbps: 0.05}
    availability: 0.7
"""


def world_of(folder, fleet: str, **changes) -> World:
    world = World(folder, **changes)
    (folder / "fleet.yaml").write_text(fleet)
    return world


def round_of(world: World, devices: np.ndarray, nodes: int = 1, number: int = 1) -> list[RoundReply]:
    """One round; devices forget it: every call begins with joining."""
    cohorts = world.cohorts(nodes)
    ceilings = np.max([world.join(cohort).ceilings for cohort in cohorts], axis=0)
    tables = np.stack([world.items] * GROUPS)
    return [
        clear_round(c, world.round_request(number, devices[devices % nodes == c.partition], tables, ceilings))
        for c in cohorts
    ]


def same_update(one: RoundReply, other: RoundReply) -> None:
    assert one.groups.keys() == other.groups.keys()
    for group, arrays in one.groups.items():
        assert arrays.keys() == other.groups[group].keys()
        for name in arrays:
            assert np.array_equal(arrays[name], other.groups[group][name]), name
    for name in ("trained", "loss", "recall", "ndcg", "evaluated"):
        assert getattr(one.counts.totals, name) == getattr(other.counts.totals, name)


# ---------------------------------------------------------------- the clock in a round


@pytest.fixture(scope="module")
def slow_world(tmp_path_factory) -> World:
    return world_of(tmp_path_factory.mktemp("slow"), SLOW, refinement={"deadline_s": 4.0, "local": {"batch_size": 3}})


def test_stragglers_are_in_no_sum(slow_world):
    """What comes back is what a round with the devices in time alone brings; the others are counted."""
    (reply,) = round_of(slow_world, EVERYBODY)
    clock = reply.counts.clock.total()
    late = int(clock.stragglers)
    assert 0 < late < clock.sampled == NUM_USERS
    kept = reply.counts.classes.devices.sum()
    assert kept + late + clock.unavailable == NUM_USERS
    alone = [round_of(slow_world, EVERYBODY[i : i + 1])[0] for i in range(NUM_USERS)]
    in_time = np.array([bool(one.counts.classes.devices.sum()) for one in alone])
    assert in_time.sum() == kept
    (again,) = round_of(slow_world, EVERYBODY[in_time])
    same_update(reply, again)
    assert again.counts.clock.stragglers.sum() == 0
    assert (
        reply.counts.slowest_us == again.counts.slowest_us == max(one.counts.slowest_us for one in alone) <= 4_000_000
    )
    # each straggler worked until the deadline, and the quick class has none
    assert reply.counts.clock.stragglers[0] == 0
    assert reply.counts.clock.time_us[1] - again.counts.clock.time_us[1] == late * 4_000_000


def test_stragglers_stay_as_they_were(slow_world):
    cohort = slow_world.cohorts(1)[0]
    (reply,) = round_of(slow_world, EVERYBODY)
    users = np.array(cohort.state("r").users)
    slow_world.join(cohort)
    moved = (users != cohort.state("r").users).any(axis=1)
    assert moved.sum() == reply.counts.totals.trained


def test_who_is_not_available_costs_nothing_and_is_counted(slow_world):
    cohort = slow_world.cohorts(1)[0]
    awake = cohort.fleet.available(slow_world.scenario.seed, EVERYBODY, 1)
    (reply,) = round_of(slow_world, EVERYBODY)
    asleep = np.bincount(cohort.classes[~awake], minlength=2)
    assert reply.counts.clock.unavailable.tolist() == asleep.tolist()
    assert asleep[1] > 0
    (nobody,) = round_of(slow_world, EVERYBODY[~awake])
    assert nobody.groups == {}
    assert not nobody.counts.classes.stacked().any()
    assert nobody.counts.slowest_us == 0
    (others,) = round_of(slow_world, EVERYBODY[awake])
    same_update(reply, others)


def test_devices_below_the_smallest_budget_are_excluded(tmp_path):
    """Full table: 24 items x 4 columns x 4 B = 384 B; small devices have 120 B, large ones 384 B."""
    world = World(tmp_path, refinement={"min_budget_share": 0.99, "local": {"batch_size": 3}})
    (reply,) = round_of(world, EVERYBODY)
    killed = world.cohorts(1)[0].budgets.at(1) < 0.99 * 384
    assert 0 < killed.sum() < NUM_USERS
    assert reply.counts.clock.excluded.sum() == killed.sum()
    assert reply.counts.clock.excluded[1] == 0
    assert "from-0.99" in world.cohorts(1)[0].folder.name  # this refinement has a state of its own


# ---------------------------------------------------------------- memory that falls while a device trains


def test_memory_of_a_round_by_hand():
    """Overhead 44 + 2 x 4 = 52; a block of two columns in int8: number 2, scale 2, codes 2."""
    ranked = rank_blocks(LAYOUT, "int8", np.arange(48.0), np.ones((24, 4), np.float32))
    budgets = np.array(
        [
            [340, 340, 110, 60, 50],  # when the round begins: 48, 48, 9, 1 and 0 blocks fit
            [340, 80, 60, 57, 340],  # 48, 4, 1, 0, and more than what it began with
            [340, 260, 100, 340, 340],
        ]
    )
    memory = RoundMemory.from_budgets(ranked, budgets, np.full(budgets.shape[1], len(ranked.blocks)))
    assert memory.first.tolist() == [48, 48, 9, 1, 0]
    assert memory.last.tolist() == [48, 4, 1, 0, 0]
    assert memory.stored.tolist() == [340, 340, 106, 58, 0]
    assert memory.dropped_blocks.tolist() == [False, True, True, True, False]
    assert memory.dropped_out.tolist() == [False, False, False, True, True]
    assert not memory.violations.any()


FALLING = """
profiles:
  - name: kept
    population_share: 0.5
    memory: {table_share: 0.7136, working_factor: 100}
  - name: fallen
    population_share: 0.5
    memory: {table_share: 0.7136, working_factor: 100}
    budget:
      process: markov
      first: foreground
      states: {foreground: 1.0, background: BACKGROUND}
      transitions_per_step: {foreground: [0.0, 1.0], background: [0.0, 1.0]}
clock: {steps_per_round: 4}
"""


def test_an_update_covers_the_blocks_that_are_left(tmp_path):
    """Round 0 begins in the foreground with 274 B, 35 blocks beside the user embedding that a device may go back
    to; one step later 0.36 x 274 = 98 B hold 6."""
    world = world_of(tmp_path, FALLING.replace("BACKGROUND", "0.36"))
    cohort = world.cohorts(1)[0]
    fallen = EVERYBODY[cohort.classes == 1]
    assert 0 < len(fallen) < NUM_USERS
    (reply,) = round_of(world, fallen, number=0)
    assert reply.counts.clock.memory_drops[1] == len(fallen) == reply.counts.classes.devices[1]
    for group, arrays in reply.groups.items():
        exposed = int((cohort.state("r").groups[fallen] == group).sum())
        assert arrays["exposed"][:6].tolist() == [exposed] * 6
        assert not arrays["exposed"][6:].any()
        assert not arrays["holders"][6:].any()
    assert reply.counts.classes.budget_bytes[1] == len(fallen) * 274
    assert reply.counts.classes.violations[1] == 0
    # later, in the background all the time, the same blocks are there from the beginning
    (later,) = round_of(world, fallen, number=1)
    assert later.counts.clock.memory_drops[1] == 0
    assert later.groups.keys() == reply.groups.keys()


def test_a_device_that_loses_all_its_memory_drops_out(tmp_path):
    world = world_of(tmp_path, FALLING.replace("BACKGROUND", "0.1"))
    cohort = world.cohorts(1)[0]
    (reply,) = round_of(world, EVERYBODY, number=0)
    dropped = int((cohort.classes == 1).sum())
    assert reply.counts.clock.memory_dropouts.tolist() == [0, dropped]
    assert reply.counts.classes.devices.tolist() == [NUM_USERS - dropped, 0]
    assert reply.counts.classes.upload_bytes[1] == 0
    assert reply.counts.classes.download_bytes[1] > 0
    (others,) = round_of(world, EVERYBODY[cohort.classes == 0], number=0)
    same_update(reply, others)


def test_samples_are_counted_again_where_blocks_were_lost():
    """Items in order of rank; a device with train items 0, 2 and 5 has 3 of them among six rows and 1 among two."""
    ranked = rank_blocks(LAYOUT, "int8", -np.arange(48.0), np.ones((24, 4), np.float32))
    memory = RoundMemory.from_budgets(ranked, 52 + 6 * np.array([[12, 12, 12], [12, 4, 0]]), np.full(3, 48))
    train = rows_of([0, 2, 5], [0, 2, 5], [0, 2, 5])
    assert work_samples(ranked, memory, train).tolist() == [3, 4, 3]


# ---------------------------------------------------------------- a node of one profile


def test_a_node_of_one_profile_hosts_that_class_alone(slow_world):
    setting = slow_world.setting
    cohort = open_cohort(setting, 0, 2, "slow")
    assert cohort.own_fleet.names == ("slow",)
    assert cohort.fleet.names == ("quick", "slow")  # the columns of every sum stay those of the fleet
    assert (cohort.classes == 1).all()
    assert cohort.rates.latency_s.tolist() == [0.5] * 11
    whole = open_cohort(setting, 0, 2)
    slow = whole.classes == 1
    assert (cohort.rates.uplink_bytes_per_s[slow] == whole.rates.uplink_bytes_per_s[slow]).all()


def test_the_node_config_names_the_profile(slow_world):
    """As `flower-supernode --node-config 'profile="slow"'` sets it."""

    def ask(profile: str) -> Message:
        request = filled(
            wire.JoinRequest,
            setting=slow_world.setting,
            item_group=LAYOUT.item_group,
            centroids=slow_world.centroids,
            item_table=slow_world.items,
            users=slow_world.users[:0],
            groups=np.zeros(0, np.int32),
            maps=np.zeros((0, 0, slow_world.items.shape[1]), np.float32),
            pull=np.zeros((0, slow_world.items.shape[1]), np.float32),
        )
        return node_reply({"profile": profile, "simulated": True}, request, wire.JOIN)

    reply = wire.unpack(wire.JoinReply, ask("slow").content)
    assert reply.class_names == "quick\nslow"
    refused = ask("slwo")
    assert refused.error.code == wire.USER_MISTAKE
    error = wire.NodeError.from_reason(refused.error.reason)
    assert (error.code, error.place) == ("ProfileError", "fleet")
    assert error.text.startswith("fleet.yaml: has no profile 'slwo'; did you mean 'slow'?")
    with pytest.raises(ProfileError, match="has no profile 'phone'"):
        open_cohort(slow_world.setting, 1, 2, "phone")


# ---------------------------------------------------------------- whole runs

COMPARED = [
    "fairness={tiers: [40%, 80%], exclude_below: 65%}",
    "elasticity={rounds: 2, falls: [1, 0.8], trained_for: [0.8]}",
]


def test_a_run_reports_fairness_and_elasticity_alike_on_any_nodes(tiny, tmp_path):
    scenario = load_scenario(tiny, COMPARED)
    results = [serve(LoopbackGrid(n), scenario, RunPaths("", str(tmp_path / str(n)))) for n in (1, 3)]
    for key in ("fairness", "elasticity", "elastic_traces", "time_to_recall", "device_classes"):
        assert getattr(results[0], key) == getattr(results[1], key)
    fairness, elasticity = results[0].fairness, results[0].elasticity
    methods = {row.method for row in fairness.over_devices}
    rivals = {"fixed_tiers", "excluding_small", "trained_without_small"}
    assert methods == {"peel", "full_table_global", "full_table_refined"} | rivals
    for row in fairness.over_devices:
        assert row.worst_10_percent <= row.worst_25_percent <= row.worst_50_percent <= row.recall
    by_class = {row.device_class: row for row in fairness.by_class}
    assert set(by_class) == {"small", "large"}
    # budgets of small devices never exceed 0.42 of the table: none of them holds 65%
    assert by_class["small"].recall["excluding_small"].value == 0.0
    assert by_class["large"].recall["excluding_small"] > 0
    assert fairness.excluding_small.device_rounds == 2 * by_class["small"].devices
    falls = elasticity.falls
    assert [row.factor for row in falls] == [1.0, 0.8]
    assert falls[0].elastic == falls[0].rigid
    assert falls[1].elastic_to_trained_for == falls[1].elastic.value / falls[1].trained_for.value
    followed = elasticity.followed
    assert followed.figures.budget_violations == 0
    assert followed.figures.growth_to_missing is None or followed.figures.growth_to_missing >= 1
    assert followed.hours == (2 * 4 - 1) * 900 / 3600


def test_fixed_tiers_are_chosen_on_validation():
    """Two classes, two tiers. Validation: 0.2 and 0.6 for the small class, 0.5 and 0.4 for the large one; the test says
    the opposite of both, and its figures are those of what validation chose.
    """
    recalls = {"validation": [[0.2, 0.5], [0.6, 0.4]], "test": [[0.9, 0.1], [0.3, 0.8]]}  # by tier and class

    def reply(split: str, tiers: slice) -> types.SimpleNamespace:
        recall = np.array(recalls[split])[tiers]
        cells = np.arange(recall.size)
        there = np.ones(recall.size, np.bool_)
        sums = MetricSums.from_devices(cells, recall.size, recall.ravel(), recall.ravel(), there)
        shaped = sums.reshaped(*recall.shape, 1)
        bins = Histogram.from_devices(cells, recall.size, recall.ravel(), there)
        spread = Histogram(*(part.reshape(*recall.shape, -1) for part in (bins.counts, bins.sums)))
        return filled(wire.EvaluateReply, sums=shaped, spread=spread, owned=[None])

    evaluator = types.SimpleNamespace(
        members=types.SimpleNamespace(class_names=("small", "large")),
        scenario=types.SimpleNamespace(fairness=types.SimpleNamespace(tiers=(0.25, 0.01))),
        layout=LAYOUT,
    )
    fairness = FairnessTally(evaluator, reply("test", slice(0, 1)))
    events = fairness.add_tiers(reply("validation", slice(None)), reply("test", slice(None)))
    assert events.tiers == (0.01, 0.25)
    assert events.chosen == {"small": 0.25, "large": 0.01}
    assert [recall.value for recall in fairness.served[-1].recall] == pytest.approx([0.3, 0.1])
    budgets = tuple(budget_bytes(LAYOUT, share) for share in (0.01, 0.25))
    assert tier_rows(evaluator) == {
        TIERS_ON_VALIDATION: BudgetRequest(budgets, rooms=(1.0, 1.0), on_validation=True),
        TIERS: BudgetRequest(budgets, rooms=(1.0, 1.0)),
    }
    evaluator.scenario.fairness.tiers = ()
    assert tier_rows(evaluator) == {}


def test_every_fall_is_asked_of_elastic_and_of_rigid_devices():
    part = types.SimpleNamespace(falls=(0.5, 1.0), trained_for=(0.25, 0.5))
    evaluator = types.SimpleNamespace(scenario=types.SimpleNamespace(elasticity=part))
    own, factors = (wire.OWN_BUDGET,) * 6, (1.0, 0.5, 0.25)
    assert fall_rows(evaluator) == {FALLS: BudgetRequest(own, (*factors, 1.0, 1.0, 1.0), (-1.0, -1.0, -1.0, *factors))}
    part.falls = part.trained_for = ()
    assert fall_rows(evaluator) == {}
    assert falling(evaluator, None, {}, None) == ()


def test_rounds_without_anybody_work(tiny_run, tiny, tmp_path):
    """All devices asleep in every round: nothing is learned, nothing breaks."""
    fleet = (
        (tmp_path / "fleet.yaml").read_text().replace("table_share: 0.42}", "table_share: 0.42}\n    availability: 0")
    )
    fleet = fleet.replace("table_share: 1.0}}", "table_share: 1.0}, availability: 0}")
    (tmp_path / "fleet.yaml").write_text(fleet)
    plain = load_scenario(tiny, ["user_groups.neighbour_weight=0"])
    result = serve(LoopbackGrid(2), plain, RunPaths("", str(tmp_path / "run")))
    assert [(row.devices, row.clock.unavailable, row.clock.sampled) for row in result.rounds] == [(0, 40, 40)] * 2
    assert [row.clock.virtual_seconds for row in result.rounds] == [0.0, 0.0]
    assert result.full_table.refined == result.full_table.globally
    assert result.time_to_recall == ()
    # groups that start from their neighbours' scores have other tables; the global one is nobody's start
    started = tiny_run[0].full_table
    assert started.globally == result.full_table.globally != started.refined


def test_over_selection_samples_more_devices(tiny, tmp_path):
    scenario = load_scenario(tiny, ["refinement.cohort_share=0.2", "refinement.over_selection=0.5"])
    result = serve(LoopbackGrid(2), scenario, RunPaths("", str(tmp_path / "run")))
    assert [row.clock.sampled for row in result.rounds] == [12, 12]  # 40 x 0.2 x 1.5


def test_a_round_with_stragglers_lasts_until_the_deadline(tiny, tmp_path):
    scenario = load_scenario(tiny, ["refinement.deadline_s=0.052"])  # a latency of 0.05 s, and 0.002 s for all the rest
    result = serve(LoopbackGrid(2), scenario, RunPaths("", str(tmp_path / "run")))
    late = [row.clock.stragglers for row in result.rounds]
    assert min(late) > 0
    assert [row.clock.virtual_seconds for row in result.rounds] == [0.052, 0.052]
    assert sum(row.costs.dropped for row in result.device_classes.values()) == sum(late)
    elapsed = [row.virtual_seconds for row in result.history]
    assert elapsed == pytest.approx([0.052, 0.104])


def test_two_fleets_on_one_seed_share_pretraining(tiny, tmp_path):
    (tmp_path / "other.yaml").write_text("profiles: [{name: only, memory: {table_share: 1.0}}]")
    kept = []
    for fleet in ("fleet.yaml", "other.yaml"):
        events: list[Event] = []
        paths = RunPaths("", str(tmp_path / fleet[:5]), str(tmp_path / "cache"))
        serve(LoopbackGrid(1), load_scenario(tiny, [f"fleet={fleet}"]), paths, events.append)
        kept.append(any(event.text == "loaded from the cache" for event in events))
    assert kept == [False, True]
    names = [entry.name for entry in Store(tmp_path / "cache").entries()]
    assert sorted(names) == ["groups", "pretrained"]


# ---------------------------------------------------------------- shipped scenarios


@pytest.mark.parametrize("name", ["budget-shock", "microcontrollers", "diurnal-availability", "stragglers"])
def test_scenarios_on_ml_100k_share_its_pretraining(name):
    scenario, usual = load_scenario(name), load_scenario("ml-100k")
    assert scenario.data == usual.data
    assert scenario.pretraining == usual.pretraining
    assert scenario.seed == usual.seed
    assert scenario.refinement.local == usual.refinement.local
