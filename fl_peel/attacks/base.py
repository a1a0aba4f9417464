"""The door for attacks: what an observer sees of a device, what an attack answers, where it is registered.

The observer is an honest-but-curious server whose every node hosts one device, as in deployment. It knows what it sent
(blocks, table, the training parameters it prescribed) and what came back. It does not know the device's interactions,
its user embedding or its random numbers; a view has no field for them.

An attack subclasses :class:`Attack` and overrides :meth:`Attack.scores`; one that learns from devices it knows
overrides :meth:`Attack.learn` too. Register it in your package's ``pyproject.toml``::

    [project.entry-points."fl_peel.attacks"]
    my-attack = "my_package:MyAttack"

It is called without arguments, once for every mechanism that is audited. :class:`fl_peel.contracts` has the
tests that every attack must pass.

From an attack's scores come its figures: advantage with its interval, AUC, precision, recall, F1 against guessing.
Advantage is TPR - FPR at a threshold that was chosen on accomplices (Yeom et al., CSF 2018), on as many members as
non-members. Members and non-members are drawn in squares: two devices u, v of one user group and two items i, j with u
having i but not j, and v having j but not i. All four pairs are candidates. So every item and every device is as often
a member as not, and an attack that only knows what is popular, or who is active, is at chance: what is left is what the
protocol leaks about one device.

For groups and classes, advantage is the mean over the classes of TPR - FPR of "it is this one" (macro-averaged
informedness): 0 for every constant answer, 1 for a perfect one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.kernels import FIXED_POINT
from fl_peel.plugins import Registry
from fl_peel.randomness import rng_for
from fl_peel.scenario.settings import LocalTraining

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
_NOTHING: IntArray = np.zeros(0, np.int64)


@dataclass(frozen=True)
class RoundView:
    """One round. For R table rows of dimension d that the server sent as K ranked blocks:

    items: (R,) item of each row; table: (R, d) as sent; position: (R, S) rank of each row's blocks, K where not sent;
    blocks: (K,) block numbers, best first; local: the training the server prescribed;
    reply: arrays by their name on the wire (:class:`fl_peel.wire.RoundReply`, of the device's user group), those that
    the protocol leaves out missing; figures: single numbers (bytes, times, metrics) by name, of the reply and of what
    else the device said of itself;
    num_devices: devices whose sum the reply is, 1 unless the protocol shows sums only.
    """

    server_round: int
    items: IntArray
    table: NDArray[np.float32]
    position: NDArray[np.int32]
    blocks: IntArray
    local: LocalTraining
    reply: Mapping[str, NDArray[Any]]
    figures: Mapping[str, float]
    num_devices: int = 1

    @property
    def update(self) -> FloatArray:
        """The update of every row, (R, d); zero in rows that were not sent back. Not kept: there are many views."""
        if "updates" in self.reply:  # every row that was sent
            return np.asarray(self.reply["updates"].reshape(self.table.shape) / FIXED_POINT)
        total = np.zeros(self.table.shape, np.int64)
        for rows, sums in (("rows", "sums"), ("wide_rows", "wide_sums")):
            if rows in self.reply and sums in self.reply:
                np.add.at(total, self.reply[rows].astype(np.int64), self.reply[sums].astype(np.int64))
        return total / FIXED_POINT

    @cached_property
    def returned(self) -> NDArray[np.bool_]:
        """Rows that were sent back, (R,)."""
        rows = np.full(len(self.items), "updates" in self.reply)
        rows[self.reply.get("rows", _NOTHING).astype(np.int64)] = True
        return rows

    def per_row(self, name: str) -> FloatArray | None:
        """A reply array that has one number for each row sent back, spread over all rows (R,); None without it.

        ``row_examples`` under privacy is what devices send as ``counts``.
        """
        if name == "row_examples" and "counts" in self.reply:
            return np.asarray(self.reply["counts"] / FIXED_POINT)
        if name not in self.reply:
            return None
        values = np.zeros(len(self.items))
        values[self.reply["rows"].astype(np.int64)] = self.reply[name]
        return values

    def per_block(self, name: str) -> FloatArray | None:
        """A reply array that has one number for each block (K,), as numbers; None without it.

        ``hits`` under privacy is what devices send as ``signals``.
        """
        if name == "hits" and "signals" in self.reply:
            name = "signals"
        return np.asarray(self.reply[name], np.float64) if name in self.reply else None

    @property
    def held(self) -> NDArray[np.bool_] | None:
        """Blocks (K,) that the device says it keeps, None where it does not say: its request."""
        holders = self.per_block("holders")
        return None if holders is None else holders > 0


@dataclass(frozen=True)
class StepView:
    """One step of stage 1 by devices. step: its name; sent, reply: arrays by name:

    counts: ``items`` (I,). pass: ``norms`` (I,), L2 norms of what is added to each row, of the
    first columns (a device adds the same to each of its rows); nothing is sent. choice:
    ``won`` (C,) in one, ``answered`` (1,); sent are the arrays of
    :class:`fl_peel.steps.choice.FilterRequest` and ``item_exponent`` (1,). vectors: sent is ``own`` (I,
    K). groups: ``sizes`` (G,), ``sums`` (G, c); sent are ``centroids`` (G, c). moments: ``sizes`` (G,), ``first`` (G,
    K), ``items`` (G, I); second moments of one device say what the first do.

    num_devices: whose sum the reply is, 1 unless the protocol shows sums only. Reply is empty where nothing came.
    """

    step: str
    sent: Mapping[str, NDArray[Any]]
    reply: Mapping[str, NDArray[Any]]
    num_devices: int = 1


@dataclass(frozen=True)
class DeviceView:
    """All steps of stage 1 and all rounds that the observer saw of one device, oldest first; ``device`` is a name."""

    device: int
    num_items: int
    rounds: tuple[RoundView, ...]
    steps: tuple[StepView, ...] = ()

    def of_step(self, step: str) -> list[StepView]:
        """Those of that name."""
        return [one for one in self.steps if one.step == step]


Secret = Literal["train items", "validation items", "user group", "device class"]
"""What an attack is after. Items: which of them the device has. The others: which one of them the device belongs to."""
Stage = Literal["stage 1", "refinement"]
"""Whose messages an attack reads; a scenario may have either."""
ITEM_SECRETS: tuple[Secret, ...] = ("train items", "validation items")


@dataclass(frozen=True)
class Accomplice:
    """A device whose secret the attacker knows, an accomplice: none of the attacked ones.

    candidates: (C,) item numbers, or the numbers of groups or classes; truth: (C,) which of them are true.
    """

    view: DeviceView
    candidates: IntArray
    truth: NDArray[np.bool_]


class Attack:
    """Base class of an attack. name: its name in tables; secret: the secret that it infers; source: its publication;
    stage: the stage whose messages it reads."""

    name: ClassVar[str]
    secret: ClassVar[Secret]
    source: ClassVar[str] = ""
    stage: ClassVar[Stage] = "refinement"

    def learn(self, known: Sequence[Accomplice], seed: int) -> None:
        """Learn from accomplices before any device is attacked; by default nothing."""

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return one finite score per candidate, (C,): the larger, the more likely. Scores of different devices are
        compared with one threshold, so they must share one scale."""
        raise NotImplementedError


def checked_scores(attack: Attack, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
    """The scores of an attack.

    Raises:
        ScenarioError: it returned something else than one finite number for each candidate.
    """
    scores = np.asarray(attack.scores(view, candidates, seed), np.float64)
    if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
        raise ScenarioError(
            f"attack {attack.name!r} returned scores of shape {scores.shape}; it must return one finite number for "
            f"each of {len(candidates)} candidates"
        )
    return scores


# ---- The attacks by name: those that ship, and those that installed packages add


ATTACKS: Registry[Any] = Registry(
    "attack",
    "fl_peel.attacks",
    MappingProxyType(
        {
            "membership": "fl_peel.attacks.device_attacks:InteractionMembership",
            "touched-rows": "fl_peel.attacks.device_attacks:TouchedRows",
            "update-sign": "fl_peel.attacks.device_attacks:UpdateSign",
            "reported-counts": "fl_peel.attacks.device_attacks:ReportedCounts",
            "reported-signals": "fl_peel.attacks.device_attacks:ReportedSignals",
            "requested-group": "fl_peel.attacks.device_attacks:RequestedGroup",
            "requested-class": "fl_peel.attacks.device_attacks:RequestedClass",
            "reported-class": "fl_peel.attacks.device_attacks:ReportedClass",
            "answering-class": "fl_peel.attacks.device_attacks:AnsweringClass",
            "stage1-rows": "fl_peel.attacks.device_attacks:Stage1Rows",
            "stage1-vector": "fl_peel.attacks.device_attacks:Stage1Vector",
            "stage1-choice": "fl_peel.attacks.device_attacks:Stage1Choice",
            "stage1-group": "fl_peel.attacks.device_attacks:Stage1Group",
        }
    ),
)
"""Subclasses of :class:`~fl_peel.attacks.base.Attack`: the values of ``--attacks``."""


def attack_names() -> list[str]:
    """Every attack, those of installed packages last."""
    return list(ATTACKS.names())


def load_attack(name: str) -> Attack:
    """A fresh attack of this name.

    Raises:
        ScenarioError: no such attack, or what is registered under the name is none.
    """
    try:
        return ATTACKS.make(name, Attack)
    except FieldError as error:
        raise ScenarioError(f"--attacks: {error}") from None


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
