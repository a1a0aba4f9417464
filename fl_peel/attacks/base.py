"""The door for attacks: what one is given, what it answers, where it is registered.

An attack subclasses :class:`Attack` and overrides :meth:`Attack.scores`; one that learns from devices it knows
overrides :meth:`Attack.learn` too. Register it in your package's ``pyproject.toml``::

    [project.entry-points."fl_peel.attacks"]
    my-attack = "my_package:MyAttack"

It is called without arguments, once for every mechanism that is audited. :class:`fl_peel.attacks.contracts` has the
tests that every attack must pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.attacks.views import DeviceView, FloatArray, IntArray
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.plugins import Registry

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
            "membership": "fl_peel.attacks.row_attacks:InteractionMembership",
            "touched-rows": "fl_peel.attacks.row_attacks:TouchedRows",
            "update-sign": "fl_peel.attacks.row_attacks:UpdateSign",
            "reported-counts": "fl_peel.attacks.row_attacks:ReportedCounts",
            "reported-signals": "fl_peel.attacks.row_attacks:ReportedSignals",
            "requested-group": "fl_peel.attacks.request_attacks:RequestedGroup",
            "requested-class": "fl_peel.attacks.request_attacks:RequestedClass",
            "reported-class": "fl_peel.attacks.request_attacks:ReportedClass",
            "answering-class": "fl_peel.attacks.request_attacks:AnsweringClass",
            "stage1-rows": "fl_peel.attacks.stage1_attacks:Stage1Rows",
            "stage1-vector": "fl_peel.attacks.stage1_attacks:Stage1Vector",
            "stage1-choice": "fl_peel.attacks.stage1_attacks:Stage1Choice",
            "stage1-group": "fl_peel.attacks.stage1_attacks:Stage1Group",
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
