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
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.kernels import FIXED_POINT
from fl_peel.plugins import Registry
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
