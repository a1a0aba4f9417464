"""Rivals made for every user group: of its table and members alone, and as good as PEEL's own ranking says."""

import dataclasses

import numpy as np
import pytest

from fl_peel.data.interactions import UserItems
from fl_peel.training.workers import fixed_threads
from simulations.studies.compare import CEILINGS, RIVALS, modules_of
from strategies.rivals import compressed, server
from strategies.rivals.base import (
    SPLITS,
    TOP_N,
    UNLIMITED,
    GroupStarts,
    ListOption,
    Request,
    Rival,
    compete,
    lists_of,
    quality,
    sample_of_groups,
    top_lists,
)
from strategies.rivals.compressed import Hashing, Pep, ProductQuantization
from strategies.rivals.groups import PerGroup, group_material
from strategies.rivals.rule import Rule, SearchSettings
from strategies.rivals.server import Ease, FullTable
from strategies.rivals.table_rivals import MagnitudePruning, TruncatedSvd, best_items
from tests.strategies.rivals.test_rivals import requests


@pytest.fixture
def grouped(material):
    """Three groups that all start with the pretrained table."""
    groups = np.arange(120) % 3
    return dataclasses.replace(material, starts=GroupStarts(groups, lambda group: material.pretrained.items.copy()))


@pytest.mark.parametrize("rival", [MagnitudePruning(), TruncatedSvd(closest=("plain",))])
def test_groups_that_start_with_the_global_table_are_served_as_everybody(material, grouped, rival):
    wanted = requests(0.3, 0.9, precisions=("int8", "int4"))
    everybody, by_group = compete(rival, material, wanted), compete(PerGroup("groups", (rival,)), grouped, wanted)
    for one, other in zip(everybody, by_group, strict=True):
        for key in ("validation", "test", "stored_bytes_max", "trials"):
            assert one[key] == other[key], key
        assert one["stored_bytes_max"] > 0


def test_each_group_is_served_from_its_own_table(grouped):
    """Group 1's table is turned round: its devices fare as with that table, the others as before."""
    items = grouped.pretrained.items
    turned = dataclasses.replace(
        grouped, starts=GroupStarts(grouped.starts.assignment, lambda group: -items if group == 1 else items)
    )
    (option,) = PerGroup("groups", (FullTable(),)).options(turned, [UNLIMITED])
    (plain,) = FullTable().options(grouped, [UNLIMITED])
    (other,) = FullTable().options(grouped.starting_with(-items), [UNLIMITED])
    mine = grouped.starts.assignment == 1
    for split in SPLITS:
        np.testing.assert_array_equal(option.lists[split][~mine], top_lists(plain, grouped, split)[~mine])
        np.testing.assert_array_equal(option.lists[split][mine], top_lists(other, grouped, split)[mine])


def test_a_group_sees_its_members_alone(grouped):
    members = grouped.starts.members()
    assert sorted(np.concatenate(list(members.values())).tolist()) == list(range(120))
    inside = group_material(grouped, 2, members[2])
    assert inside.splits.num_users == inside.given.num_users == len(inside.users) == 40
    assert inside.given.num_interactions == grouped.given.select(members[2]).num_interactions
    assert inside.starts is None
    np.testing.assert_array_equal(inside.users, grouped.users[members[2]])


def test_a_group_has_the_exposure_that_the_server_has_of_it(grouped):
    counted = group_material(grouped, 2, grouped.starts.members()[2]).shown
    starts = dataclasses.replace(grouped.starts, shown=lambda group: np.arange(60.0) * group)
    told = dataclasses.replace(grouped, starts=starts)
    inside = group_material(told, 2, starts.members()[2])
    np.testing.assert_array_equal(inside.shown, np.arange(60.0) * 2)
    assert best_items(inside, "exposure").tolist() == list(range(60))[::-1]
    assert best_items(inside, "exposure").tolist() != np.argsort(-counted, kind="stable").tolist()


def test_the_lists_of_an_option_are_what_is_measured(material):
    (option,) = MagnitudePruning().options(material, [Request("int8", 0.5, 800)])
    listed = ListOption(option.request, {s: lists_of(option, material, s) for s in SPLITS}, option.stored, 0.0)
    for split in SPLITS:
        assert quality(listed, material, split) == quality(option, material, split)
        some = np.arange(0, 120, 7)
        assert quality(listed, material, split, some) == quality(option, material, split, some)


def test_settings_are_chosen_for_all_groups_and_counted(grouped):
    rival = PerGroup("groups", ProductQuantization(dims=(1.0,), parts=(4, 8), bits=(2, 4)).settings())
    (request,) = requests(0.4, precisions=("int8",))
    (row,) = compete(rival, grouped, [request])
    singly = [compete(PerGroup("one", (one,)), grouped, [request])[0] for one in rival.settings]
    assert row["trials"] == sum(one["trials"] for one in singly) > 1
    best = max(singly, key=lambda one: one["validation"]["recall@20"])
    assert (row["validation"], row["test"]) == (best["validation"], best["test"])


def test_a_setting_is_tried_on_whole_groups_of_enough_devices():
    members = {group: np.arange(group * 400, group * 400 + 400) for group in range(10)}
    sample = sample_of_groups(members, 0, "sample", 1000)
    assert len(sample) == 3  # 800 devices are below 1,000
    assert sample_of_groups(members, 1, "sample", 1000) != sample
    assert sorted(sample_of_groups({4: np.arange(5), 2: np.arange(3)}, 0, "sample", 1000)) == [2, 4]


def test_groups_that_are_not_known_are_a_clear_error(material):
    with pytest.raises(ValueError, match="groups: the material has no starts of user groups"):
        list(PerGroup("groups", (MagnitudePruning(),)).options(material, requests(0.5)))


class Sees(Rival):
    """Lists of the items that devices will want on one split, and of nothing on the other."""

    name = "sees"

    def __init__(self, split):
        self.split = split

    def options(self, material, requests):
        for request in requests:
            lists = {}
            for split in SPLITS:
                wanted = material.splits.test if split == "test" else material.splits.validation
                lists[split] = np.full((wanted.num_users, TOP_N), -1, np.int32)
                for user in range(wanted.num_users if split == self.split else 0):
                    lists[split][user, : len(wanted.row(user)[:TOP_N])] = wanted.row(user)[:TOP_N]
            stored = np.full(material.splits.num_users, 10, np.int64)
            yield ListOption(request, lists, stored, 0.0, f"sees {self.split}")


class Either(Rival):
    name = "either"

    def options(self, material, requests):
        for split in ("test", "validation", "test"):
            yield from Sees(split).options(material, requests)


def test_an_option_that_only_the_test_likes_is_not_chosen(grouped):
    """The canary against choosing on the test, for options of everybody and for settings of groups."""
    settings = (Sees("test"), Sees("validation"), Sees("test"))
    for rival in (Either(), PerGroup("groups", settings)):
        (row,) = compete(rival, grouped, [UNLIMITED])
        assert row["note"].startswith("sees validation")
        assert row["validation"]["recall@20"] == 1.0
        assert row["test"]["recall@20"] == 0.0
        assert row["trials"] == 3


def other_test(material):
    """The same devices with other test items: those that are least popular, which no method would guess."""
    test, seen = material.splits.test, material.seen
    least = np.argsort(material.splits.train.popularity(60), kind="stable")
    rows = [[i for i in least if i not in set(seen.row(u).tolist())][: len(test.row(u))] for u in range(120)]
    items = UserItems(
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]), np.concatenate(rows).astype(np.int32)
    )
    return dataclasses.replace(material, splits=dataclasses.replace(material.splits, test=items))


QUICK = {
    "pep": Pep(retraining=(4.0,), steps=5),
    "rule": Rule(search=SearchSettings(population=8, generations=2, ranked=2)),
    "hashing": Hashing(steps=5),
    "product-quantization": ProductQuantization(parts=(4, 8), bits=(2, 4)),
}


@pytest.fixture(scope="module")
def both(material):
    groups = np.arange(120) % 3
    tables = [material.pretrained.items * np.float32(1 + 0.1 * g) + np.float32(0.05 * g) for g in range(3)]
    one = dataclasses.replace(material, starts=GroupStarts(groups, lambda group: tables[group]))
    return one, other_test(one)


@pytest.mark.slow
@pytest.mark.parametrize("name", [rival.name for rival, _ in RIVALS] + [rival.name for rival in CEILINGS])
def test_other_test_items_change_no_choice(both, name):
    rivals = {rival.name: rival for rival in [*(rival for rival, _ in RIVALS), *CEILINGS]}
    rival = QUICK.get(name, rivals[name])
    wanted = [UNLIMITED] if rival in CEILINGS else requests(0.1, 0.3, 0.7, precisions=("int8",))
    with fixed_threads(1):
        events, otherwise = (compete(rival, one, wanted) for one in both)
    differs = {"test", "replicates", "seconds", "evaluation_seconds"}
    for row, other in zip(events, otherwise, strict=True):
        assert {k: v for k, v in row.items() if k not in differs} == {
            k: v for k, v in other.items() if k not in differs
        }
    assert any(row["test"] != other["test"] for row, other in zip(events, otherwise, strict=True))


@pytest.mark.parametrize(("module", "rival"), [(compressed, Hashing(steps=5)), (server, Ease(most_items=40))])
def test_what_is_settled_inside_a_rival_is_settled_on_validation(both, module, rival, monkeypatch):
    splits = []
    original = module.quality

    def spying(option, material, split):
        splits.append(split)
        return original(option, material, split)

    monkeypatch.setattr(module, "quality", spying)
    list(rival.options(both[0], requests(0.5, precisions=("int8",))))
    assert len(splits) > 1
    assert set(splits) == {"validation"}


def test_a_stage_enters_the_modules_of_what_is_made_for_groups():
    modules = {rival.name: modules_of(rival) for rival, _ in RIVALS}
    assert modules["product-quantization-groups"] == ("strategies.rivals.groups", "strategies.rivals.compressed")
    assert modules["rule"] == ("strategies.rivals.rule",)
