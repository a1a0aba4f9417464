"""Readers of the numbers in a fleet file: checked keys, distributions, tables and traces."""
