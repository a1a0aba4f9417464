"""A run's plan by hand: shares, schedule, what the answer costs, who adds noise, what is refused and what is told."""

import math

import numpy as np
import pytest

from fl_peel.errors import ScenarioError
from fl_peel.exchange.release import NamedSums, shares_of
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.mechanisms import (
    NO_PRIVACY,
    CentralGaussian,
    LocalGaussian,
    Mechanism,
    Schedule,
    event_of,
    find_mechanism,
    privacy_cost,
)
from fl_peel.privacy.noise_plan import (
    check_delta,
    check_keys,
    in_masked_sums,
    make_plan,
    noise_devices_of,
    schedule_of,
)
from fl_peel.privacy.report import report_of
from fl_peel.privacy.sources import SeededNoise, noise, with_device_noise, with_noise_shares
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import answers_needed

DELTA = 1e-5
CENTRAL = {"mechanism": "central-gaussian", "noise_multiplier": 5.0, "clipping": {"kind": "flat"}, "delta": DELTA}
LOCAL = CENTRAL | {"mechanism": "local-gaussian", "rows": "all-sent"}
SECURE = {"enabled": True, "min_devices": 10, "threshold": 0.6}


def scenario(privacy=None, **keys) -> Scenario:
    content = {"name": "planned", "data": {"path": "pairs.csv"}, "privacy": CENTRAL if privacy is None else privacy}
    return Scenario.model_validate(content | keys)


# ---------------------------------------------------------------- schedule


def test_rounds_with_signals_are_paid_in_full_and_the_others_without_them():
    given = scenario(selector="controller", refinement={"rounds": 7}, controller={"every": 3})
    shares = shares_of(given)
    assert sum(shares.values()) == pytest.approx(1.0)
    schedule = schedule_of(given, CentralGaussian(), shares, 7)
    (full, whole), (others, rest) = schedule.rounds  # rounds 3 and 6 have signals
    assert (full, whole, others) == (2, 1.0, 5)
    assert rest == pytest.approx(1.0 - shares["signals"])
    assert (schedule.sampling, schedule.certain) == (1.0, ())
    assert [times for times, _ in schedule_of(given, CentralGaussian(), shares, 1).rounds] == [1, 0]
    assert [times for times, _ in schedule_of(given, CentralGaussian(), shares, 3).rounds] == [2, 1]


def test_sampling_amplifies_only_by_coins_that_nobody_sees():
    def sampling(mechanism, privacy=None, **keys):
        given = scenario(privacy, refinement={"rounds": 4, "cohort_share": 0.25} | keys.pop("refinement", {}), **keys)
        return schedule_of(given, mechanism, shares_of(given), 4).sampling

    poisson = {"refinement": {"sampling": "poisson"}}
    assert sampling(CentralGaussian(), **poisson) == 0.25
    assert sampling(CentralGaussian()) == 1.0  # a fixed number of devices
    assert sampling(LocalGaussian(), LOCAL, **poisson) == 1.0  # the server sees who answers
    assert sampling(CentralGaussian(), **poisson, secure_aggregation=SECURE | {"devices_per_group": None}) == 1.0


# ---------------------------------------------------------------- plan


def test_a_plan_costs_what_its_schedule_costs():
    given = scenario(refinement={"rounds": 4})
    plan = make_plan(given)
    assert plan is not None
    assert plan.multiplier == 5.0
    assert plan.mechanism == find_mechanism("central-gaussian")
    expected = privacy_cost(event_of(CentralGaussian(), 5.0, plan.schedule), DELTA)
    assert (plan.cost, plan.cost.delta) == (expected, DELTA)
    assert (plan.epsilon, plan.group_epsilon, plan.stage1, plan.stage1_epsilon) == (expected.epsilon, 0.0, (), None)
    assert make_plan(given, most_rounds=1).epsilon < plan.epsilon
    assert make_plan(given, most_rounds=4) == plan
    assert make_plan(scenario({})) is None


def test_noise_grows_with_the_bound_and_shrinks_with_the_share():
    plan = make_plan(scenario())
    assert plan is not None
    for part, share in plan.shares.items():  # Gaussian: a share of the precision
        assert plan.scale(part, 0.5) == pytest.approx(0.5 * 5.0 / math.sqrt(share))
        assert plan.std(part, 3.0) == pytest.approx(6 * plan.std(part, 0.5))


@pytest.mark.slow
def test_the_answer_which_group_is_added_where_it_is_asked():
    given = scenario(CENTRAL | {"group_epsilon": 0.5})
    assert make_plan(given).group_epsilon == 0.0
    asked = make_plan(given, asks_groups=True)
    assert asked.epsilon == pytest.approx(asked.cost.epsilon + 0.5)
    target = CENTRAL | {"noise_multiplier": None, "target_epsilon": 4.0}
    plan = make_plan(scenario(target | {"group_epsilon": 1.0}), asks_groups=True)
    assert 2.9 < plan.cost.epsilon <= 3.0
    assert plan.epsilon <= 4.0
    with pytest.raises(ScenarioError, match=r"privacy\.group_epsilon: devices whose data is not collected report"):
        make_plan(scenario(target), asks_groups=True)
    assert make_plan(scenario(CENTRAL), asks_groups=True).group_epsilon == 0.0  # no target: it is free to tell
    assert make_plan(scenario(target)).epsilon <= 4.0


def test_a_multiplier_that_misses_the_target_is_refused():
    cost = make_plan(scenario()).epsilon
    for enough in (cost, cost * 1.001):
        assert make_plan(scenario(CENTRAL | {"target_epsilon": enough})).epsilon == cost
    with pytest.raises(ScenarioError, match=r"privacy\.noise_multiplier: 5 spends epsilon .* above"):
        make_plan(scenario(CENTRAL | {"target_epsilon": cost * 0.999}))


@pytest.mark.parametrize(
    ("privacy", "keys", "expected"),
    [
        (LOCAL | {"rows": "touched"}, {}, r"privacy\.rows: touched"),
        (CENTRAL, {"fairness": {"exclude_below": 0.5}}, r"fairness\.exclude_below: refines once more"),
        (CENTRAL, {"elasticity": {"trained_for": ["1%"]}}, r"elasticity\.trained_for: refines once more"),
        (CENTRAL | {"colluding_devices": 6}, {"secure_aggregation": SECURE}, r"privacy\.colluding_devices: of 10"),
    ],
)
def test_keys_that_would_make_epsilon_untrue_are_refused(privacy, keys, expected):
    with pytest.raises(ScenarioError, match=expected):
        make_plan(scenario(privacy, **keys))


def test_devices_add_the_noise_of_masked_sums_where_it_can_be_divided():
    masked = scenario(secure_aggregation=SECURE)
    assert in_masked_sums(masked, CentralGaussian())
    assert not in_masked_sums(masked, LocalGaussian())
    assert not in_masked_sums(masked, None)
    assert not in_masked_sums(scenario(), CentralGaussian())

    class Whole(CentralGaussian):
        divides = False

    assert not in_masked_sums(masked, Whole())


def test_shares_of_noise_are_counted_by_those_who_last_and_keep_it_to_themselves():
    def count(colluding, devices=10):
        given = scenario(CENTRAL | {"colluding_devices": colluding}, secure_aggregation=SECURE)
        return noise_devices_of(given, devices)

    assert answers_needed(10, 0.6) == 6
    assert [count(colluding) for colluding in (0, 2, 5)] == [6, 4, 1]
    assert count(0, devices=20) == 12
    with pytest.raises(ScenarioError, match="of 10 devices 6 must stay until the end, and 6 may reveal"):
        count(6)


def test_a_delta_above_one_of_the_devices_is_refused():
    given = scenario(CENTRAL | {"delta": 0.125})
    check_delta(given, 8)
    with pytest.raises(ScenarioError, match=r"privacy\.delta: 0\.125 is above one of 9 devices"):
        check_delta(given, 9)
    check_delta(scenario({"delta": 0.125}), 9)  # of no noise


def test_whole_noise_is_asked_of_mechanisms_that_draw_it(monkeypatch):
    class Floats(CentralGaussian):
        name = "floats"
        draw_whole = Mechanism.draw_whole

    system = scenario(CENTRAL | {"noise_source": "system"})
    check_keys(system, CentralGaussian())
    check_keys(scenario(), Floats())
    with pytest.raises(ScenarioError, match=r"privacy\.noise_source: mechanism floats draws no integer noise"):
        check_keys(system, Floats())


def test_more_noise_than_is_drawn_exactly_is_refused_by_part():
    """Up to 2^56 units: of 2^-24 in rounds; in stage 1 of 2^-20 for counts, of 2^-40 for products, 2^16 at most."""
    most = 2**32 * math.sqrt(0.9) / 5  # a bound of updates, which have 0.9 of a round, at a multiplier of 5

    def planned(selector="controller", norm=1.0, source="system", **privacy):
        keys = CENTRAL | {"noise_source": source, "clipping": {"kind": "flat", "norm": norm}} | privacy
        by_devices = {"model": "spectral", "source": "devices", "collected": {"share": 0}}
        return make_plan(scenario(keys, selector=selector, pretraining=by_devices))

    too_much = r"privacy\.noise_source: system draws no noise of scale"
    assert planned(norm=0.999 * most) is not None
    assert planned(norm=1.001 * most, source="seed") is not None
    assert planned("popularity", signals_norm=1e9) is not None  # nobody says signals
    assert planned(counts_norm=1e9) is not None
    assert planned(noise_multiplier=2e4) is not None
    refused = [{"norm": 1.001 * most}, {"signals_norm": 1e9}, {"counts_norm": 1e9, "noise_multiplier": 100.0}]
    for keys in (*refused, {"noise_multiplier": 9e4}):  # divided by the root of 0.2 and more: above 2^16
        with pytest.raises(ScenarioError, match=too_much):
            planned(**keys)


# ---------------------------------------------------------------- accounting


def test_beyond_all_privacy_one_accountant_is_asked():
    vast = privacy_cost(event_of(CentralGaussian(), 0.05, Schedule(((9, 1.0),))), DELTA)
    assert vast.rdp > NO_PRIVACY
    assert (vast.pld, vast.accountant, vast.epsilon) == (None, "RDP", vast.rdp)


# ---------------------------------------------------------------- noise on sums


def zeros(**sizes) -> NamedSums:
    return NamedSums({part: np.zeros(size, np.int64) for part, size in sizes.items()})


def test_each_part_has_the_noise_of_its_scale():
    sizes = {"updates": (100, 50), "signals": (5000,)}
    drawn = noise(CentralGaussian(), {"updates": 2.0, "signals": 0.5}, sizes, ("here", 3), SeededNoise(1))
    assert {part: values.shape for part, values in drawn.items()} == sizes
    assert [values.std() / FIXED_POINT for values in drawn.values()] == pytest.approx([2.0, 0.5], rel=0.05)
    again, other_round, other_seed = (
        noise(CentralGaussian(), {"updates": 2.0}, sizes, identity, SeededNoise(seed))["updates"]
        for identity, seed in ((("here", 3), 1), (("here", 4), 1), (("here", 3), 2))
    )
    assert (again == drawn["updates"]).all()
    assert (other_round != drawn["updates"]).mean() > 0.99
    assert (other_seed != drawn["updates"]).mean() > 0.99
    sizes = dict.fromkeys(sizes, (5000,))
    same = noise(CentralGaussian(), {"updates": 1.0, "signals": 1.0}, sizes, ("here",), SeededNoise(1))
    assert abs(np.corrcoef(same["updates"], same["signals"])[0, 1]) < 0.1  # parts are noised apart


@pytest.mark.parametrize("shared", [True, False])
def test_noise_of_devices_is_by_identity_added_to_what_was_there_and_leaves_it_alone(shared):
    def noised(sums, seed, server_round, devices):
        who = (SeededNoise(seed), server_round, np.asarray(devices))
        if shared:
            return with_noise_shares(sums, {"updates": 3.0, "signals": 6.0}, 9, *who)
        return with_device_noise(sums, {"updates": 1.0, "signals": 2.0}, LocalGaussian(), *who)

    empty = zeros(updates=(60, 50), signals=(3000,))
    output = NamedSums({part: values + 7 for part, values in empty.items()})
    one, two, both = (noised(empty, 5, 2, devices) for devices in ([4], [8], [8, 4]))
    for part, std in (("updates", 1.0), ("signals", 2.0)):  # nine shares reach 3 and 6
        assert one[part].std() / FIXED_POINT == pytest.approx(std, rel=0.06)
        assert (one[part] + two[part] == both[part]).all()
        assert (noised(output, 5, 2, [4])[part] == one[part] + 7).all()
        assert (output[part] == 7).all()
        assert (noised(empty, 6, 2, [4])[part] != one[part]).any()
        assert (noised(empty, 5, 3, [4])[part] != one[part]).any()
        assert (two[part] != one[part]).any()
    assert abs(np.corrcoef(one["updates"].ravel(), one["signals"])[0, 1]) < 0.1


# ---------------------------------------------------------------- what the report tells


def reported(given, norms=(0.125, 0.25, 0.5), **how):
    return report_of(given, make_plan(given, **how), list(norms))


def test_the_report_has_the_figures_of_the_plan():
    given = scenario(
        CENTRAL | {"target_epsilon": 99.0, "group_epsilon": 0.5},
        selector="controller", refinement={"rounds": 7}, controller={"every": 3},
    )  # fmt: skip
    plan = make_plan(given, asks_groups=True)
    report = reported(given, asks_groups=True)
    accounted = report.accounted
    assert accounted is not None
    assert (report.mechanism, report.clipping, report.epsilon, report.delta) == (
        "central-gaussian", "flat", plan.epsilon, DELTA,
    )  # fmt: skip
    assert (accounted.accountant, accounted.epsilon_rdp, accounted.epsilon_pld) == (
        plan.cost.accountant, plan.cost.rdp, plan.cost.pld,
    )  # fmt: skip
    assert (accounted.target_epsilon, accounted.noise_multiplier, accounted.clip_norms) == (
        99.0,
        5.0,
        (0.125, 0.25, 0.5),
    )
    *parts, answer = accounted.releases
    assert accounted.noise_source == "seed"
    assert reported(scenario(CENTRAL | {"noise_source": "system"})).accounted.noise_source == "system"
    assert {one.part: one.share for one in parts} == dict(plan.shares)
    assert {one.part: one.bound for one in parts} == {"updates": 0.5, "signals": 1.0}  # updates: of the last round
    assert {one.part: one.rounds for one in parts} == {"updates": 7, "signals": 2}  # signals: of rounds 3 and 6
    for one in parts:
        assert one.noise_std == plan.std(one.part, one.bound)
        assert (one.added_by, one.epsilon) == ("server", None)
    assert (answer.part, answer.rounds, answer.epsilon, answer.added_by) == ("user group", 1, 0.5, "device")
    assert "and the user group it reports" in accounted.covers
    assert reported(given, norms=(), asks_groups=True).accounted.releases[0].bound == given.privacy.clipping.norm


SENT = "everything a device sends in {}, per device, over all rounds, towards {}"


def test_the_report_says_whom_the_noise_is_against():
    colluding = CENTRAL | {"colluding_devices": 2}
    central, local = reported(scenario()).accounted, reported(scenario(LOCAL)).accounted
    masked = reported(scenario(colluding, secure_aggregation=SECURE)).accounted
    unmasked = reported(scenario(colluding, secure_aggregation=SECURE | {"masked": False})).accounted
    assert central.adjacency == "a device's contributions, all rounds together, replaced by zeros"
    assert local.adjacency == "a device's contributions, all rounds together, replaced by any others"
    tables = "the other devices and anyone who sees the tables"
    server = "the server too"
    others = ", which learns only noised sums, and 2 device(s) of the user group that collude with it"
    assert [one.covers for one in (central, local, masked, unmasked)] == [
        SENT.format("refinement", seen_by) for seen_by in (tables, server, server + others, tables)
    ]
    assert [one.releases[0].added_by for one in (central, local, masked, unmasked)] == [
        "server", "device", "devices, in shares", "devices, in shares",
    ]  # fmt: skip
    asked = reported(scenario(CENTRAL | {"group_epsilon": 0.5}), asks_groups=True).accounted
    assert asked.covers == SENT.format("refinement, and the user group it reports", tables)
    poisson = scenario(refinement={"sampling": "poisson", "cohort_share": 0.25})
    whoever = "Poisson, 0.25 per round, towards anyone who does not see which devices take part"
    assert reported(poisson).accounted.sampling == whoever
    assert central.sampling == "not amplified: every round that a device can take part in counts in full"


COLLECTED = "pretraining data: {}, which the server has in the clear (pretraining.collected)"
SEED = [
    "anyone with the seed, which is in this report: noise, answers and coins follow from it and can be subtracted "
    "(privacy.noise_source: system)",
    "the last bits of the noise, which floating-point samplers draw (privacy.noise_source: system)",
]
OUTSIDE = [
    "memory budgets, device classes and availability, which are not interactions",
    "the test evaluation, which the researcher runs on all devices outside the protocol",
]
ARTIFACTS = "3 devices whose embeddings are written to the folder of this report (evaluation.artifacts)"
ASKED_FOR = "the number of blocks that a device requests, and so its current budget (privacy.requests)"
VALIDATED = [
    "fixed tiers: the table sizes each device class gets, chosen on its validation items (fairness.tiers)",
    "the validation recall of full tables, in this report (evaluation.full_tables)",
    "keys of this scenario, if they were chosen by trying several values on validation items of the same devices",
]
MEASURED = (
    "losses, recalls, times and bytes of the rounds in this report: measured by the simulation, sent by no device"
)


def uncovered(privacy=None, **keys):
    return list(reported(scenario(privacy, **keys)).accounted.not_covered)


def test_the_report_says_what_is_not_covered():
    everything = COLLECTED.format("the train interactions of all users")
    assert uncovered(CENTRAL | {"counters": "measured"}) == [
        everything, *SEED, *OUTSIDE, ARTIFACTS, ASKED_FOR, *VALIDATED, MEASURED,
    ]  # fmt: skip
    # each line is left out where its key says that there is nothing to tell
    system = CENTRAL | {"noise_source": "system", "requests": "group-prefix", "counters": "withheld"}
    quiet = {"evaluation": {"artifacts": 0, "full_tables": False}, "fairness": {"tiers": []}}
    assert uncovered(system, **quiet) == [everything, *OUTSIDE, VALIDATED[-1]]
    none_apart = {"data": {"path": "pairs.csv", "validation_share": 0.0}, "selector": "popularity"}
    assert uncovered(system, evaluation={"artifacts": 0}, **none_apart) == [everything, *OUTSIDE]


@pytest.mark.parametrize(
    ("collected", "whose"),
    [
        ({"share": 1.0}, "the train interactions of all users"),
        ({"share": 1.0, "mode": "oldest"}, "the train interactions of all users"),
        ({"share": 0.3, "mode": "oldest"}, "the oldest 30% of every user's train interactions"),
        ({"share": 0.3, "mode": "users"}, "the train interactions of the 30% of the users who consented"),
    ],
)
def test_the_report_says_whose_data_was_collected(collected, whose):
    assert uncovered(pretraining={"collected": collected})[0] == COLLECTED.format(whose)


def test_a_report_without_noise_says_what_was_hidden():
    plain, rows, prefix = (
        report_of(scenario(privacy), None, []) for privacy in ({}, {"rows": "all-sent"}, {"requests": "group-prefix"})
    )
    assert (plain.mechanism, plain.clipping, plain.epsilon, plain.delta, plain.accounted) == (
        "none",
        None,
        None,
        None,
        None,
    )
    assert [(one.rows, one.requests) for one in (plain, rows, prefix)] == [
        ("touched", "own-budget"), ("all-sent", "own-budget"), ("touched", "group-prefix"),
    ]  # fmt: skip
    assert [one.hides for one in (plain, rows, prefix)] == [False, True, True]
    assert [one.bounded for one in (plain, rows, prefix)] == [False, True, False]
    assert [one.withholds for one in (plain, rows, prefix)] == [False, True, False]
    measured = report_of(scenario({"rows": "all-sent", "counters": "measured"}), None, [])
    assert (measured.counters, measured.withholds) == ("measured", False)
