"""Runs from Python and in notebooks: what `fl_peel.run` is, and what it returns."""
