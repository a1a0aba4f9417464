"""The ServerApp of ``flwr run .``."""

from importlib import import_module

app = import_module("simulations.flower").server_app
"""By its name, since the method itself knows nothing of the rooms above it."""
