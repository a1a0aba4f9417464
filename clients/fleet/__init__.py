"""Fleets of device profiles, from YAML files: how their numbers are read, and how budgets move."""
