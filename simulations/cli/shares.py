"""Shares of the full table as they are typed on the command line."""

from __future__ import annotations

from fl_peel.errors import BudgetError


def read_budgets(text: str, option: str = "--budgets") -> tuple[float, ...]:
    """``0.1%,0.25%,0.01`` as ascending fractions.

    Raises:
        BudgetError: not a list of shares above 0 and at most 1.
    """
    shares = []
    for part in text.split(","):
        word = part.strip()
        try:
            share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
        except ValueError as error:
            raise BudgetError(f"{option}: {word!r} is not a share; write e.g. 0.5%,1%") from error
        if not 0 < share <= 1:
            raise BudgetError(f"{option}: {word} is not above 0 and at most 100%; write e.g. 0.5%,1%")
        shares.append(share)
    return tuple(sorted(set(shares)))


__all__ = ["read_budgets"]
