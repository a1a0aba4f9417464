"""Attacks on what a device asks for: its user group from block numbers, its device class from how much it takes.

No user attributes come with the data, so the attribute to infer is the device class: a phone's make and memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from fl_peel.attacks.base import Accomplice, Attack, Secret
from fl_peel.attacks.views import DeviceView, FloatArray, IntArray, RoundView
from fl_peel.randomness import seed_for


def requested(view: RoundView) -> IntArray | None:
    """Return the numbers of the blocks that the device requests; None where its request does not name them."""
    held = view.held
    return None if held is None or len(held) != len(view.blocks) else view.blocks[held]


class RequestedGroup(Attack):
    """Inference of the user group: the one whose accomplices request the most similar blocks.

    The group's own number, which the server needs to answer at all, is not used: this is what an observer of the block
    numbers alone learns.
    """

    name: ClassVar[str] = "requested-group"
    secret: ClassVar[Secret] = "user group"

    def __init__(self) -> None:
        self._rates: dict[int, FloatArray] = {}

    def learn(self, known: Sequence[Accomplice], seed: int) -> None:
        """Learn how often accomplices of each group request each block."""
        size = 1 + max((int(v.blocks.max(initial=0)) for one in known for v in one.view.rounds), default=0)
        sums: dict[int, list[FloatArray]] = {}
        for one in known:
            group = int(one.candidates[one.truth][0])
            for view in one.view.rounds:
                blocks = requested(view)
                if blocks is not None and len(blocks):
                    asked = np.zeros(size)
                    asked[blocks] = 1
                    sums.setdefault(group, []).append(asked)
        self._rates = {group: np.mean(rows, axis=0) for group, rows in sums.items()}

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return the cosine similarity to each group's rates, averaged over rounds; 0 where requests name no blocks."""
        total = np.zeros(len(candidates))
        for one in view.rounds:
            blocks = requested(one)
            if blocks is None or not len(blocks):
                continue
            for i, group in enumerate(candidates.tolist()):
                rates = self._rates.get(group)
                if rates is not None:
                    likeness = rates[blocks[blocks < len(rates)]].sum()
                    total[i] += likeness / (np.linalg.norm(rates) * np.sqrt(len(blocks)) * len(view.rounds))
        return total


class _Trajectory(Attack):
    """Base class of attacks by a random forest on figures of every round, trained on accomplices."""

    secret: ClassVar[Secret] = "device class"
    trees: ClassVar[int] = 100

    def __init__(self) -> None:
        self._forest: RandomForestClassifier | None = None

    def features(self, view: RoundView) -> list[float]:
        """Return the features of one round; an empty list where the protocol shows nothing."""
        raise NotImplementedError

    def _row(self, view: DeviceView) -> FloatArray:
        """Return mean, standard deviation, minimum and maximum of each feature over rounds, (F,)."""
        rounds = [features for one in view.rounds if (features := self.features(one))]
        if not rounds:
            return np.zeros(0)
        values = np.array(rounds, np.float64)
        return np.concatenate([values.mean(axis=0), values.std(axis=0), values.min(axis=0), values.max(axis=0)])

    def learn(self, known: Sequence[Accomplice], seed: int) -> None:
        """Train the forest."""
        pairs = [(self._row(one.view), int(one.candidates[one.truth][0])) for one in known]
        pairs = [(row, label) for row, label in pairs if len(row)]
        self._forest = None
        if len({label for _, label in pairs}) > 1:
            self._forest = RandomForestClassifier(
                self.trees, min_samples_leaf=3, class_weight="balanced", random_state=seed_for(seed, "forest") % 2**32
            ).fit(np.stack([row for row, _ in pairs]), [label for _, label in pairs])

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return the share of the trees that vote for each class; 0 where there is nothing to see."""
        row = self._row(view)
        if self._forest is None or len(row) != self._forest.n_features_in_:
            return np.zeros(len(candidates))
        votes = dict(zip(self._forest.classes_.tolist(), self._forest.predict_proba(row[None])[0], strict=True))
        return np.array([float(votes.get(label, 0.0)) for label in candidates.tolist()])


class RequestedClass(_Trajectory):
    """Inference of the device class from the number of requested blocks, round after round: the memory budget's
    trajectory.
    """

    name: ClassVar[str] = "requested-class"

    def features(self, view: RoundView) -> list[float]:
        """Return how many blocks were requested, and how many rows came back."""
        blocks = requested(view)
        return [] if blocks is None else [float(len(blocks)), float(view.returned.sum())]


class ReportedClass(_Trajectory):
    """Inference of the device class from figures sent with the update: bytes, times and counts by device class."""

    name: ClassVar[str] = "reported-class"

    def features(self, view: RoundView) -> list[float]:
        """Return every figure, in the order of their names."""
        return [float(view.figures[name]) for name in sorted(view.figures)]


class AnsweringClass(_Trajectory):
    """Inference of the device class from the number of rounds in which the device answers: some classes are available
    more often.
    """

    name: ClassVar[str] = "answering-class"

    def _row(self, view: DeviceView) -> FloatArray:
        """Return the number of rounds in which the device sent something, (1,); empty where it never did."""
        answers = sum(bool(one.reply) and one.figures.get("vector.sent", 1.0) > 0 for one in view.rounds)
        return np.array([answers] if answers else [], np.float64)
