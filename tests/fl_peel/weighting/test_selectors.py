"""Selectors: what each ranks by, exact ties, plug-ins and their mistakes."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given

from fl_peel import plugins
from fl_peel.blocks.ranked_blocks import ranking
from fl_peel.contracts import SelectorContract, example_statistics
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.scenario.settings import SELECTORS
from fl_peel.weighting import selectors
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.weighting.controller import Controller
from fl_peel.weighting.selectors import block_weights, of_slices
from tests.helpers.blocks import seeds
from tests.helpers.examples import examples
from tests.helpers.settings import CONTROLLER


class TestPopularity(SelectorContract):
    selector = staticmethod(selectors.popularity)


class TestShown(SelectorContract):
    selector = staticmethod(selectors.exposure)


class TestGlobalPopularity(SelectorContract):
    selector = staticmethod(selectors.global_popularity)


class TestEnergy(SelectorContract):
    selector = staticmethod(selectors.energy)


class TestRandomBlocks(SelectorContract):
    selector = staticmethod(selectors.random_blocks)


def four_blocks(**columns) -> BlockStatistics:
    names = ("popularity", "shown", "global_popularity", "loss", "energy")
    filled = {name: np.array(columns.get(name, [0.0] * 4), np.float32) for name in names}
    return BlockStatistics(**filled)


def order_of(name: str, statistics: BlockStatistics, seed: int = 0, user_group: int = 0) -> list[int]:
    controller = Controller.for_statistics([statistics], CONTROLLER, seed=0)
    weights = block_weights(name, statistics, controller, seed=seed, user_group=user_group)
    assert weights.dtype == np.float64
    return ranking(weights).tolist()


@pytest.mark.parametrize("name", ["popularity", "exposure", "global-popularity"])
def test_rates_first_then_energy_then_number(name):
    rates = {"shown" if name == "exposure" else name.replace("-", "_"): [0.2, 0.5, 0.2, 0.2]}
    assert order_of(name, four_blocks(**rates, energy=[1, 0, 3, 1])) == [1, 2, 0, 3]


def test_energy():
    assert order_of("energy", four_blocks(energy=[1, 4, 3, 4])) == [1, 3, 2, 0]


def test_ties_at_the_top_are_broken_too():
    """The slices of the most popular item: equal rates, energies that differ by 10%."""
    statistics = four_blocks(popularity=[1, 1, 1, 1], energy=[0.81, 0.9, 0.73, 1.0])
    assert order_of("popularity", statistics) == [3, 1, 0, 2]


def test_energy_never_overtakes_a_rate():
    """Two neighbouring float32 numbers, at every scale: the smaller with all of the energy stays behind."""
    for rate in (1.0, 0.3, 1e-4, 1e-30, 0.0):
        low = np.float32(rate)
        high = np.nextafter(low, np.float32(2))
        for top in (high, np.float32(1e6)):
            statistics = four_blocks(popularity=[low, high, top, 0], energy=[9, 0, 0, 0])
            order = order_of("popularity", statistics)
            assert order.index(1) < order.index(0)


@examples(50)
@given(seed=seeds)
def test_order_is_that_of_rate_then_energy(seed):
    statistics = example_statistics(seed, 60)
    statistics.energy = np.random.default_rng(seed).integers(0, 5, 60).astype(np.float32)
    expected = sorted(range(60), key=lambda b: (-statistics.shown[b], -statistics.energy[b], b))
    assert order_of("exposure", statistics) == expected


def test_random_blocks_differ_by_seed_and_group_alone():
    statistics = example_statistics(0, 50)
    orders = {tuple(order_of("random", statistics, seed, group)) for seed in range(3) for group in range(3)}
    assert len(orders) == 9
    assert order_of("random", example_statistics(1, 50), 2, 2) in [list(order) for order in orders]


def test_the_controller_is_a_selector():
    statistics = example_statistics(0, 50)
    controller = Controller.for_statistics([statistics], CONTROLLER, seed=0)
    weights = block_weights("controller", statistics, controller, seed=0, user_group=0)
    assert (weights == controller.weights(statistics)).all()


# ---------------------------------------------------------------- names and plug-ins


def test_names():
    assert SELECTORS.names()[:6] == ("controller", "popularity", "exposure", "global-popularity", "energy", "random")
    for name in SELECTORS.names():
        assert SELECTORS.check(name) == name


def test_the_names_that_scenarios_know_are_those_of_the_functions():
    assert {name: SELECTORS.get(name) for name in SELECTORS.shipped} == selectors._BUILT_IN


def test_an_unknown_name_is_one_clear_line():
    with pytest.raises(FieldError, match=r"unknown selector 'popularty'; did you mean 'popularity'\?"):
        SELECTORS.check("popularty")
    with pytest.raises(ScenarioError, match="unknown selector 'xyz'; known: controller, popularity") as caught:
        order_of("xyz", four_blocks())
    assert "\n" not in str(caught.value)


def newest_first(statistics, seed, user_group):
    return np.arange(len(statistics.energy), dtype=np.float32)


def one_too_many(statistics, seed, user_group):
    return np.ones(len(statistics.energy) + 1)


def a_column(statistics, seed, user_group):
    return np.ones((len(statistics.energy), 1))


def not_numbers(statistics, seed, user_group):
    return ["high"] * len(statistics.energy)


def nothing(statistics, seed, user_group):
    return None


def ragged(statistics, seed, user_group):
    return [[1.0], [1.0, 2.0]]


def undefined(statistics, seed, user_group):
    return np.full(len(statistics.energy), np.nan)


@pytest.fixture
def installed(monkeypatch):
    """Install a function of this file as the plug-in ``mine``."""

    def install(function):
        point = EntryPoint("mine", f"{__name__}:{function.__name__}", "fl_peel.selectors")

        monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "fl_peel.selectors" else [])

    return install


def test_a_plug_in_ranks(installed):
    installed(newest_first)
    assert "mine" in SELECTORS.names()
    assert order_of("mine", four_blocks()) == [3, 2, 1, 0]


@pytest.mark.parametrize("function", [one_too_many, a_column, not_numbers, nothing, ragged, undefined])
def test_a_plug_in_that_answers_nonsense_is_one_clear_line(installed, function):
    installed(function)
    with pytest.raises(
        ScenarioError, match=r"selector 'mine' returned .* must return one .*each of 4 blocks"
    ) as caught:
        order_of("mine", four_blocks())
    assert "\n" not in str(caught.value)


def test_what_is_not_known_is_shared_until_a_group_learns():
    unknown = BlockStatistics.unknown(3)
    one, other = (BlockStatistics(*np.ones((3, 3), np.float32), energy=np.ones(3, np.float32), **unknown) for _ in "ab")
    assert one.hits is other.hits
    assert (one.loss.dtype, one.hits.dtype, one.exposure.dtype) == (np.float32, np.float64, np.float64)
    for _ in range(2):
        one.add_signals(np.array([1.0, 0, 2]), np.array([4.0, 4, 4]), 0.5)
    assert (one.hits.tolist(), one.exposure.tolist()) == ([1.5, 0, 3], [6, 6, 6])
    assert other.loss.tolist() == other.hits.tolist() == other.exposure.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        other.loss[0] = 1


def test_a_slice_weighs_its_part_times_the_exposure_that_has_its_item_groups_rank():
    """Four items of two slices, the second of which comes first; nobody is shown the last two, the third of which comes
    before the fourth."""
    shown = np.array([6.0, 2, 1, 3, 0, 0, 0, 0])
    weights = of_slices(np.array([2.0, 3, 1, 0.5]), shown)
    np.testing.assert_allclose(weights[:4], [4 * 0.75, 4 * 0.25, 8 * 0.25, 8 * 0.75], rtol=1e-6)
    assert ranking(weights).tolist() == [3, 0, 2, 1, 4, 5, 6, 7]
    assert ranking(of_slices(np.array([2.0, 3, 0.5, 1]), shown)).tolist() == [3, 0, 2, 1, 6, 7, 4, 5]
    assert of_slices(weights, shown) is weights, "items of one slice are weighed as they are"
