"""Local training of a user group's devices: compiled, in torch, and readable."""
