"""The nodes of a run, and who is where."""
