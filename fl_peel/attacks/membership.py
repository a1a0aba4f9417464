"""Interaction-level membership inference: which items did the device train on?

After Yuan, Yang, Nguyen, Cui, He, Yin, "Interaction-level Membership Inference Attack against Federated Recommender
Systems", WWW 2023 (arXiv 2301.10964). The server guesses labels for the item rows of a device's update, trains a shadow
model on the guess, and compares the shadow's item rows with the device's: where they are close, the guess was right.
Those guesses are kept, the others are drawn anew, and so on.

What is particular here: the shadow starts from the table that the server sent and does one pass of plain steps, as
devices do; its user embedding is fitted to the guess (weighted least squares on the frozen table, as a device that
joins alone fits its own, :func:`fl_peel.grouping.clusters.fit_user_embeddings`). Only the direction of the shadow's
rows is compared, since their length depends on numbers that the server does not know. How many of a device's rows are
positives, the attacker learns from accomplices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl_peel.attacks.base import Accomplice, Attack, Secret
from fl_peel.attacks.row_attacks import norms, scaled
from fl_peel.attacks.views import DeviceView, FloatArray, IntArray, RoundView
from fl_peel.randomness import rng_for


class InteractionMembership(Attack):
    """Guess labels, train a shadow, keep the guesses whose rows agree, iterate.

    steps: iterations, each keeps another 1 / steps of the rows; restarts: guesses to start from, averaged.
    """

    name: ClassVar[str] = "membership"
    secret: ClassVar[Secret] = "train items"
    source: ClassVar[str] = "Yuan et al., Interaction-level Membership Inference Attack, WWW 2023"
    steps: ClassVar[int] = 6
    restarts: ClassVar[int] = 2

    def __init__(self) -> None:
        self.share = 0.1
        """Share of positives among the rows that a device changed, learned from accomplices."""

    def learn(self, known: Sequence[Accomplice], seed: int) -> None:
        """Learn the share of positives among the rows that came back."""
        positives = rows = 0
        for one in known:
            true = np.zeros(one.view.num_items, np.bool_)
            true[one.candidates[one.truth]] = True
            for view in one.view.rounds:
                changed = norms(view) > 0
                rows += int(changed.sum())
                positives += int((changed & true[view.items]).sum())
        if rows:
            self.share = min(max(positives / rows, 1e-3), 0.5)

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return how much closer rows are to a shadow trained on them than to one that was not, summed over rounds."""
        total = np.zeros(view.num_items)
        for one in view.rounds:
            rng = rng_for(seed, "membership", view.device, one.server_round)
            total[one.items] += self._round(one, rng)
        return total[candidates]

    def _round(self, view: RoundView, rng: np.random.Generator) -> FloatArray:
        scores = np.zeros(len(view.items))
        rows = np.flatnonzero(norms(view) > 0)
        if len(rows) < 3:
            return scores
        table, update = view.table[rows].astype(np.float64), view.update[rows]
        for _ in range(self.restarts):
            scores[rows] += scaled(self._shadowed(table, update, rng)) / self.restarts
        return scores

    def _shadowed(self, table: FloatArray, update: FloatArray, rng: np.random.Generator) -> FloatArray:
        """One run of guessing, (T, d) rows and their updates -> scores (T,)."""
        num_rows = len(table)
        count = max(1, round(self.share * num_rows))
        gram = 0.02 * (table.T @ table)  # of all rows, as unobserved ones
        labels = np.zeros(num_rows, np.bool_)
        labels[rng.permutation(num_rows)[:count]] = True
        for step in range(1, self.steps + 1):
            # a row that was guessed positive moves along the shadow's user embedding, another one against it
            closeness = update @ _user(table, labels, gram)
            agreement = np.where(labels, closeness, -closeness)
            kept = np.zeros(num_rows, np.bool_)
            for label in (True, False):  # of either label the best, so that positives stay as many as they are
                mine = np.flatnonzero(labels == label)
                best = mine[np.argsort(-agreement[mine], kind="stable")[: len(mine) * step // self.steps]]
                kept[best] = True
            if step == self.steps:
                break
            # draw the others anew: positives among them where the update agrees with being one
            rest = np.flatnonzero(~kept)
            wanted = count - int((labels & kept).sum())
            chance = np.argsort(np.argsort(closeness[rest])) + rng.random(len(rest)) * len(rest)
            labels[rest] = False
            labels[rest[np.argsort(-chance, kind="stable")[:wanted]]] = True
        return update @ _user(table, labels, gram)


def _user(table: FloatArray, labels: np.ndarray, gram: FloatArray) -> FloatArray:
    """Return the shadow's user embedding (d,), of length 1: least squares on the rows guessed positive."""
    own = table[labels]
    matrix = gram + own.T @ own + (0.02 * max(len(own), 1) + 1e-9) * np.eye(table.shape[1])
    user: FloatArray = np.linalg.solve(matrix, own.sum(axis=0))
    length = float(np.linalg.norm(user))
    return user / length if length > 0 else user


__all__ = ["InteractionMembership"]
