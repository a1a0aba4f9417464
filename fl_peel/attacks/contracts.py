"""The contract suite of attacks, to be subclassed in your own tests.

::

    from fl_peel import AttackContract
    from my_package import MyAttack

    class TestMyAttack(AttackContract):
        attack = MyAttack

pytest runs the inherited ``test_`` methods. They try the attack on :func:`example_views`: devices with a planted leak
of every secret, devices that send noise, and devices that send nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.attacks.base import (
    ITEM_SECRETS,
    Accomplice,
    Attack,
    DeviceView,
    FloatArray,
    IntArray,
    RoundView,
    Secret,
    StepView,
    checked_scores,
)
from fl_peel.attacks.scoring import auc_of
from fl_peel.kernels import FIXED_POINT
from fl_peel.training.settings import LocalTraining

Leak = Literal["planted", "noise", "nothing"]


def example_views(leak: Leak, secret: Secret, seed: int, num_devices: int = 100) -> list[Accomplice]:
    """Devices whose views hold their secret ("planted"), only noise, or no arrays at all.

    Two groups, two classes, 60 items of dimension 8. Planted: rows of the device's 10 train items move along its user
    embedding, those of 20 others a little against it; its 4 validation items have hits; its request is made of its
    group's 30 first blocks (20 for the second class). In stage 1 train items are counted, a vector is the sum of their
    rows, validation items win under most filters, and moments are of the device's group.
    """
    rng = np.random.default_rng(seed)
    num_items, dim = 60, 8
    accomplices = []
    for device in range(num_devices):
        group, kind = device % 2, device // 2 % 2
        shuffled = rng.permutation(num_items)
        train, validation, negatives = shuffled[:10], shuffled[10:14], shuffled[14:34]
        # the table knows the taste a little, as a pretrained one does
        user = rng.normal(size=dim)
        user /= np.linalg.norm(user)
        table = rng.normal(size=(num_items, dim)) / np.sqrt(dim)
        table[train] += user
        order = np.roll(np.arange(num_items), -30 * group)  # each group's own ranking
        update, hits, counts = np.zeros((num_items, dim)), np.zeros(num_items), np.zeros(num_items)
        if leak == "planted":
            update[train], update[negatives] = 0.2 * user, -0.05 * user
            hits[validation], counts[train] = 0.5, 1.0
        elif leak == "noise":
            update = rng.normal(size=(num_items, dim))
            hits, counts = rng.normal(size=num_items), rng.normal(size=num_items)
        size = 30 - 10 * kind if leak == "planted" else 30
        asked = order if leak == "planted" else rng.permutation(num_items)
        rows = np.flatnonzero(np.abs(update[order]).sum(axis=1) > 0)
        reply: dict[str, NDArray[Any]] = {
            "rows": rows.astype(np.int32),
            "sums": np.rint(update[order][rows] * FIXED_POINT).astype(np.int64),
            "row_examples": counts[order][rows],
            "holders": np.isin(order, asked[:size]).astype(np.int32),
            "hits": hits[order],
        }
        if leak == "nothing":
            reply = {}
        view = RoundView(
            1,
            order.astype(np.int64),
            table[order].astype(np.float32),
            np.arange(num_items, dtype=np.int32)[:, None],
            order.astype(np.int64),
            LocalTraining(),
            reply,
            {} if leak == "nothing" else {"budget": float(kind if leak == "planted" else rng.random())},
        )
        candidates, truth = {
            "train items": (np.arange(num_items), np.isin(np.arange(num_items), train)),
            "validation items": (np.arange(num_items), np.isin(np.arange(num_items), validation)),
            "user group": (np.arange(2), np.arange(2) == group),
            "device class": (np.arange(2), np.arange(2) == kind),
        }[secret]
        steps = () if leak == "nothing" else _example_steps(leak, rng, train, validation, group)
        accomplices.append(Accomplice(DeviceView(device, num_items, (view,), steps), candidates, truth))
    return accomplices


def _example_steps(
    leak: Leak, rng: np.random.Generator, train: IntArray, validation: IntArray, group: int, num_items: int = 60
) -> tuple[StepView, ...]:
    """What stage 1 shows of a device: see :func:`example_views`."""
    columns, filters = 40, 4
    own = (rng.normal(size=(num_items, columns)) / np.sqrt(columns)).astype(np.float32)
    items, norms, sizes = np.zeros(num_items), np.zeros(num_items), np.zeros(2)
    items[train], norms[train], sizes[group] = 1.0, 2.0, 1.0
    vector = own[train].sum(axis=0)
    directions = own.copy()
    directions[validation] += vector
    won = np.ones(filters)
    if leak == "noise":
        items, norms, sizes = rng.random(num_items), rng.random(num_items), rng.random(2)
        vector, won = rng.normal(size=columns), rng.random(filters)
    question = {
        "directions": directions,
        "values": np.ones(columns),
        "counts": np.ones(num_items, np.int64),
        "count_exponents": np.linspace(0.3, 0.5, filters),
        "value_exponents": np.zeros(filters),
        "drawn": np.arange(num_items),
        "place": np.array([6]),
        "item_exponent": np.array([0.5]),
    }
    first, per_group = np.zeros((2, columns)), np.zeros((2, num_items))
    first[group], per_group[group] = vector, items
    moments = {"sizes": sizes, "first": first, "items": per_group}
    return (
        StepView("counts", {}, {"items": items}),
        StepView("pass", {"place": np.zeros(0, np.int32)}, {"norms": norms}),
        StepView("choice", question, {"won": won, "answered": np.array([1])}),
        StepView("vectors", {"own": own}, {}),
        StepView("groups", {"centroids": own[:2]}, {"sizes": sizes, "sums": first}),
        StepView("moments", {}, moments),
    )


class AttackContract:
    """Contract suite of an attack: subclass it and set ``attack``.

    ``succeeds``: smallest AUC on the planted leak; set it to 0 for an attack on a leak that the examples do not have.
    """

    attack: ClassVar[type[Attack]]
    succeeds: ClassVar[float] = 0.8

    def known(self, leak: Leak, seed: int = 0) -> list[Accomplice]:
        """Return example devices."""
        return example_views(leak, type(self).attack.secret, seed)

    def taught(self, leak: Leak) -> Attack:
        """Return the attack after it learned from accomplices."""
        attack = type(self).attack()
        attack.learn(self.known(leak, 1), 0)
        return attack

    def auc(self, attack: Attack, devices: Sequence[Accomplice]) -> float:
        """Return the AUC over all candidates of all devices."""
        scores = [checked_scores(attack, one.view, one.candidates, 0) for one in devices]
        return auc_of(np.concatenate(scores), np.concatenate([one.truth for one in devices]))

    def test_it_says_what_it_is_after(self) -> None:
        """The attack has a name for tables, and a secret that the audit knows."""
        assert type(self).attack.name, "an attack needs a name"
        assert type(self).attack.secret in (*ITEM_SECRETS, "user group", "device class"), "an unknown secret"

    def test_one_finite_score_per_candidate(self) -> None:
        """Scores are finite, one per candidate, also for few candidates, before learning, and where the protocol
        reveals nothing."""
        leaks: tuple[Leak, ...] = ("planted", "noise", "nothing")
        for leak in leaks:
            for attack in (type(self).attack(), self.taught(leak)):
                for one in self.known(leak)[:4]:
                    checked_scores(attack, one.view, one.candidates, 0)
                    checked_scores(attack, one.view, one.candidates[:1], 0)

    def test_a_planted_leak_is_found(self) -> None:
        """The attack finds a planted leak; otherwise finding nothing in a protected run proves nothing."""
        auc = self.auc(self.taught("planted"), self.known("planted"))
        assert auc >= type(self).succeeds, f"AUC {auc:.3f} on a planted leak is below {type(self).succeeds}"

    def test_nothing_is_found_in_nothing(self) -> None:
        """Where nothing is revealed, all candidates of a device have the same score."""
        attack = self.taught("nothing")
        for one in self.known("nothing"):
            scores = checked_scores(attack, one.view, one.candidates, 0)
            assert np.ptp(scores) == 0, "scores differ though nothing was seen: the attack knows what it should not"

    def test_noise_is_noise(self) -> None:
        """On noise the attack is at chance, within the precision of 100 devices: AUC between 0.3 and 0.7."""
        auc = self.auc(self.taught("noise"), self.known("noise"))
        assert 0.3 < auc < 0.7, f"AUC {auc:.3f} on pure noise"

    def test_the_same_question_has_the_same_answer(self) -> None:
        """Scores depend neither on earlier calls nor on the state of global randomness, and views are not changed."""
        attack, devices = self.taught("planted"), self.known("planted")
        first: FloatArray = checked_scores(attack, devices[0].view, devices[0].candidates, 0)
        before = copy.deepcopy(dict(devices[0].view.rounds[0].reply))
        checked_scores(attack, devices[1].view, devices[1].candidates, 0)
        np.random.seed(5)  # noqa: NPY002
        assert np.array_equal(checked_scores(attack, devices[0].view, devices[0].candidates, 0), first)
        for name, values in before.items():
            assert np.array_equal(devices[0].view.rounds[0].reply[name], values), f"the reply's {name} was changed"
