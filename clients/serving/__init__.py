"""Ranking on devices under a budget, and while budgets move."""
