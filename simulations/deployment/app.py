"""The Flower app of a deployment: the packages as they are installed on each machine, of which nothing is sent."""

from __future__ import annotations

from pathlib import Path

import fl_peel

APP = """\
[project]
name = "fl-peel"
version = "{version}"
description = "fl-peel, as it is installed where this runs"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fl-peel"

[tool.flwr.app.components]
serverapp = "simulations.flower:server_app"
clientapp = "clients.client_app:app"

[tool.flwr.app.config]
scenario = "ml-100k"
seed = -1
data-dir = ""
out = ""
set = ""
"""


def write_app(folder: Path) -> Path:
    """Write the app that ``flwr run`` takes into a folder of its own, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(APP.format(version=fl_peel.__version__), encoding="utf-8")
    return folder


__all__ = ["write_app"]
