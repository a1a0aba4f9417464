"""Attacks on plain arrays: each finds what is planted, none finds anything in noise; how scores become figures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.attacks import attack_names, load_attack
from fl_peel.attacks.base import (
    ATTACKS,
    Attack,
    DeviceView,
    StepView,
    auc_of,
    best_count_threshold,
    best_threshold,
    checked_scores,
    item_outcome,
    label_outcome,
    precision_recall_f1,
    squares,
)
from fl_peel.attacks.device_attacks import (
    AnsweringClass,
    InteractionMembership,
    ReportedClass,
    ReportedCounts,
    ReportedSignals,
    RequestedClass,
    RequestedGroup,
    Stage1Choice,
    Stage1Group,
    Stage1Rows,
    Stage1Vector,
    TouchedRows,
    UpdateSign,
    line,
)
from fl_peel.contracts import AttackContract, example_views
from fl_peel.errors import ScenarioError

SUCCEEDS = {
    **{InteractionMembership: 0.95, TouchedRows: 0.8, UpdateSign: 0.99, ReportedCounts: 1.0, ReportedSignals: 1.0},
    **{RequestedGroup: 0.99, RequestedClass: 0.99, ReportedClass: 0.99},
    AnsweringClass: 0.0,  # the examples have one round, in which everybody answers
    **{Stage1Rows: 1.0, Stage1Vector: 0.8, Stage1Choice: 0.8, Stage1Group: 1.0},
}
"""AUC on the planted leak."""


@pytest.fixture(params=SUCCEEDS, ids=lambda kind: kind.name)
def built_in(request):
    return request.param


class TestBuiltIn(AttackContract):
    @pytest.fixture(autouse=True)
    def one_of_them(self, built_in, monkeypatch):
        monkeypatch.setattr(type(self), "attack", built_in, raising=False)
        monkeypatch.setattr(type(self), "succeeds", SUCCEEDS[built_in])


def test_every_built_in_attack_is_under_contract():
    assert attack_names() == [type(load_attack(name)).name for name in attack_names()]
    assert {ATTACKS.get(name) for name in ATTACKS.shipped} <= SUCCEEDS.keys()


def test_who_answers_often_is_told():
    """Class 0 answers in one round, class 1 in two."""
    devices = example_views("planted", "device class", 1)
    often = [replace(one, view=replace(one.view, rounds=one.view.rounds * (1 + int(one.truth[1])))) for one in devices]
    attack = AnsweringClass()
    attack.learn(often[:50], 0)
    assert AttackContract().auc(attack, often[50:]) == 1


def test_a_vector_of_independent_rows_is_taken_apart_exactly():
    own = np.eye(6, dtype=np.float32)[:, ::-1].copy()
    mine = np.array([1, 4])
    steps = (
        StepView("vectors", {"own": own}, {}),
        StepView("moments", {}, {"first": own[mine].sum(axis=0, keepdims=True)}),
    )
    scores = Stage1Vector().scores(DeviceView(0, 6, (), steps), np.arange(6), 0)
    assert scores == pytest.approx(np.isin(np.arange(6), mine).astype(float), abs=1e-4)


def test_an_unknown_attack_is_refused_with_a_hint():
    with pytest.raises(ScenarioError, match="'membershp'; did you mean 'membership'"):
        load_attack("membershp")


def test_scores_that_are_no_scores_are_refused():
    class Silent(Attack):
        name, secret = "silent", "train items"

        def scores(self, view, candidates, seed):
            return np.full(len(candidates), np.nan)

    one = example_views("planted", "train items", 0)[0]
    with pytest.raises(ScenarioError, match=r"'silent'.*one finite number for each of 60"):
        checked_scores(Silent(), one.view, one.candidates, 0)


def test_the_line_of_an_update_has_the_minority_on_its_positive_side():
    """Rows are 3, -1, -1 times (0, 1): places 3, -1, -1 whatever sign the eigenvector has."""
    update = np.array([[0.0, 3.0], [0.0, -1.0], [0.0, -1.0]])
    assert line(update) == pytest.approx([3, -1, -1])
    assert line(-update[[0, 0, 1]]) == pytest.approx([-3, -3, 1])
    assert not line(np.zeros((3, 2))).any()


def test_auc_by_hand():
    """Members 3 and 1, others 2 and 1: of four pairs, 3>2, 3>1 are right, 1<2 wrong, 1=1 half: 2.5 / 4."""
    assert auc_of(np.array([3.0, 1, 2, 1]), np.array([True, True, False, False])) == 2.5 / 4
    assert auc_of(np.array([1.0]), np.array([True])) == 0.5


def test_thresholds_by_hand():
    """Sorted: 5 member, 4 member, 3 other, 2 member, 1 other. TPR - FPR after each: 1/3, 2/3, 1/6, 1/2, 0.

    F1 after each: 2/4, 4/5, 4/6, 6/7, 6/8: best after four, between 2 and 1.
    """
    scores, truth = np.array([5.0, 4, 3, 2, 1]), np.array([True, True, False, True, False])
    assert best_threshold(scores, truth) == 3.5
    assert best_count_threshold(scores, truth) == 1.5
    assert best_threshold(np.zeros(4), np.array([True, True, False, False])) == 0  # nobody is above
    assert precision_recall_f1(scores > 1.5, truth) == (3 / 4, 1.0, pytest.approx(6 / 7))


def test_outcome_of_items_by_hand():
    """Two of three members above 2, one of two others: 2/3 - 1/2. One device alone has no spread."""
    scores, truth = np.array([5.0, 4, 1, 3, 0]), np.array([True, True, True, False, False])
    outcome = item_outcome(scores, truth, np.zeros(5, np.int64), 2.0, 0)
    assert outcome.advantage == pytest.approx(2 / 3 - 1 / 2)
    assert outcome.low == outcome.high == pytest.approx(outcome.advantage)
    assert outcome.auc == pytest.approx(5 / 6)  # 5 and 4 beat both, 1 beats 0 alone: five pairs of six


def test_outcome_of_labels_by_hand():
    """Four devices, labels 0 0 1 1; called 0 1 1 1. Label 0: 1/2 - 0; label 1: 1 - 1/2. Mean 1/2."""
    truth = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
    scores = np.eye(2)[[0, 1, 1, 1]]
    assert label_outcome(scores, truth, 0).advantage == pytest.approx(0.5)
    assert label_outcome(np.zeros((4, 2)), truth, 0).advantage == 0  # says nothing
    assert label_outcome(np.eye(2)[[0, 0, 0, 0]], truth, 0).advantage == 0  # says the same of everybody
    assert label_outcome(truth.astype(float), truth, 0).advantage == 1


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 12))
def test_squares_are_balanced_whatever_the_devices_have(seed, num_devices, num_items):
    rng = np.random.default_rng(seed)
    has = rng.random((num_devices, num_items)) < 0.4
    usable = rng.random((num_devices, num_items)) < 0.8
    groups = rng.integers(0, 2, num_devices)
    result = squares(list(has), list(usable), groups, rng)
    for axis in (0, 1):  # every device and every item is as often a member as not
        balance: dict[int, int] = {}
        for triple in result:
            balance[triple[axis]] = balance.get(triple[axis], 0) + (1 if triple[2] else -1)
        assert not any(balance.values())
    members = [(u, i) for u, i, member in result if member]
    assert len(set(members)) == len(members)
    assert all(has[u, i] == member and usable[u, i] for u, i, member in result)


def test_squares_of_two_devices_by_hand():
    """Device 0 has items 0, 1, 2; device 1 has 2, 3: one square, of 0 or 1 with 3; item 2 tells nothing."""
    has = [np.array([True, True, True, False]), np.array([False, False, True, True])]
    everything = [np.ones(4, np.bool_)] * 2
    result = squares(has, everything, np.zeros(2, np.int64), np.random.default_rng(0))
    assert len(result) == 4
    assert {item for _, item, _ in result} in ({0, 3}, {1, 3})
    assert not squares(has, everything, np.array([0, 1]), np.random.default_rng(0))  # of two groups: no square
