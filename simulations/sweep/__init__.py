"""`fl-peel sweep`: a scenario under every combination of some settings."""
