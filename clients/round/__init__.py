"""A round on a node: devices are reached, train, and say what the scenario lets them say."""
