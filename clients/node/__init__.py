"""What a node hosts: a cohort of devices, their state, their virtual clock."""
