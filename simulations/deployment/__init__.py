"""Runs on Flower's deployment engine: a SuperLink, and SuperNodes that hold their own data."""
