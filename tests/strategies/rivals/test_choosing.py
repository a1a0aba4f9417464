"""Whatever a rival chooses, it chooses without the test: other test items change its test figures and nothing else."""

import dataclasses

import numpy as np
import pytest

from fl_peel.training.workers import fixed_threads
from simulations.studies.compare.compare_rows import CEILINGS, RIVALS, modules_of
from strategies.rivals import compressed, server
from strategies.rivals.base import UNLIMITED, GroupStarts, compete
from strategies.rivals.compressed import Hashing, Pep, ProductQuantization
from strategies.rivals.rule import Rule, SearchSettings
from strategies.rivals.server import Ease
from tests.strategies.rivals.test_groups import other_test
from tests.strategies.rivals.test_rivals import requests

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
