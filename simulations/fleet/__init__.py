"""Fleets as reports and terminals show them."""
