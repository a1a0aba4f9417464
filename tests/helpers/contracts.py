"""The suites that every budget process, device profile and block selector must pass; users import them from
``clients.fleet.contracts`` and ``fl_peel.weighting.contracts``.
"""

from clients.fleet.contracts import BudgetContract, ProfileContract
from fl_peel.weighting.contracts import SelectorContract
from simulations.report.contracts import SectionContract

__all__ = ["BudgetContract", "ProfileContract", "SectionContract", "SelectorContract"]
