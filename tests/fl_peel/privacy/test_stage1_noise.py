"""Stage 1 under a mechanism, by hand: what is released how often at which share, and noise with that deviation."""

import dataclasses
import math

import numpy as np
import pytest

from fl_peel.pretraining.contribution import CHOICE_BOUND, BoundedContribution, OpenContribution
from fl_peel.pretraining.spectral_steps import PASS_SCALE, UNIT_SCALE, Units
from fl_peel.privacy.accounting import Schedule, event_of, privacy_cost
from fl_peel.privacy.mechanisms import CentralGaussian, LocalLaplace
from fl_peel.privacy.noise_plan import make_plan
from fl_peel.privacy.report import report_of
from fl_peel.privacy.sources import SeededNoise
from fl_peel.privacy.stage1_noise import SHARES, Stage1Scales, make_contribution, stage1_releases
from fl_peel.scenario.scenario import Scenario

GAUSSIAN = {"mechanism": "central-gaussian", "noise_multiplier": 3.0, "clipping": {"kind": "flat"}, "counts_norm": 0.7}
LAPLACE = GAUSSIAN | {"mechanism": "local-laplace", "rows": "all-sent"}
BY_DEVICES = {"model": "spectral", "source": "devices", "collected": {"share": 0}, "passes": 3, "group_rounds": 4}
CHOOSING = {"count_exponent": None, "value_exponent": None}
FIXED = {"count_exponent": 0.4, "value_exponent": 0.3}


def scenario(privacy=GAUSSIAN, filters=CHOOSING, *, groups=4, **pretraining) -> Scenario:
    content = {"name": "stage1", "data": {"path": "pairs.csv"}, "privacy": privacy, "refinement": {"rounds": 2}}
    content |= {"pretraining": BY_DEVICES | filters | pretraining, "user_groups": {"count": groups}}
    return Scenario.model_validate(content)


def times(given):
    return {release.part: release.times for release in stage1_releases(given)}


def test_how_often_a_device_is_in_which_part():
    often = {"pass": 3, "choice": 1, "group sizes": 4, "group vectors": 4}
    assert times(scenario()) == {part: often.get(part, 1) for part in SHARES}
    assert times(scenario(filters=FIXED)).keys() == SHARES.keys() - {"choice"}
    assert times(scenario(groups=1)).keys() == SHARES.keys() - {"group sizes", "group vectors"}
    assert times(scenario(groups=2)).keys() == SHARES.keys()


@pytest.mark.parametrize("given", [scenario(), scenario(filters=FIXED), scenario(groups=1)], ids=range(3))
def test_shares_of_all_times_together_are_that_of_stage_1(given):
    releases = stage1_releases(given)
    whole = sum(release.times * release.share for release in releases)
    assert whole == pytest.approx(given.privacy.shares.stage1)
    ratios = {release.times * release.share / SHARES[release.part] for release in releases}
    assert max(ratios) == pytest.approx(min(ratios))  # parts keep their proportions


def test_bounds_of_a_device():
    bounds = {release.part: release.bound for release in stage1_releases(scenario())}
    special = {"choice": CHOICE_BOUND, "counts": 0.7, "moment items": 0.7}
    assert bounds == {part: special.get(part, 1.0) for part in SHARES}


def test_nothing_is_released_where_nothing_is_noised_or_devices_have_no_part():
    assert stage1_releases(scenario({})) == ()
    collected = Scenario.model_validate({"name": "x", "data": {"path": "pairs.csv"}, "privacy": GAUSSIAN})
    assert stage1_releases(collected) == ()
    assert make_plan(collected).stage1 == ()


def test_what_devices_say_is_bounded_under_a_mechanism_alone():
    units = Units(2.0, 4.0, 8.0)
    output = make_contribution(scenario(), 9, units)
    assert output == BoundedContribution(9, scenario().pretraining.item_exponent, 0.7, False)
    assert make_contribution(scenario(LAPLACE), 9, units) == BoundedContribution(
        9, scenario().pretraining.item_exponent, 0.7, True
    )
    plain = scenario({}, user_exponent=0.25, item_exponent=0.75)
    assert make_contribution(plain, 9, units) == OpenContribution(9, 0.25, 0.75, units)


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
MANY = 4000


def drawn(noise):
    """All of a step's noise, by part, in ones."""
    sums = noise.groups(MANY, 2)
    moments = noise.moments(1, 60, MANY)
    return {
        "counts": noise.counts(MANY) / UNIT_SCALE,
        "pass": noise.passed(MANY, range(2, 4)) / PASS_SCALE,
        "choice": noise.choice(MANY) / UNIT_SCALE,
        "group sizes": sums.sizes / UNIT_SCALE,
        "group vectors": sums.sums / UNIT_SCALE,
        "moment vectors": moments.first / UNIT_SCALE,
        "moment products": moments.second / UNIT_SCALE**2,
        "moment items": moments.items / UNIT_SCALE,
    }


@pytest.mark.parametrize("shared", [False, True])
def test_every_part_has_noise_of_its_deviation(shared):
    noise = SCALES.shared(16, "here") if shared else SCALES.whole("here")
    result = drawn(noise)
    for part, values in result.items():
        std = SCALES.std(part) / (4 if shared else 1)  # 16 shares reach it
        if part == "moment products":  # symmetric: the mean of two draws off the diagonal, one on it
            assert (values == values.T).all()
            off = values[~np.eye(len(values), dtype=bool)]
            assert off.std() == pytest.approx(std / math.sqrt(2), rel=0.06)
            assert np.diag(values).std() == pytest.approx(std, rel=0.4)
        else:
            assert values.std() == pytest.approx(std, rel=0.06 if values.size > 1000 else 0.4), part
            assert abs(values.mean()) < 6 * std / math.sqrt(values.size), part
    sizes = [noise.moments(group, 2, 2).size / UNIT_SCALE for group in range(300)]
    assert np.std(sizes) == pytest.approx(SCALES.std("moment sizes") / (4 if shared else 1), rel=0.2)


def test_shapes_are_those_of_what_is_said():
    noise = SCALES.whole()
    assert noise.counts(5).shape == (5,)
    assert noise.passed(5, range(3)).shape == (5, 3)
    assert noise.choice(4).shape == (4,)
    sums, moments = noise.groups(3, 2), noise.moments(0, 2, 5)
    assert (sums.sizes.shape, sums.sums.shape) == ((3,), (3, 2))
    assert (moments.first.shape, moments.second.shape, moments.items.shape) == ((2,), (2, 2), (5,))
    assert {part.dtype for part in (noise.counts(5), noise.passed(5, range(3)), sums.sums, moments.second)} == {
        np.dtype(np.int64)
    }


@pytest.mark.parametrize("make", [Stage1Scales.whole, lambda scales, *who: scales.shared(9, *who)])
def test_noise_is_by_seed_device_part_and_piece(make):
    other_seed = dataclasses.replace(SCALES, source=SeededNoise(1))
    here, again, there, reseeded = (
        make(scales, *who)
        for scales, who in ((SCALES, (7, 1)), (SCALES, (7, 1)), (SCALES, (8, 1)), (other_seed, (7, 1)))
    )
    columns = here.passed(50, range(3))
    assert (again.passed(50, range(3)) == columns).all()
    assert (here.passed(50, range(1, 3)) == columns[:, 1:]).all()  # columns of several messages
    assert (columns[:, 0] != columns[:, 1]).any()
    for other in (there, reseeded):
        assert (other.passed(50, range(3)) != columns).any()
        assert (other.counts(50) != here.counts(50)).any()
    assert (here.moments(0, 3, 5).items != here.moments(1, 3, 5).items).any()
    streams = [here.counts(2000), here.choice(2000), here.groups(2000, 1).sizes, here.moments(0, 1, 2000).items]
    close = np.abs(np.corrcoef(np.array(streams, float))) - np.eye(4)
    assert close.max() < 0.15  # parts are noised apart


# ---------------------------------------------------------------- what it costs and what is told


@pytest.mark.slow
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
