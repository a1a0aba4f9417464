"""Movement of memory budgets and availability over time."""
