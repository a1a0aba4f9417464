"""The controller: where it starts, its outer gradient against the formula, and what it learns."""

import copy
import tracemalloc
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from fl_peel.scenario.settings import FeatureName
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.weighting.controller import Controller
from tests.helpers.settings import CONTROLLER

FEATURES = get_args(FeatureName)
STEP = replace(CONTROLLER, steps=1)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads on tensors this small wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def statistics(seed: int, num_blocks: int = 30, signals: bool = True) -> BlockStatistics:
    rng = np.random.default_rng(seed)
    columns = (rng.exponential(size=num_blocks).astype(np.float32) for _ in range(5))
    group = BlockStatistics(*columns)
    if signals:
        hits, exposure = rng.exponential(size=num_blocks), rng.integers(1, 9, num_blocks).astype(float)
        unobserved = rng.random(num_blocks) < 0.3
        hits[unobserved] = exposure[unobserved] = 0
        group.add_signals(hits, exposure, 0.5)
    return group


def standardized(controller: Controller, group: BlockStatistics) -> np.ndarray:
    return (group.features(controller.config.features) - controller.mean.numpy()) / controller.std.numpy()


def gradients(controller: Controller) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy().copy() for name, p in controller.named_parameters()}


# ---------------------------------------------------------------- features


def test_features_by_hand():
    one = [np.array([value], np.float32) for value in (0.999, 0.099, 0.00999, 0.7, 2.0)]
    group = BlockStatistics(popularity=one[1], shown=one[0], global_popularity=one[2], loss=one[3], energy=one[4])
    features = group.features(("exposure", "popularity", "global-popularity", "loss", "energy"))
    expected = [[np.log(1.0), np.log(0.1), np.log(0.01), 0.7, np.log(2.000001)]]
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert (group.features(("loss", "exposure"))[0] == features[0, [3, 0]]).all()


def test_signals_fade():
    group = statistics(0, 2, signals=False)
    group.add_signals(np.array([4.0, 0.0]), np.array([8.0, 2.0]), memory=0.5)
    group.add_signals(np.array([1.0, 1.0]), np.array([2.0, 2.0]), memory=0.5)
    assert group.hits.tolist() == [3, 1]  # 4 / 2 + 1, 0 / 2 + 1
    assert group.exposure.tolist() == [6, 3]


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize("hidden", [(), (16, 16), (3,)])
@pytest.mark.parametrize("first", ["exposure", "popularity"])
def test_weights_start_proportional_to_the_first_feature(first, hidden):
    rest = tuple(name for name in FEATURES if name != first)
    config = replace(CONTROLLER, features=(first, *rest), hidden=hidden)
    groups = [statistics(seed, signals=False) for seed in range(3)]
    controller = Controller.for_statistics(groups, config, seed=0)
    for group in groups:
        rate = (group.shown if first == "exposure" else group.popularity).astype(np.float64) + 1e-3
        # logit = log(rate) + constant, so the softmax is the rate's share
        np.testing.assert_allclose(controller.weights(group), rate / rate.sum(), rtol=1e-4)
        assert (np.argsort(controller.weights(group)) == np.argsort(rate)).all()


def test_statistics_of_item_groups_are_those_of_their_slices_together():
    blocks = statistics(0, 6)
    blocks.exposure, blocks.hits = np.array([4.0, 3, 1, 5, 2, 0]), np.array([1.0, 0.5, 0, 2, 0, 0])
    groups = blocks.of_item_groups(3)
    np.testing.assert_allclose(groups.shown, blocks.shown.reshape(2, 3).sum(axis=1))
    np.testing.assert_allclose(groups.energy, blocks.energy.reshape(2, 3).sum(axis=1))
    assert groups.hits.tolist() == [1.5, 2], "a hit is shared among the slices that scored it"
    assert groups.exposure.tolist() == [4, 5], "a device that keeps several slices of an item is exposed to it once"
    assert groups.popularity.tolist() == blocks.popularity.reshape(2, 3).max(axis=1).tolist()
    assert blocks.of_item_groups(1) is blocks


@pytest.mark.parametrize("names", [("exposure",), ("exposure", "loss"), FEATURES])
def test_inputs_are_standardized_over_all_groups_to_the_last_bit_and_memory_holds_them_once(names):
    groups = [statistics(seed, 40_000 + seed) for seed in range(5)]
    config = replace(CONTROLLER, features=names)
    whole = np.concatenate([group.features(names) for group in groups])
    tracemalloc.start()
    controller = Controller.for_statistics(groups, config, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert controller.mean.numpy().tobytes() == whole.mean(axis=0).tobytes()
    assert controller.std.numpy().tobytes() == whole.std(axis=0).tobytes()
    assert peak < 1.9 * whole.nbytes + 64 * 1024


@pytest.mark.parametrize("seed", range(3))
def test_weights_sum_to_one(seed):
    group = statistics(seed, 5000)
    controller = Controller.for_statistics([group], CONTROLLER, seed=seed)
    for _ in range(2):
        weights = controller.weights(group)
        assert weights.dtype == np.float32
        assert (weights > 0).all()
        assert weights.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
        controller.outer_step([group])


def test_a_feature_that_does_not_vary_yet_does_no_harm():
    group = statistics(0)
    group.loss = np.zeros_like(group.loss)
    controller = Controller.for_statistics([group], CONTROLLER, seed=0)
    assert np.isfinite(controller.outer_step([group]))
    group.loss = np.full_like(group.loss, 0.7)
    assert np.isfinite(controller.weights(group)).all()


# ---------------------------------------------------------------- the outer gradient


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_by_a_logit_is_expected_minus_observed_share(seed):
    """Through the linear start, whose gradient is the sum over blocks of feature x gradient by the logit."""
    groups = [statistics(seed), statistics(seed + 100)]
    controller = Controller.for_statistics(groups, STEP, seed=seed)
    start = controller.start.detach().numpy().astype(np.float64)
    total = sum(group.hits.sum() for group in groups)
    expected_gradient, expected_loss = np.zeros(5), 0.0
    for group in groups:
        features = standardized(controller, group).astype(np.float64)  # (B, F)
        exposed_rate = group.exposure * np.exp(features @ start)
        expected_share = exposed_rate / exposed_rate.sum()
        by_logit = expected_share * group.hits.sum() - group.hits  # 0 where nobody kept the block
        expected_gradient += features.T @ by_logit / total
        seen = group.hits > 0
        expected_loss -= (group.hits[seen] * np.log(expected_share[seen])).sum() / total
    loss = controller.outer_step(groups)
    np.testing.assert_allclose(gradients(controller)["start"], expected_gradient, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_the_gradient_is_that_of_the_loss_by_finite_differences():
    """For every parameter, network included, after a few steps have moved it off its start."""
    groups = [statistics(1), statistics(2)]
    config = replace(CONTROLLER, steps=5, hidden=(4,), learning_rate=0.1)
    moved = Controller.for_statistics(groups, config, seed=0)
    moved.outer_step(groups)
    moved.config = STEP

    def loss_with(name: str, index: int, change: float) -> float:
        probe = copy.deepcopy(moved)
        with torch.no_grad():
            dict(probe.named_parameters())[name].view(-1)[index] += change
        return probe.outer_step(groups)

    probe = copy.deepcopy(moved)
    probe.outer_step(groups)
    for name, gradient in gradients(probe).items():
        for index in range(min(gradient.size, 3)):
            slope = (loss_with(name, index, 1e-2) - loss_with(name, index, -1e-2)) / 2e-2
            assert gradient.reshape(-1)[index] == pytest.approx(slope, abs=2e-3), (name, index)


def test_blocks_that_nobody_kept_have_no_say():
    """Their features do not enter the gradient; their own weight moves through the shared parameters alone."""
    group = statistics(3)
    unobserved = group.exposure == 0
    assert 0 < unobserved.sum() < 30
    other = copy.deepcopy(group)
    other.shown = np.where(unobserved, 7.0, group.shown).astype(np.float32)
    other.energy = np.where(unobserved, 1e-3, group.energy).astype(np.float32)
    controllers = [Controller.for_statistics([group], STEP, seed=0) for _ in range(2)]
    before = controllers[0].weights(group)
    losses = [c.outer_step([g]) for c, g in zip(controllers, (group, other), strict=True)]
    assert losses[0] == losses[1]
    mine, theirs = map(gradients, controllers)
    for name in mine:
        assert (mine[name] == theirs[name]).all()
    assert (controllers[0].weights(group)[unobserved] != before[unobserved]).any()


@pytest.mark.parametrize("hits", [0.0, None])
def test_without_hits_nothing_changes(hits):
    group = statistics(0, signals=False)
    if hits is not None:
        group.add_signals(np.zeros(30), np.ones(30), 0.5)
    controller = Controller.for_statistics([group], CONTROLLER, seed=0)
    before = controller.weights(group)
    assert np.isnan(controller.outer_step([group]))
    assert (controller.weights(group) == before).all()


def test_groups_count_by_their_hits():
    """A group with all of the hits decides; one without any is as if it were not there."""
    groups = [statistics(0), statistics(1, signals=False)]
    both = Controller.for_statistics(groups, STEP, seed=0)
    alone = Controller.for_statistics(groups, STEP, seed=0)
    assert both.outer_step(groups) == alone.outer_step(groups[:1])
    assert (both.weights(groups[1]) == alone.weights(groups[1])).all()


# ---------------------------------------------------------------- what it learns


def planted(feature: str, seed: int = 0, num_blocks: int = 40) -> tuple[BlockStatistics, np.ndarray]:
    """Hits come from the ten blocks in which ``feature`` is large; the order to start from says nothing of them."""
    rng = np.random.default_rng(seed)
    group = statistics(seed, num_blocks, signals=False)
    good = rng.permutation(num_blocks)[:10]
    values = np.full(num_blocks, 0.1, np.float32)
    values[good] = 2.0
    values[good[0]] = 4.0  # the best of all
    setattr(group, feature.replace("-", "_"), values)
    exposure = rng.integers(5, 50, num_blocks).astype(float)
    rate = np.where(np.isin(np.arange(num_blocks), good), 1.0, 0.05)
    rate[good[0]] = 2.0
    group.add_signals(exposure * rate, exposure, 0.5)
    return group, good


@pytest.mark.parametrize("feature", ["popularity", "global-popularity", "loss", "energy"])
def test_a_planted_signal_is_learned(feature):
    group, good = planted(feature)
    controller = Controller.for_statistics([group], CONTROLLER, seed=0)
    assert set(np.argsort(-controller.weights(group))[:10].tolist()) != set(good.tolist())
    losses = [controller.outer_step([group]) for _ in range(15)]  # 300 steps of Adam
    order = np.argsort(-controller.weights(group))
    assert set(order[:10].tolist()) == set(good.tolist())
    assert order[0] == good[0]
    assert losses[-1] < losses[0]


def test_what_is_learned_in_one_group_serves_another():
    """The network is shared: a group without any signal ranks by what the other has shown to matter."""
    teacher, _ = planted("energy", 0)
    learner, good = planted("energy", 1)
    learner.hits[:] = learner.exposure[:] = 0
    controller = Controller.for_statistics([teacher, learner], CONTROLLER, seed=0)
    for _ in range(15):
        controller.outer_step([teacher, learner])
    top = np.argsort(-controller.weights(learner))[:10]
    assert len(set(top.tolist()) & set(good.tolist())) >= 8


def test_exposure_is_not_mistaken_for_worth():
    """Two kinds of blocks with the same hits, one kept by ten times as many devices: the other is worth ten times."""
    group = statistics(0, 20, signals=False)
    group.shown = np.ones(20, np.float32)
    group.energy = np.repeat(np.array([1, 3], np.float32), 10)
    group.add_signals(np.ones(20), np.repeat([100.0, 10.0], 10), 0.5)
    config = replace(CONTROLLER, features=("exposure", "energy"), steps=400, learning_rate=0.05, weight_decay=0)
    controller = Controller.for_statistics([group], config, seed=0)
    controller.outer_step([group])
    weights = controller.weights(group)
    np.testing.assert_allclose(weights[10:] / weights[:10], 10, rtol=0.05)


# ---------------------------------------------------------------- determinism


def test_the_seed_decides():
    def learned(seed: int) -> np.ndarray:
        group = statistics(0)
        controller = Controller.for_statistics([group], CONTROLLER, seed=seed)
        controller.outer_step([group])
        return controller.weights(group)

    torch.manual_seed(1)
    first = learned(0)
    torch.manual_seed(2)  # global randomness is not used
    assert (learned(0) == first).all()
    assert (learned(1) != first).any()


def test_a_step_changes_no_statistics():
    group = statistics(0)
    before = copy.deepcopy(group)
    controller = Controller.for_statistics([group], CONTROLLER, seed=0)
    controller.outer_step([group])
    controller.weights(group)
    for name in vars(group):
        assert (getattr(group, name) == getattr(before, name)).all()


def test_weights_do_not_depend_on_the_number_of_threads():
    groups = [statistics(seed, 40_000) for seed in range(2)]
    controller = Controller.for_statistics(groups, CONTROLLER, seed=3)
    controller.outer_step(groups)
    weights = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weights.append(controller.weights(groups[0]).tobytes())
        assert torch.get_num_threads() == threads
    assert len({*weights}) == 1
