"""Measurements of a trained strategy: budgets, fairness, elasticity, poisoning."""
