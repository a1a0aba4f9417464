"""The suites that every budget process, device profile and block selector must pass; users import them from
``clients.contracts`` and ``fl_peel.contracts``.
"""

from clients.contracts import BudgetContract, ProfileContract
from fl_peel.contracts import SelectorContract

__all__ = ["BudgetContract", "ProfileContract", "SelectorContract"]
