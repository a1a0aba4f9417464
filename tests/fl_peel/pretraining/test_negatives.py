"""Negatives of pretraining: who is drawn, how often, and what each stands for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_peel.errors import ScenarioError
from fl_peel.pretraining.central_training import pretrain
from fl_peel.pretraining.losses import CandidateSampler, chances, systematic
from fl_peel.scenario.scenario import Scenario
from strategies.rivals.training import BatchLoss
from tests.fl_peel.pretraining.test_pretraining import SMALL, some_rows
from tests.helpers.settings import PRETRAINING

POPULARITY = np.array([0, 3, 8, 24, 99, 0, 15, 3], np.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_chances_by_hand() -> None:
    assert chances(np.array([1.0, 2.0, 3.0, 4.0]), 1).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # 10 of 16 would be 1.25: always drawn; then 4 of 6 would be 4/3; then 1 is left for the two others
    assert chances(np.array([1.0, 1.0, 4.0, 10.0]), 3).tolist() == pytest.approx([0.5, 0.5, 1, 1])


def test_a_systematic_sample_by_hand() -> None:
    # running sums 0.5, 1.25, 1.5, 2.5, 3; from 0.3 on: 0.8, 1.55, 1.8, 2.8, 3.3 pass 1 at place 1, 2 at 3, 3 at 4
    four = np.array([0.5, 0.75, 0.25, 1.0, 0.5])
    assert systematic(four, 0.3).tolist() == [1, 3, 4]
    assert systematic(four, 0.5).tolist() == [0, 2, 3]
    assert systematic(four, 0.0).tolist() == [1, 3, 4]
    # a tenth ten times is a little less than one
    assert systematic(np.full(10, 0.1), 0.0).tolist() == [9]


def test_all_items_take_part_where_as_many_are_to_be_drawn() -> None:
    for count in (0, 8, 9):
        config = replace(PRETRAINING, num_negatives=count, negatives_exponent=0.75 if count else 0.0)
        assert CandidateSampler.from_config(config, POPULARITY).draw(generator(1)) is None


def test_items_are_drawn_alike_without_an_exponent() -> None:
    sampler = CandidateSampler.from_config(replace(PRETRAINING, num_negatives=2), POPULARITY)
    drawn = sampler.draw(generator(5))
    assert drawn.items.tolist() == torch.randperm(8, generator=generator(5))[:2].tolist()
    assert drawn.log_stands_for.tolist() == pytest.approx([math.log(4)] * 2)


def test_popular_items_are_drawn_more_often_and_stand_for_less() -> None:
    """Weights 1, 2, 3, 5, 10, 1, 4, 2 of 28: of three items, each comes in 3/28 of its weight, item 4 always."""
    sampler = CandidateSampler.from_config(replace(PRETRAINING, num_negatives=3, negatives_exponent=0.5), POPULARITY)
    expected = np.array([1, 2, 3, 5, 0, 1, 4, 2]) * 2 / 18
    expected[4] = 1.0
    counts, trials, source = np.zeros(8), 4000, generator(3)
    for _ in range(trials):
        drawn = sampler.draw(source)
        items = drawn.items.numpy()
        assert len(set(items.tolist())) == 3
        assert drawn.log_stands_for.numpy() == pytest.approx(-np.log(expected[items]), abs=1e-6)
        counts[items] += 1
    deviations = np.sqrt(expected * (1 - expected) / trials)
    assert (np.abs(counts / trials - expected) <= 4 * deviations).all()


def test_what_is_drawn_by_popularity_varies_less_about_the_sum_over_all() -> None:
    """A sum in which popular items count most, as in a softmax: the mean of both estimates is the sum."""
    rng = np.random.default_rng(4)
    popularity = rng.pareto(1.0, 500) * 10
    terms = torch.from_numpy((popularity + 1) ** 0.9 * rng.uniform(0.5, 1.5, 500))
    whole, spread = float(terms.sum()), {}
    for exponent in (0.0, 0.75):
        sampler = CandidateSampler.from_config(
            replace(PRETRAINING, num_negatives=50, negatives_exponent=exponent), popularity
        )
        draws = [sampler.draw(generator(seed)) for seed in range(400)]
        result = np.array([float((terms[drawn.items] * drawn.log_stands_for.exp()).sum()) for drawn in draws])
        assert abs(result.mean() - whole) < 4 * result.std() / math.sqrt(len(result))
        spread[exponent] = result.std() / whole
    assert spread[0.75] < 0.2 * spread[0.0]


def test_tables_and_rivals_are_trained_against_what_the_setting_draws() -> None:
    rows = some_rows()
    config = replace(SMALL, negatives_exponent=1.0)
    even, skewed = (pretrain(rows, 30, each, seed=3) for each in (SMALL, config))
    assert not np.array_equal(even.items, skewed.items)
    assert (pretrain(rows, 30, config, seed=3).items == skewed.items).all()
    # a rival's loss, of the same draw
    users, items = torch.from_numpy(even.users), torch.from_numpy(even.items)
    (batch,) = BatchLoss(rows, 30, replace(config, batch_size=40)).batches(generator(1))
    losses = [
        float(BatchLoss(rows, 30, each)(users[batch.users], items, batch, generator(7))) for each in (SMALL, config)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"loss": "bpr"}, "0.5 does nothing under bpr, which draws evenly; leave it out"),
        ({"num_negatives": 0}, "0.5 does nothing under num_negatives 0, which takes all items; leave it out"),
    ],
)
def test_an_exponent_that_nothing_is_drawn_by_is_refused(given: dict, output: str) -> None:
    with pytest.raises(ScenarioError, match=f"^pretraining.negatives_exponent: {output}$"):
        pretrain(some_rows(), 30, replace(SMALL, negatives_exponent=0.5, **given), seed=1)
    with pytest.raises(ValueError, match=f"pretraining\n.*negatives_exponent: {output}"):
        Scenario.model_validate(
            {"name": "t", "data": {"path": "x.csv"}, "pretraining": {**given, "negatives_exponent": 0.5}}
        )
