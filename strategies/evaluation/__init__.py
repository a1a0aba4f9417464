"""What is measured of a trained strategy: budgets, fairness, elasticity, poisoning."""
