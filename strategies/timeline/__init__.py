"""A federation that lives with its users: period after period, beside those that do otherwise."""
