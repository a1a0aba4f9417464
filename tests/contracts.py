"""The suites that every budget process and device profile must pass; users import them from ``clients.contracts``."""

from clients.contracts import BudgetContract, ProfileContract

__all__ = ["BudgetContract", "ProfileContract"]
