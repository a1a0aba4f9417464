"""Fleets of device profiles, from YAML files."""
