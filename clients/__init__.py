"""The device side of the Flower app: cohorts, device profiles, moving budgets."""
