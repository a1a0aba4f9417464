"""From a scenario to a strategy on connected nodes."""
