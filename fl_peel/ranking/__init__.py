"""Full ranking of items on devices, and how metrics add up and spread."""
