"""A run from Python on its own Ray, which takes nobody in who does not know its token; a cluster that is there keeps
its own setting.
"""

import os
import subprocess
import sys

import pytest
import ray

from simulations import run
from simulations.engine.ray_engine import environment, own_token
from simulations.scenario_files import load_scenario
from tests.helpers.runs import figures, served

STRANGER = """
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
print("joined")
print(ray.get(ray.remote(lambda: "ran").remote()))
"""


def as_stranger(address):
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", STRANGER, address]
    environ = known | {"RAY_NUM_REDIS_GET_RETRIES": "1"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.engine
def test_a_stranger_is_refused_and_a_second_run_has_another_token(tiny, tmp_path):
    """On 8 nodes; the figures are those of nodes in this process, and what the engine sets does not stay behind."""
    python_path = os.environ.get("PYTHONPATH")
    tokens, strangers, events = [], [], []

    def look(event):
        events.append(event)
        if event.stage == "joining" and event.done == event.total:
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            if len(tokens) == 1:
                strangers.append(as_stranger(ray.get_runtime_context().gcs_address))

    first, second = (
        run(
            tiny,
            overrides=["engine.backend=ray", f"engine.nodes={nodes}"],
            cache_dir=tmp_path / "cache",
            on_event=look,
        )
        for nodes in (8, 2)
    )
    wanted, _ = served(load_scenario(tiny), tmp_path / "run")
    assert figures(first.measured) == figures(second.measured) == figures(wanted)
    assert [one["environment"]["nodes"] for one in (first, second)] == [8, 2]
    assert [event.stage for event in events if event.done == event.total][-1] == "heterogeneity"
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert not list(tmp_path.glob("report*"))
    assert os.environ.get("PYTHONPATH") == python_path
    assert len(set(tokens)) == 2
    assert strangers[0].returncode != 0
    assert "joined" not in strangers[0].stdout
    assert "InvalidAuthToken" in strangers[0].stderr
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & os.environ.keys()
    assert not ray.is_initialized()


def test_a_cluster_that_is_there_keeps_its_setting(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with own_token("127.0.0.1:6379"):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert "RAY_AUTH_TOKEN" not in os.environ


def test_the_environment_is_afterwards_as_it_was(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "mine")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0"):
        assert os.environ["RAY_AUTH_TOKEN"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "mine"
    assert "RAY_AUTH_TOKEN" not in os.environ
