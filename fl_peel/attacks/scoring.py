"""From scores to figures: advantage with its interval, AUC, precision, recall, F1 against guessing.

Advantage is TPR - FPR at a threshold that was chosen on accomplices (Yeom et al., CSF 2018), on as many members as
non-members. Members and non-members are drawn in squares: two devices u, v of one user group and two items i, j with u
having i but not j, and v having j but not i. All four pairs are candidates. So every item and every device is as often
a member as not, and an attack that only knows what is popular, or who is active, is at chance: what is left is what the
protocol leaks about one device.

For groups and classes, advantage is the mean over the classes of TPR - FPR of "it is this one" (macro-averaged
informedness): 0 for every constant answer, 1 for a perfect one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fl_peel.attacks.base import FloatArray, IntArray
from fl_peel.randomness import rng_for

BoolArray = NDArray[np.bool_]
REPLICATES = 400
"""Bootstrap samples of devices behind an interval."""


@dataclass(frozen=True)
class Outcome:
    """Advantage with its 95 % interval (bootstrap over devices), AUC, and what they rest on."""

    advantage: float
    low: float
    high: float
    auc: float
    devices: int
    candidates: int


def squares(
    has: Sequence[BoolArray], usable: Sequence[BoolArray], groups: IntArray, rng: np.random.Generator
) -> list[tuple[int, int, bool]]:
    """Balanced candidates: (device position, item, member) triples, in squares as in the module's text.

    has: for each device (I,) whether it has the item; usable: (I,) whether the item may be a candidate for the device.
    Each member is used once at most.
    """
    pairs: list[tuple[int, int, bool]] = []
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        left = {u: has[u] & usable[u] for u in members.tolist()}
        order = rng.permutation(len(members))
        for shift in range(1, len(members)):
            for place in range(len(members)):  # everybody with everybody, in rings
                u, v = (int(members[order[(place + k) % len(members)]]) for k in (0, shift))
                if not u < v:
                    continue
                mine = np.flatnonzero(left[u] & ~has[v] & usable[v])
                theirs = np.flatnonzero(left[v] & ~has[u] & usable[u])
                count = min(len(mine), len(theirs))
                if not count:
                    continue
                mine, theirs = rng.permutation(mine)[:count], rng.permutation(theirs)[:count]
                left[u][mine], left[v][theirs] = False, False
                for i, j in zip(mine.tolist(), theirs.tolist(), strict=True):
                    pairs += [(u, i, True), (u, j, False), (v, j, True), (v, i, False)]
    return pairs


def auc_of(scores: FloatArray, truth: BoolArray) -> float:
    """Area under the ROC curve, ties counting half; 0.5 where one side is empty."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return 0.5
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def best_threshold(scores: FloatArray, truth: BoolArray) -> float:
    """The threshold (scores above it are called members) with the largest TPR - FPR; the lowest of equals."""
    positives, negatives = max(int(truth.sum()), 1), max(int((~truth).sum()), 1)
    order = np.argsort(-scores, kind="stable")
    gain = np.cumsum(np.where(truth[order], 1 / positives, -1 / negatives))
    last = np.concatenate([scores[order][:-1] != scores[order][1:], [False]]) if len(order) else np.zeros(0, np.bool_)
    if not last.any() or gain[last].max() <= 0:
        return float(scores.max(initial=0.0))  # nobody
    cut = int(np.flatnonzero(last)[gain[last].argmax()])
    return float((scores[order[cut]] + scores[order[cut + 1]]) / 2)


def best_count_threshold(scores: FloatArray, truth: BoolArray) -> float:
    """Return the threshold with the largest F1."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + max(int(truth.sum()), 1))
    last = np.concatenate([scores[order][:-1] != scores[order][1:], [True]])
    cut = int(np.flatnonzero(last)[f1[last].argmax()])
    return (
        float(scores[order[cut]]) if cut == len(order) - 1 else float((scores[order[cut]] + scores[order[cut + 1]]) / 2)
    )


def precision_recall_f1(called: BoolArray, truth: BoolArray) -> tuple[float, float, float]:
    """Return precision, recall and F1 of a call for every candidate; 0 where undefined."""
    hits = int((called & truth).sum())
    precision = hits / max(int(called.sum()), 1)
    recall = hits / max(int(truth.sum()), 1)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def item_outcome(scores: FloatArray, truth: BoolArray, devices: IntArray, threshold: float, seed: int) -> Outcome:
    """Return the outcome on balanced candidates (C,) of the given devices (C,)."""
    called = scores > threshold
    names, where = np.unique(devices, return_inverse=True)
    counts = np.zeros((len(names), 4))  # members, members called, others, others called
    for column, what in enumerate((truth, truth & called, ~truth, ~truth & called)):
        np.add.at(counts[:, column], where, what)

    def advantage(total: FloatArray) -> FloatArray:
        members, hits, others, alarms = np.moveaxis(total, -1, 0)
        return np.asarray(hits / np.maximum(members, 1) - alarms / np.maximum(others, 1))

    low, high = _interval(counts, advantage, seed)
    return Outcome(float(advantage(counts.sum(axis=0))), low, high, auc_of(scores, truth), len(names), len(scores))


def label_outcome(scores: FloatArray, truth: BoolArray, seed: int) -> Outcome:
    """Outcome of scores (N, C) for each of C labels, of which each of N devices has one: truth (N, C) one-hot.

    Labels that nobody, or everybody, has do not count. A device whose scores are all alike is called nothing.
    """
    num_devices, num_labels = truth.shape
    spread = scores.max(axis=1, initial=-np.inf) > scores.min(axis=1, initial=np.inf)
    called = np.zeros_like(truth)
    called[np.flatnonzero(spread), scores[spread].argmax(axis=1)] = True
    counts = np.stack([truth, truth & called, ~truth, ~truth & called], axis=2).astype(np.float64)  # (N, C, 4)

    def advantage(total: FloatArray) -> FloatArray:
        members, hits, others, alarms = np.moveaxis(total, -1, 0)
        real = (members > 0) & (others > 0)
        gain = np.where(real, hits / np.maximum(members, 1) - alarms / np.maximum(others, 1), 0.0)
        return np.asarray(gain.sum(axis=-1) / np.maximum(real.sum(axis=-1), 1))

    low, high = _interval(counts, advantage, seed)
    real = [i for i in range(num_labels) if 0 < truth[:, i].sum() < num_devices]
    auc = float(np.mean([auc_of(scores[:, i], truth[:, i]) for i in real])) if real else 0.5
    return Outcome(float(advantage(counts.sum(axis=0))), low, high, auc, num_devices, num_devices * num_labels)


def _interval(counts: FloatArray, advantage, seed: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """2.5 % and 97.5 % of the advantage over draws of devices with replacement; counts: (N, ...)."""
    if not len(counts):
        return 0.0, 0.0
    rng = rng_for(seed, "audit-interval")
    flat = counts.reshape(len(counts), -1)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=REPLICATES)  # (B, N)
    drawn = advantage((weights @ flat).reshape(REPLICATES, *counts.shape[1:]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
