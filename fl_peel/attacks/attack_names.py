"""The attacks by name: those that ship, and those that installed packages add."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from fl_peel.attacks.base import Attack
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.plugins import Registry

ATTACKS: Registry[Any] = Registry(
    "attack",
    "fl_peel.attacks",
    MappingProxyType(
        {
            "membership": "fl_peel.attacks.membership:InteractionMembership",
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


__all__ = ["ATTACKS", "attack_names", "load_attack"]
