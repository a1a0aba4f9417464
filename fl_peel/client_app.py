"""The ClientApp of ``flwr run .``."""

from importlib import import_module

app = import_module("clients.client_app").app
"""By its name, since the method itself knows nothing of the rooms above it."""
