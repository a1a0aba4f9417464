"""The app that a deployment submits says what the project's own does."""

import tomllib

from simulations.deployment.processes import APP
from tests.helpers.root import ROOT


def test_the_app_of_a_deployment_is_the_one_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    app = tomllib.loads(APP.format(version=project["project"]["version"]))
    assert app["tool"]["flwr"]["app"].items() <= project["tool"]["flwr"]["app"].items()
    assert {"components", "config"} <= set(app["tool"]["flwr"]["app"])
    assert app["project"]["name"] == project["project"]["name"]
