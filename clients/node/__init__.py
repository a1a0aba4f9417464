"""The hosts of devices: a node's cohort of devices, their state, their virtual clock."""
