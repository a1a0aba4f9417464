"""How a number in a fleet file is read: checked keys, distributions, tables and traces."""
