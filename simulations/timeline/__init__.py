"""Runs over a timeline, and their reports."""
