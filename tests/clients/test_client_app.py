"""The device side's app: what it does with every message."""

import pytest

from clients import client_app
from simulations.scenario_files import load_scenario
from strategies.nodes import Nodes
from tests.helpers.light import loaded_by
from tests.helpers.loopback import LoopbackGrid


@pytest.fixture
def given_back(monkeypatch):
    """How often freed memory was handed back."""
    times = []
    monkeypatch.setattr(client_app, "release_memory", lambda: times.append(1))
    client_app._begin.cache_clear()
    yield times
    client_app._begin.cache_clear()


def test_memory_goes_back_when_messages_of_another_kind_come(given_back):
    for kind in ("round", "round", "compare", "compare", "round"):
        client_app._begin(kind)
    assert len(given_back) == 3


def test_every_message_counts(given_back, tiny):
    grid = LoopbackGrid(2)
    scenario = load_scenario(tiny).to_json()
    Nodes.connect(grid, scenario, root=str(client_app.check_one_root()), timeout_s=10)
    assert len(given_back) == 1


def test_a_client_app_loads_nothing_that_the_server_alone_needs():
    later = {"dp_accounting", "ray", "scipy.linalg", "scipy.special", "sklearn", "torch"}
    assert not loaded_by("import clients.client_app") & later
