"""Stage 1 under a mechanism, by hand: what is released how often at which share, and noise with that deviation."""

import dataclasses
import math

import numpy as np
import pytest

from fl_peel.privacy.mechanisms import CentralGaussian, LocalLaplace, Schedule, event_of, privacy_cost
from fl_peel.privacy.noise_plan import NOISED_PARTS, Stage1Scales, contribution_bounds, make_plan, stage1_releases
from fl_peel.privacy.report import report_of
from fl_peel.privacy.sources import SeededNoise
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import ContributionBounds
from fl_peel.steps.choice import CHOICE_BOUND

GAUSSIAN = {"mechanism": "central-gaussian", "noise_multiplier": 3.0, "clipping": {"kind": "flat"}, "counts_norm": 0.7}
LAPLACE = GAUSSIAN | {"mechanism": "local-laplace", "rows": "all-sent"}
BY_DEVICES = {"model": "spectral", "source": "devices", "collected": {"share": 0}, "passes": 3}
CHOOSING = {"count_exponent": None, "value_exponent": None}
FIXED = {"count_exponent": 0.4, "value_exponent": 0.3}


def scenario(privacy=GAUSSIAN, filters=CHOOSING, *, groups=4, **pretraining) -> Scenario:
    content = {"name": "stage1", "data": {"path": "pairs.csv"}, "privacy": privacy, "refinement": {"rounds": 2}}
    content |= {"pretraining": BY_DEVICES | filters | pretraining, "user_groups": {"count": groups}}
    return Scenario.model_validate(content)


def times(given):
    return {release.part: release.times for release in stage1_releases(given)}


def test_how_often_a_device_is_in_which_part():
    assert times(scenario()) == {part: 3 if part == "pass" else 1 for part in NOISED_PARTS}
    assert times(scenario(filters=FIXED)).keys() == NOISED_PARTS.keys() - {"choice"}
    assert times(scenario(groups=1)).keys() == NOISED_PARTS.keys() - {"group sizes"}
    assert times(scenario(groups=2)).keys() == NOISED_PARTS.keys()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # two stages 1 and four more; recent uses of five periods and the one before; two passes in a later period
        ({}, {"counts": 6 + 6, "pass": 2 * 3 + 4 * 2, "choice": 1 + 5}),
        ({"recency_exponents": [0.5], "popularity_weights": [0]}, {"counts": 6 + 6, "pass": 14, "choice": 1}),
        ({"recency_exponents": [0], "popularity_weights": [1]}, {"counts": 6, "pass": 14, "choice": 1}),
        ({"recency_exponents": [0], "popularity_weights": [0, 1]}, {"counts": 6 + 6, "pass": 14, "choice": 1 + 5}),
    ],
)
def test_a_device_of_a_timeline_is_in_every_period(keys, expected):
    content = scenario(groups=1).model_dump(mode="json")
    content["data"]["timeline"] = {"periods": 5, "passes": 2} | keys
    given = Scenario.model_validate(content)
    moments = {part: 6 for part in NOISED_PARTS if part.startswith("moment")}
    assert times(given) == expected | moments
    assert sum(one.times * one.share for one in stage1_releases(given)) == pytest.approx(given.privacy.shares.stage1)


@pytest.mark.parametrize("given", [scenario(), scenario(filters=FIXED), scenario(groups=1)], ids=range(3))
def test_shares_of_all_times_together_are_that_of_stage_1(given):
    releases = stage1_releases(given)
    whole = sum(release.times * release.share for release in releases)
    assert whole == pytest.approx(given.privacy.shares.stage1)
    ratios = {release.times * release.share / NOISED_PARTS[release.part].share for release in releases}
    assert max(ratios) == pytest.approx(min(ratios))  # parts keep their proportions


def test_bounds_of_a_device():
    bounds = {release.part: release.bound for release in stage1_releases(scenario())}
    special = {"choice": CHOICE_BOUND, "counts": 0.7, "moment items": 0.7}
    assert bounds == {part: special.get(part, 1.0) for part in NOISED_PARTS}


def test_nothing_is_released_where_nothing_is_noised_or_devices_have_no_part():
    assert stage1_releases(scenario({})) == ()
    collected = Scenario.model_validate({"name": "x", "data": {"path": "pairs.csv"}, "privacy": GAUSSIAN})
    assert stage1_releases(collected) == ()
    assert make_plan(collected).stage1 == ()


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("mechanism", [CentralGaussian(), LocalLaplace()])
def test_scales_are_those_of_the_mechanism(mechanism):
    given = scenario(GAUSSIAN if mechanism.name == "central-gaussian" else LAPLACE)
    scales = Stage1Scales.from_scenario(given, 3.0)
    assert scales.mechanism == mechanism
    for release in stage1_releases(given):
        expected = mechanism.scale(3.0, release.share, release.bound)
        assert scales.scale(release.part) == expected
        assert scales.std(release.part) == mechanism.std(expected)
    assert Stage1Scales.from_scenario(given, 6.0).std("pass") == 2 * scales.std("pass")


SCALES = Stage1Scales.from_scenario(scenario(), 3.0)
SHAPE = (4000,)


@pytest.mark.parametrize("part", NOISED_PARTS)
@pytest.mark.parametrize("shared", [False, True])
def test_every_part_has_noise_of_its_deviation(part, shared):
    draw = SCALES.shared(16, "here") if shared else SCALES.whole("here")
    values = draw(part, SHAPE, 0) / NOISED_PARTS[part].unit
    std = SCALES.std(part) / (4 if shared else 1)  # 16 shares reach it
    assert values.std() == pytest.approx(std, rel=0.06)
    assert abs(values.mean()) < 6 * std / math.sqrt(values.size)


@pytest.mark.parametrize("make", [Stage1Scales.whole, lambda scales, *who: scales.shared(9, *who)])
def test_noise_is_by_seed_device_part_and_piece(make):
    other_seed = dataclasses.replace(SCALES, source=SeededNoise(1))
    draws = [make(scales, *who) for scales, who in ((SCALES, (7, 1)), (SCALES, (8, 1)), (other_seed, (7, 1)))]
    streams = [draw(part, SHAPE, piece) for draw in draws for part in ("pass", "counts") for piece in (0, 1)]
    assert (make(SCALES, 7, 1)("pass", SHAPE, 0) == streams[0]).all()
    close = np.abs(np.corrcoef(np.array(streams, float))) - np.eye(len(streams))
    assert close.max() < 0.1


def test_devices_keep_to_bounds_where_a_mechanism_adds_noise_and_they_take_part():
    collected = Scenario.model_validate({"name": "x", "data": {"path": "pairs.csv"}, "privacy": GAUSSIAN})
    assert contribution_bounds(scenario()) == ContributionBounds(0.7, False)
    assert contribution_bounds(scenario(LAPLACE)) == ContributionBounds(0.7, True)
    assert contribution_bounds(scenario({})) is contribution_bounds(collected) is None


# ---------------------------------------------------------------- what it costs and what is told


def test_stage_1_is_in_the_plan_and_in_the_report():
    given = scenario(GAUSSIAN | {"group_epsilon": 0.5})
    plan = make_plan(given, asks_groups=True)
    assert plan.stage1 == stage1_releases(given)
    assert plan.schedule.certain == tuple((release.times, release.share) for release in plan.stage1)
    alone = event_of(plan.mechanism, 3.0, Schedule(plan.schedule.certain))
    assert plan.stage1_epsilon == privacy_cost(alone, given.privacy.delta).epsilon
    assert 0 < plan.stage1_epsilon < plan.cost.epsilon
    accounted = report_of(given, plan, [0.5]).accounted
    first = accounted.releases[: len(plan.stage1)]
    for release, one in zip(plan.stage1, first, strict=True):
        assert (one.part, one.rounds, one.share, one.bound) == (
            f"stage 1, {release.part}", release.times, release.share, release.bound,
        )  # fmt: skip
        assert one.noise_std == Stage1Scales.from_scenario(given, plan.multiplier).std(release.part)
        assert one.added_by == "server"
    assert "stage 1 and in refinement, and the user group it reports" in accounted.covers
    sent_by_nobody = "bytes, times and devices of stage 1 in this report: measured by the simulation, sent by no device"
    assert sent_by_nobody in accounted.not_covered
    assert "pretraining data" not in " | ".join(accounted.not_covered)  # nothing is collected
    without = given.model_copy(update={"refinement": given.refinement.model_copy(update={"rounds": 0})})
    parts = [one.part for one in report_of(without, make_plan(without, asks_groups=True), []).accounted.releases]
    assert parts == [*(f"stage 1, {release.part}" for release in plan.stage1), "user group"]
