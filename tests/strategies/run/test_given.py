"""Stage 1 of collected data knows nothing that was not given: other interactions may be anything."""

import dataclasses

import numpy as np
import pytest

from fl_peel.data.interactions import Splits, UserItems
from fl_peel.device_storage import device_splits
from fl_peel.scenario.scenario import Scenario
from strategies.run.prepare import prepare
from strategies.run.stage1_outcome import given_data
from tests.helpers.runs import connected
from tests.strategies.rounds.test_clear_steps import SPECTRAL, changed

HALF = {
    "users": {"mode": "users", "share": 0.5},
    "oldest": {"mode": "oldest", "share": 0.5},
}

BY_POPULARITY = {"item_groups": "interest-popularity"}


def drawn_anew(items: UserItems, change: np.ndarray, num_items: int) -> UserItems:
    """With other items where ``change`` (N,) says so."""
    other = np.random.default_rng(0).integers(0, num_items, len(items.items))
    return UserItems(items.indptr, np.where(change, other, items.items).astype(np.int32))


def others_changed(scenario: Scenario, splits: Splits) -> Splits:
    """The same but for what is not given: of train items those that nobody gave, and all others."""
    given, _ = given_data(scenario, splits.train)
    keys = [part.users() * splits.num_items + part.items for part in (splits.train, given)]
    held_back = ~np.isin(*keys)
    assert 0.3 < held_back.mean() < 0.7
    rest = {
        name: drawn_anew(part, np.ones(len(part.items), bool), splits.num_items)
        for name in ("validation", "test")
        if (part := getattr(splits, name)).num_interactions
    }
    return dataclasses.replace(splits, train=drawn_anew(splits.train, held_back, splits.num_items), **rest)


def prepared(scenario: Scenario, folder, monkeypatch, *, change: bool):
    """Stage 1; change: whether the server's copy of the data is another one where nothing was given."""
    run = connected(scenario, folder)
    with monkeypatch.context() as patched:
        if change:
            patched.setattr(
                "strategies.run.prepare.device_splits",
                lambda content, *where: others_changed(content, device_splits(content, *where)),
            )
        return prepare(run)


@pytest.mark.parametrize("mode", HALF)
def test_pretrained_tables_neighbours_and_blocks_are_of_what_was_given(tiny_scenario, tmp_path, monkeypatch, mode):
    scenario = changed(tiny_scenario, pretraining={"collected": HALF[mode]}, blocks=BY_POPULARITY)
    one, two = (prepared(scenario, tmp_path / str(change), monkeypatch, change=change) for change in (False, True))
    assert (one.pretrained.items == two.pretrained.items).all()
    assert (one.pretrained.users == two.pretrained.users)[one.has_data].all()
    assert (one.groups.assignment == two.groups.assignment)[one.has_data].all()
    assert (one.layout.item_group == two.layout.item_group).all()
    same_states(one.states(scenario), two.states(scenario))


@pytest.mark.parametrize("mode", HALF)
def test_spectral_tables_are_of_what_was_given(tiny_scenario, tmp_path, monkeypatch, mode):
    keys = SPECTRAL | {"source": "collected", "collected": HALF[mode], "value_exponent": 0.2}
    scenario = changed(tiny_scenario, pretraining=keys, blocks=BY_POPULARITY)
    one, two = (prepared(scenario, tmp_path / str(change), monkeypatch, change=change) for change in (False, True))
    assert (one.start.own == two.start.own).all()
    assert (one.start.counts == two.start.counts).all()
    assert (one.layout.item_group == two.layout.item_group).all()
    same_states(one.states(scenario), two.states(scenario))


def same_states(one, two):
    """To the last bit: tables, and the statistics that order blocks."""
    for mine, theirs in zip(one, two, strict=True):
        assert (mine.table == theirs.table).all()
        for field in dataclasses.fields(mine.statistics):
            left, right = (getattr(state.statistics, field.name) for state in (mine, theirs))
            assert np.array_equal(left, right), field.name
