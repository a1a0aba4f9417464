"""Stage 1 on the server: a full embedding table from the collected interactions."""
