"""One page to play with: example devices, their budgets, which blocks stay, what they would be recommended."""
