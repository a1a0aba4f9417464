"""Stage 1 under a mechanism: noise as accounted for in every sum, on any nodes, in the clear and masked."""

import dataclasses
import math

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.data.interactions import UserItems
from fl_peel.device_storage import device_splits
from fl_peel.errors import ScenarioError
from fl_peel.pretraining.stage1 import GroupPlan, PooledSums, run_stage1
from fl_peel.privacy.noise_plan import Stage1Scales, contribution_bounds, make_plan, noise_devices_of
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import StepTerms
from fl_peel.steps.user_groups import GroupsStep
from strategies.rounds.step_channels import NoisedSteps
from tests.helpers.runs import served
from tests.strategies.rounds.test_clear_steps import AT_HOME, SPECTRAL, changed, fleet, prepared
from tests.strategies.rounds.test_masked_steps import prepared as any_prepared
from tests.strategies.rounds.test_masked_steps import same, secure


@pytest.fixture
def scenario(tiny_scenario, tmp_path) -> Scenario:
    """Nothing is collected, everything is noised, hardly."""
    return private(changed(tiny_scenario, fleet=fleet(tmp_path, AT_HOME, "home.yaml")))


def private(scenario: Scenario, **privacy) -> Scenario:
    keys = {
        "mechanism": "central-gaussian",
        "noise_multiplier": 0.02,
        "group_epsilon": 9.0,
        "clipping": {"kind": "flat"},
    }
    free = {"passes": 2, "count_exponent": None, "value_exponent": None}
    return changed(scenario, pretraining=SPECTRAL | free, refinement={"rounds": 0}, privacy=keys | privacy)


LOCAL = {"mechanism": "local-gaussian", "rows": "all-sent"}


def pooled(scenario: Scenario, folder) -> PooledSums:
    splits = device_splits(scenario, "", str(folder))
    terms = StepTerms.from_scenario(scenario, splits.num_items, 40, contribution_bounds(scenario))
    return PooledSums(splits.train, terms, splits.validation)


def start_of(scenario: Scenario, sums):
    config, groups = scenario.pretraining.spectral(), scenario.user_groups
    count, least = groups.count, groups.min_size
    return run_stage1(sums, config, GroupPlan(8, count, least, scenario.seed))


@pytest.mark.slow
def test_no_counter_goes_with_a_masked_noised_vector(scenario, tmp_path):
    result, grid = any_prepared(secure(private(scenario)), tmp_path / "run")
    assert all(record.counts.classes.devices.sum() == 40 for record in result.steps[:3])
    sizes = {
        record.array_records["arrays"]["sum.wide"].shape
        for kind, record in grid.crossed
        if kind == f"reply to {wire.SECURE_SUMS}"
    }
    assert (59 + 1,) in sizes, "counts: a word for each item and the check"


def quiet(*_):
    """Draws no noise at all."""
    return lambda part, shape, piece: np.zeros(shape, np.int64)


def in_ones(part, sums):
    """Numbers of a noised part, in ones; of products the diagonal, which has all of the noise."""
    values = sums[part.field] / part.unit
    if part.field != "second":
        return values
    columns = math.isqrt(2 * values.shape[1])
    return values[:, np.cumsum(np.arange(1, columns + 1)) - 1]


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["central", "local", "shares"])
def test_every_part_of_every_step_is_noised_as_accounted_for(scenario, tmp_path, monkeypatch, mechanism):
    """What the server gets, less the same without noise, has the accounted deviation; of shares, that of the fewest
    devices that may be summed, and of 40 devices more.
    """
    noised = private(scenario, noise_multiplier=3.0, **(LOCAL if mechanism == "local" else {}))
    if mechanism == "shares":
        noised = secure(noised, masked=False)
    plan, scales = make_plan(noised), Stage1Scales.from_scenario(noised, 3.0)
    heard, more = {}, {}
    asks = NoisedSteps.ask

    def listening(self, step, sent, opened=None):
        sums = step.whole(self.terms, asks(self, step, sent, opened))
        if step.noised:
            record = self.channel.records[-1]
            devices = int(record.counts.classes.devices.sum())
            shares = noise_devices_of(noised, record.announced) if mechanism == "shares" else 1
            times = 1.0 if mechanism == "central" else devices / shares
            with monkeypatch.context() as quietly:
                for name in ("whole", "shared"):
                    quietly.setattr(Stage1Scales, name, quiet)
                clear = step.whole(self.terms, self.channel.ask(step, sent))
            for part in step.noised:
                heard.setdefault(part.name, []).append(in_ones(part, sums) - in_ones(part, clear))
                more[part.name] = times
                assert self.std(part.name) == pytest.approx(scales.std(part.name) * math.sqrt(times))
        yield (0, step.num_pieces), sums

    monkeypatch.setattr(NoisedSteps, "ask", listening)
    any_prepared(noised, tmp_path / mechanism)
    assert set(heard) == {release.part for release in plan.stage1}
    for release in plan.stage1:
        each = heard[release.part]
        assert len(each) == release.times
        assert all(one.any() for one in each)
        values = np.concatenate([one.ravel() for one in each])
        error = 4.5 / math.sqrt(2 * len(values))
        std = scales.std(release.part) * math.sqrt(more[release.part])
        assert values.std() / std == pytest.approx(1, abs=error), release.part


def test_stage_1_is_never_amplified(scenario):
    coins = {"rounds": 2, "sampling": "poisson", "cohort_share": 0.1}
    plan = make_plan(changed(private(scenario, noise_multiplier=3.0), refinement=coins))
    assert plan.schedule.sampling == pytest.approx(0.1)
    alone = make_plan(private(scenario, noise_multiplier=3.0))
    assert plan.stage1_epsilon == pytest.approx(alone.stage1_epsilon)
    assert plan.cost.epsilon > alone.cost.epsilon


def test_nothing_is_asked_once_more_than_accounted_for(scenario, tmp_path):
    plan = make_plan(scenario)
    sums = NoisedSteps(pooled(scenario, tmp_path / "pooled"), scenario, plan)
    start = start_of(scenario, sums)
    assert sums.taken == {release.part: release.times for release in plan.stage1}
    with pytest.raises(AssertionError, match="group sizes: asked more often than is accounted for"):
        GroupsStep.ask(sums, start.centroids)


def test_small_user_groups_are_dissolved_without_asking_again(scenario, tmp_path):
    many = changed(scenario, user_groups={"count": 6, "min_size": 15})
    start = start_of(many, NoisedSteps(pooled(many, tmp_path / "pooled"), many, make_plan(many)))
    assert 1 <= len(start.groups) <= 2


def test_one_user_group_costs_nothing_and_needs_no_answer(scenario, tmp_path):
    one = changed(private(scenario, group_epsilon=None, noise_multiplier=0.05), user_groups={"count": 1})
    result, _ = served(one, tmp_path / "run")
    assert not [part for part in result.privacy.accounted.releases if "group" in part.part]
    assert "groups" not in [step.step for step in result.stage1.steps]


def test_hardly_noised_tables_rank_as_well_as_those_in_the_clear(scenario, tmp_path):
    result, _ = served(scenario, tmp_path / "run")
    assert result.full_table.start.recall > 0.65
    assert result.stage1.epsilon == pytest.approx(result.privacy.epsilon - 9.0)


def test_dense_messages_have_a_word_for_whatever_anybody_might_say(scenario, tmp_path):
    result, _ = served(private(scenario, **LOCAL), tmp_path / "run")
    steps = {step.step: step for step in result.stage1.steps}
    width = min(12 + 32, int((prepared(private(scenario, **LOCAL), tmp_path / "two")[0].start.counts > 0).sum()))
    assert steps["counts"].upload_bytes == 40 * 8 * 59
    assert steps["pass"].upload_bytes == 40 * 8 * 59 * (width + 12)
    assert steps["pass"].download_bytes == 40 * ((2 * 59 + 1) * (width + 12) + 2 * 4 * 59)
    assert steps["groups"].upload_bytes == 40 * 8 * 2
    assert steps["vectors"].upload_bytes == 0


BAD = [
    (
        {"privacy": {"noise_multiplier": None, "target_epsilon": 0.5, "group_epsilon": None}},
        "privacy.group_epsilon: dev",
    ),
    ({"pretraining": {"source": "collected", "collected": {"share": 1.0}}}, "pretraining.source: collected lets"),
    ({"data": {"refit": True}}, "data.refit runs both stages twice"),
]


@pytest.mark.parametrize(("keys", "start"), BAD)
def test_what_cannot_be_kept_is_refused_in_one_line(scenario, tmp_path, keys, start):
    with pytest.raises((ScenarioError, ValueError), match=start) as caught:
        make_plan(changed(scenario, **keys), asks_groups=True)
    assert str(caught.value)


ALONE = UserItems(np.array([0, 7]), np.arange(40, 47, dtype=np.int32))
"""A canary: a device whose items nobody else's resemble."""


class Observer:
    """Of all that stage 1 releases: knows everybody else's part, and what the canary's would be; adds up the log of the
    likelihood ratio. Gaussian noise.
    """

    def __init__(self, sums: NoisedSteps, others: PooledSums, scales: Stage1Scales) -> None:
        self.sums, self.others, self.scales, self.evidence = sums, others, scales, 0.0
        self.terms, self.std = sums.terms, sums.std
        self.canary = PooledSums(ALONE, others.terms, ALONE)

    def ask(self, step, sent, opened=None):
        each = [step.whole(self.terms, sums.ask(step, sent)) for sums in (self.sums, self.others, self.canary)]
        for part in step.noised:
            whole, others, own = (sums[part.field] / part.unit for sums in each)
            left, std = whole - others, self.scales.std(part.name)
            if part.field == "second":  # noise off the diagonal has half the variance: numbers count twice there
                columns = math.isqrt(2 * own.shape[1])
                twice = np.full(own.shape[1], math.sqrt(2))
                twice[np.cumsum(np.arange(1, columns + 1)) - 1] = 1
                left, own = left * twice, own * twice
            self.evidence += float((left * own).sum() - (own * own).sum() / 2) / std**2
        yield (0, step.num_pieces), each[0]


def evidence(scenario, others, plan, trials, present):
    """Of each trial (N,). others: everybody but the canary."""
    everybody = others
    if present:
        rows, wanted = with_canary(others.rows), with_canary(others.validation)
        everybody = dataclasses.replace(others, rows=rows, validation=wanted)
    result = []
    for trial in range(trials):
        run = scenario.model_copy(update={"seed": 1 + 2 * trial + present})
        sums = [dataclasses.replace(one) for one in (everybody, others)]
        observer = Observer(
            NoisedSteps(sums[0], run, plan), sums[1], Stage1Scales.from_scenario(scenario, plan.multiplier)
        )
        start_of(run, observer)
        result.append(observer.evidence)
    return np.array(result)


def with_canary(rows: UserItems) -> UserItems:
    indptr = np.concatenate([rows.indptr, rows.indptr[-1:] + ALONE.indptr[1:]])
    return UserItems(indptr, np.concatenate([rows.items, ALONE.items]))


@pytest.mark.slow
def test_a_canary_in_stage_1_shows_no_more_than_is_accounted_for(scenario, tmp_path, monkeypatch):
    """A likelihood-ratio test has the statistics of one Gaussian release: d'. With half of the noise that is accounted
    for it is above what the honest run can show.
    """
    run = private(scenario, noise_multiplier=None, target_epsilon=12.0, group_epsilon=0.1)
    plan = make_plan(run, asks_groups=True)
    scales = Stage1Scales.from_scenario(run, plan.multiplier)
    accounted = math.sqrt(sum(one.times * (one.bound / scales.std(one.part)) ** 2 for one in plan.stage1))

    others = pooled(run, tmp_path / "pooled")

    def apart(trials):
        without, present = (evidence(run, others, plan, trials, there) for there in (False, True))
        return (present.mean() - without.mean()) / math.sqrt((without.var() + present.var()) / 2)

    assert 0.4 * accounted < apart(24) < 1.25 * accounted
    whole = Stage1Scales.scale
    monkeypatch.setattr(
        NoisedSteps,
        "_scales",
        property(lambda self: Halved(**vars(Stage1Scales.from_scenario(self.scenario, self.plan.multiplier)))),
    )
    assert Halved(**vars(scales)).scale("pass") == whole(scales, "pass") / 2
    assert apart(12) > 1.25 * accounted


class Halved(Stage1Scales):
    """Draws half of the noise."""

    def scale(self, part: str) -> float:
        return super().scale(part) / 2


class VoidSums(PooledSums):
    """Whose sum of some step, so many of them in, is void: zeros."""

    step, left = "", 0

    def ask(self, step, sent, opened=None):
        void = step.name == self.step and not self.left
        self.left -= step.name == self.step
        for part, sums in super().ask(step, sent, opened):
            yield part, {name: np.zeros_like(one) for name, one in sums.items()} if void else sums


def without(scenario, folder, step, left=0):
    """The start of stage 1 without a step."""
    sums = pooled(scenario, folder)
    void = VoidSums(sums.rows, sums.terms, sums.validation)
    void.step, void.left = step, left
    return start_of(scenario, void)


FIXED = {"count_exponent": 0.4, "value_exponent": 0.2}


def test_a_last_pass_that_is_void_is_as_one_that_was_never_asked(scenario, tmp_path):
    whole = changed(scenario, pretraining=FIXED)
    void, fewer = without(whole, tmp_path / "run", "pass", 1), changed(whole, pretraining={"passes": 1})
    wanted = start_of(fewer, pooled(fewer, tmp_path / "run"))
    assert same(type("Start", (), {"start": void}), type("Start", (), {"start": wanted}))


@pytest.mark.parametrize("step", ["counts", "pass", "choice", "groups", "moments"])
def test_a_void_step_leaves_what_was_known_before_it(scenario, tmp_path, step):
    start = without(scenario, tmp_path / "run", step)
    for group in start.groups:
        assert np.isfinite(group.table).all()
        assert group.table.any(axis=0).all()
        assert np.isfinite(group.users).all()
    if step == "counts":
        assert (start.counts == 1).all()
    if step == "moments":
        assert np.array_equal(start.groups[0].table, start.groups[1].table)
        assert sum(group.items for group in start.groups) == pytest.approx(start.counts)
