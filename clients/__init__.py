"""The device side of the Flower app: cohorts, device profiles, moving budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_peel.lazy_imports import imported_when_asked

if TYPE_CHECKING:
    from clients.fleet.contracts import BudgetContract as BudgetContract
    from clients.fleet.contracts import ProfileContract as ProfileContract
    from clients.fleet.fleet import Fleet as Fleet
    from clients.fleet.fleet import FleetBudgets as FleetBudgets
    from clients.fleet.fleet import fleet_from_mapping as fleet_from_mapping
    from clients.fleet.fleet import load_fleet as load_fleet
    from clients.fleet.profile import DeviceProfile as DeviceProfile
    from clients.fleet.profile import Memory as Memory
    from clients.keys.specs import PositiveFloat as PositiveFloat
    from clients.keys.specs import ShareFloat as ShareFloat
    from clients.processes.budgets import BudgetProcess as BudgetProcess
    from clients.round.contents import BoundedDeviceContents as BoundedDeviceContents
    from clients.round.contents import DeviceContents as DeviceContents
    from clients.round.contents import OpenDeviceContents as OpenDeviceContents
    from clients.round.contracts import DeviceContentsContract as DeviceContentsContract

__getattr__ = imported_when_asked(__name__, __file__)
