"""The sections of a run's report, one a file: a function from the result to what the page shows."""
