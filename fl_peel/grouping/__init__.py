"""Which users share a table, which items are kept together, and what a user group's neighbours correct."""
