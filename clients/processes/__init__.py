"""How memory budgets and availability move over time."""
