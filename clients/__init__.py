"""The device side of the Flower app: cohorts, device profiles, moving budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_peel.lazy_imports import imported_when_asked

if TYPE_CHECKING:
    from clients.fleet.contracts import BudgetContract, ProfileContract
    from clients.fleet.fleet import Fleet, fleet_from_mapping, load_fleet
    from clients.fleet.fleet_budgets import FleetBudgets
    from clients.fleet.profile import DeviceProfile, Memory
    from clients.keys.specs import PositiveFloat, ShareFloat
    from clients.processes.base import BudgetProcess
    from clients.round.bounded import BoundedDeviceContents
    from clients.round.contents import DeviceContents
    from clients.round.contracts import DeviceContentsContract
    from clients.round.open import OpenDeviceContents

__all__ = [
    "BoundedDeviceContents",
    "BudgetContract",
    "BudgetProcess",
    "DeviceContents",
    "DeviceContentsContract",
    "DeviceProfile",
    "Fleet",
    "FleetBudgets",
    "Memory",
    "OpenDeviceContents",
    "PositiveFloat",
    "ProfileContract",
    "ShareFloat",
    "fleet_from_mapping",
    "load_fleet",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "BoundedDeviceContents": "clients.round.bounded",
        "BudgetContract": "clients.fleet.contracts",
        "BudgetProcess": "clients.processes.base",
        "DeviceContents": "clients.round.contents",
        "DeviceContentsContract": "clients.round.contracts",
        "DeviceProfile": "clients.fleet.profile",
        "Fleet": "clients.fleet.fleet",
        "FleetBudgets": "clients.fleet.fleet_budgets",
        "Memory": "clients.fleet.profile",
        "OpenDeviceContents": "clients.round.open",
        "PositiveFloat": "clients.keys.specs",
        "ProfileContract": "clients.fleet.contracts",
        "ShareFloat": "clients.keys.specs",
        "fleet_from_mapping": "clients.fleet.fleet",
        "load_fleet": "clients.fleet.fleet",
    },
)
