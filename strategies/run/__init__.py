"""Preparation, from a scenario to a strategy on connected nodes."""
