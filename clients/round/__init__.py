"""A round on a node: devices are reached, train, and contribute what the scenario lets them contribute."""
