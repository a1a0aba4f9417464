"""Attacks that read a device's update row by row: which came back, how large, in which direction, what was counted.

A device trains its own items (positives) and sampled others (negatives), so a touched row alone says little where many
negatives are sampled. But the gradient of a row is a multiple of the user embedding, negative for positives and
positive for negatives: all rows of one device's update lie on one line, positives on one side (the observation behind
Yuan et al., WWW 2023, and Chai et al., IEEE Intelligent Systems 2021). Positives get fewer and larger steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl_peel.attacks.base import Accomplice, Attack, Secret
from fl_peel.attacks.views import DeviceView, FloatArray, IntArray, RoundView
from fl_peel.randomness import rng_for


def norms(view: RoundView) -> FloatArray:
    """L2 norm of each row's update, (R,)."""
    length: FloatArray = np.linalg.norm(view.update, axis=1)
    return length


def line(update: FloatArray) -> FloatArray:
    """Place of each row's update on the line through 0 that explains most of it, (R, d) -> (R,).

    Its sign is the one in which fewer rows are positive: a device samples more negatives than it has positives.
    """
    if not update.any():
        return np.zeros(len(update))
    _, vectors = np.linalg.eigh(update.T @ update)  # (d, d), ascending
    along: FloatArray = update @ vectors[:, -1]
    return along if (along > 0).sum() <= (along < 0).sum() else -along


def scaled(values: FloatArray) -> FloatArray:
    """Divided by their root mean square where they are not 0, so that devices share one threshold."""
    some = values[values != 0]
    size = float(np.sqrt(np.mean(some**2))) if len(some) else 0.0
    return values / size if size > 0 else values


class _RowAttack(Attack):
    """Adds up one number for each row over the rounds seen; an item that never was sent scores 0."""

    secret: ClassVar[Secret] = "train items"

    def per_row(self, view: RoundView) -> FloatArray:
        """(R,)."""
        raise NotImplementedError

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Sum over rounds."""
        total = np.zeros(view.num_items)
        for one in view.rounds:
            total[one.items] += self.per_row(one)
        return total[candidates]


class TouchedRows(_RowAttack):
    """Rows that came back changed, the more the likelier: a dummy row is told from a touched one, and a positive, with
    its large step, from a sampled negative.
    """

    name: ClassVar[str] = "touched-rows"

    def per_row(self, view: RoundView) -> FloatArray:
        """Norms on the scale of the device's own."""
        return scaled(norms(view))


class UpdateSign(_RowAttack):
    """Which side of the line that a device's updates lie on."""

    name: ClassVar[str] = "update-sign"
    source: ClassVar[str] = "Chai et al., Secure Federated Matrix Factorization, IEEE Intelligent Systems 2021"

    def per_row(self, view: RoundView) -> FloatArray:
        """Place on the line."""
        return scaled(line(view.update))


class ReportedCounts(_RowAttack):
    """Counts that come beside the update: train interactions of each row."""

    name: ClassVar[str] = "reported-counts"

    def per_row(self, view: RoundView) -> FloatArray:
        """The count, 0 without."""
        counts = view.per_row("row_examples")
        return np.zeros(len(view.items)) if counts is None else counts


class ReportedSignals(_RowAttack):
    """Validation signals of each block: hits come from validation items."""

    name: ClassVar[str] = "reported-signals"
    secret: ClassVar[Secret] = "validation items"

    def per_row(self, view: RoundView) -> FloatArray:
        """Hits of the row's blocks, 0 without."""
        hits = view.per_block("hits")
        if hits is None or len(hits) != len(view.blocks):
            return np.zeros(len(view.items))
        sent = view.position < len(view.blocks)  # (R, S)
        row_hits: FloatArray = np.where(sent, hits[np.where(sent, view.position, 0)], 0.0).sum(axis=1)
        return scaled(row_hits)


# ---- Interaction-level membership inference: which items did the device train on?
# After Yuan, Yang, Nguyen, Cui, He, Yin, "Interaction-level Membership Inference Attack against Federated Recommender
# Systems", WWW 2023 (arXiv 2301.10964). The server guesses labels for the item rows of a device's update, trains a
# shadow model on the guess, and compares the shadow's item rows with the device's: where they are close, the guess
# was right. Those guesses are kept, the others are drawn anew, and so on.
# What is particular here: the shadow starts from the table that the server sent and does one pass of plain steps, as
# devices do; its user embedding is fitted to the guess (weighted least squares on the frozen table, as a device that
# joins alone fits its own, :func:`fl_peel.grouping.clusters.fit_user_embeddings`). Only the direction of the shadow's
# rows is compared, since their length depends on numbers that the server does not know. How many of a device's rows
# are positives, the attacker learns from accomplices.


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
