"""Attacks on what devices send: what an audit tries on every privacy mechanism.

An attack sees :class:`~fl_peel.attacks.base.DeviceView`, what the protocol shows of one device and nothing else, and
gives scores (:class:`~fl_peel.attacks.base.Attack`). :mod:`fl_peel.attacks.base` turns scores into advantage and
AUC. One of your own goes under the entry-point group ``fl_peel.attacks``; see docs/audit.md.
"""

from fl_peel.attacks.base import Accomplice, Attack, DeviceView, RoundView, Secret, StepView, attack_names, load_attack

__all__ = ["Accomplice", "Attack", "DeviceView", "RoundView", "Secret", "StepView", "attack_names", "load_attack"]
