"""Attacks on what a device sends: rows of its update, its requests, the steps of stage 1.

A device trains its own items (positives) and sampled others (negatives), so a touched row alone says little where many
negatives are sampled. But the gradient of a row is a multiple of the user embedding, negative for positives and
positive for negatives: all rows of one device's update lie on one line, positives on one side (the observation behind
Yuan et al., WWW 2023, and Chai et al., IEEE Intelligent Systems 2021). Positives get fewer and larger steps.

No user attributes come with the data, so the attribute to infer is the device class: a phone's make and memory.

In the clear a device's messages name its items outright, and its user group; its vector is a sum of rows of its items,
which the server knows, so that the vector alone tells items, too. Where sums are all that is seen, the same is tried on
the sums: they are alike for all of their devices, and so must the scores be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from fl_peel.attacks.base import (
    Accomplice,
    Attack,
    DeviceView,
    FloatArray,
    IntArray,
    RoundView,
    Secret,
    Stage,
    StepView,
)
from fl_peel.randomness import rng_for, seed_for
from fl_peel.steps.base import inverse_power
from fl_peel.steps.choice import spread_of


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
        raise NotImplementedError

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        total = np.zeros(view.num_items)
        for one in view.rounds:
            total[one.items] += self.per_row(one)
        return total[candidates]


class TouchedRows(_RowAttack):
    """Rows that came back changed: dummies, touched rows, and positives with their large steps are told apart."""

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
# joins alone fits its own, :func:`fl_peel.pretraining.clusters.fit_user_embeddings`). Only the direction of the
# shadow's rows is compared, since their length depends on numbers that the server does not know. How many of a
# device's rows are positives, the attacker learns from accomplices.


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
    """Inference of the device class from how many blocks are requested, round after round."""

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
    """Inference of the device class from how often the device answers: some classes are available more often."""

    name: ClassVar[str] = "answering-class"

    def _row(self, view: DeviceView) -> FloatArray:
        """Return the number of rounds in which the device sent something, (1,); empty where it never did."""
        answers = sum(bool(one.reply) and one.figures.get("vector.sent", 1.0) > 0 for one in view.rounds)
        return np.array([answers] if answers else [], np.float64)


RIDGE = 1e-6
"""Ridge by which a vector is solved for its rows, as a share of the largest squared length of the rows' directions."""
SUREST = 0.98
"""Share of wins that counts as certain at most: few validation items are few coins."""


def contributed_items(view: DeviceView) -> FloatArray:
    """Return the sum of what a device contributes to counts and moments, by item (I,)."""
    total = np.zeros(view.num_items)
    for one in (*view.of_step("counts"), *view.of_step("moments")):
        if "items" in one.reply:
            total += one.reply["items"].reshape(-1, view.num_items).sum(axis=0)
    return total


class _Stage1Attack(Attack):
    """Base class of attacks that read steps of stage 1."""

    stage: ClassVar[Stage] = "stage 1"
    secret: ClassVar[Secret] = "train items"


class Stage1Rows(_Stage1Attack):
    """Inference of items from counts, alone or in a user group, and from rows to which a pass adds anything."""

    name: ClassVar[str] = "stage1-rows"

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Sum over steps, each on the scale of the device's own."""
        total = scaled(contributed_items(view))
        for one in view.of_step("pass"):
            norms = one.reply.get("norms")
            if norms is not None:
                total = total + scaled(norms)
        return total[candidates]


class Stage1Vector(_Stage1Attack):
    """Inference of items from the device's vector, solved by least squares for the rows that it may be a sum of."""

    name: ClassVar[str] = "stage1-vector"

    def __init__(self) -> None:
        self._own: FloatArray | None = None
        self._parts: FloatArray = np.zeros((0, 0))

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return how much of each item's row is in the vector, or in the sum of vectors."""
        total = np.zeros(view.num_items)
        rows = next((one.sent["own"] for one in view.of_step("vectors")), None)
        for one in view.of_step("moments"):
            if rows is not None and "first" in one.reply:
                total += scaled(self._apart(rows) @ one.reply["first"].sum(axis=0))
        return total[candidates]

    def _apart(self, own: FloatArray) -> FloatArray:
        """Return the matrix (I, K) from a vector to shares of rows. Devices have the same rows, so it is cached."""
        if self._own is not own:
            wide = own.astype(np.float64)
            squares = wide.T @ wide
            ridge = RIDGE * max(float(np.diag(squares).max(initial=0.0)), 1e-300)
            self._own, self._parts = own, wide @ np.linalg.inv(squares + ridge * np.eye(len(squares)))
        return self._parts


class Stage1Choice(_Stage1Attack):
    """Inference of items from the filters under which validation items win, compared with what each would do."""

    name: ClassVar[str] = "stage1-choice"
    secret: ClassVar[Secret] = "validation items"

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return the mean log likelihood ratio over filters of "one of the items that won so often" to "any item"."""
        total = np.zeros(view.num_items)
        for one in view.of_step("choice"):
            if one.reply and one.reply["answered"][0] > 0:
                total += self._ratios(one, contributed_items(view))
        return total[candidates]

    @staticmethod
    def _ratios(one: StepView, held: FloatArray) -> FloatArray:
        sent, rates = one.sent, one.reply["won"] / one.reply["answered"][0]
        directions, counts, drawn = sent["directions"].astype(np.float64), sent["counts"], sent["drawn"]
        # the device's vector, of the items it is known to have
        base = (held > 0) @ (inverse_power(counts, float(sent["item_exponent"][0]))[:, None] * directions)
        ratios, choices = np.zeros(len(held)), 0
        known = counts > 0
        shapes = sent["count_exponents"], sent["value_exponents"], sent["leading"]
        for rate, count, value, leading in zip(rates, *shapes, strict=True):
            weighted = (base * spread_of(sent["values"], float(value)))[:leading]
            scores = inverse_power(counts, -float(count)) * (directions[:, :leading] @ weighted)
            rivals = np.sort(scores[drawn[held[drawn] == 0]])[::-1]
            if not len(rivals):
                continue
            wins = scores >= rivals[min(int(sent["place"][0]), len(rivals)) - 1]
            usual = float(wins[known].mean())
            rate, usual = (float(np.clip(share, 1 - SUREST, SUREST)) for share in (rate, usual))
            ratios += np.where(wins, np.log(rate / usual), np.log((1 - rate) / (1 - usual)))
            choices += 1
        return ratios / max(choices, 1)


class Stage1Group(_Stage1Attack):
    """Inference of the user group: the one in which stage 1 counts the device last, once centroids have moved."""

    name: ClassVar[str] = "stage1-group"
    secret: ClassVar[Secret] = "user group"

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return the number of devices in each group, from the last reply that includes this device."""
        total = np.zeros(len(candidates))
        for sizes in [one.reply["sizes"] for one in view.steps if "sizes" in one.reply][-1:]:
            inside = candidates < len(sizes)
            total[inside] = sizes[candidates[inside]]
        return total
