"""PEEL against every other way of fitting a budget."""
