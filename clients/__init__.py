"""The device side of the Flower app: cohorts, device profiles, moving budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_peel.packages import imported_when_asked

if TYPE_CHECKING:
    from clients.fleet.budgets import BudgetProcess as BudgetProcess
    from clients.fleet.contracts import BudgetContract as BudgetContract
    from clients.fleet.contracts import ProfileContract as ProfileContract
    from clients.fleet.fleet import Fleet as Fleet
    from clients.fleet.fleet import FleetBudgets as FleetBudgets
    from clients.fleet.fleet import fleet_from_mapping as fleet_from_mapping
    from clients.fleet.fleet import load_fleet as load_fleet
    from clients.fleet.profile import DeviceProfile as DeviceProfile
    from clients.fleet.profile import Memory as Memory
    from clients.fleet.specs import PositiveFloat as PositiveFloat
    from clients.fleet.specs import ShareFloat as ShareFloat
    from clients.node.contents import BoundedDeviceContents as BoundedDeviceContents
    from clients.node.contents import DeviceContents as DeviceContents
    from clients.node.contents import OpenDeviceContents as OpenDeviceContents
    from clients.node.contracts import DeviceContentsContract as DeviceContentsContract

__getattr__ = imported_when_asked(__name__, __file__)
