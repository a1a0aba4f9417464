"""What rivals are tried on: planted devices and items, and tables that were trained on them."""

from dataclasses import replace

import pytest

from fl_peel.data.interactions import collected, split
from fl_peel.pretraining.central_training import pretrain
from strategies.rivals.base import Material
from tests.helpers.planted import planted_interactions
from tests.helpers.settings import PRETRAINING

CONFIG = replace(PRETRAINING, embedding_dim=8, num_layers=1, epochs=10, num_negatives=0, temperature=0.3, num_slices=2)


@pytest.fixture(scope="module")
def material():
    """120 devices in 2 taste groups, 60 items of which each group likes 30, popularity falling with the rank."""
    data = planted_interactions(3, 60, 30, 2, 12, noise=0.05)
    splits = split(data, seed=0, validation_share=0.2, test_share=0.25)
    given_items, has_data = collected(splits.train, seed=0, share=1.0, mode="users")
    pretrained = pretrain(given_items, splits.num_items, CONFIG, seed=0)
    return Material(given_items, has_data, splits, pretrained, CONFIG, 0)
