"""`fl-peel deploy`: what SuperNodes are started with; mistakes are known before anything starts."""

import csv
import os
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from fl_peel.errors import EngineError, FlPeelError, ScenarioError
from simulations.cli.main import app
from simulations.deployment import processes
from simulations.deployment.processes import Deployment, end_all, free_port, node_configs
from simulations.engine import passing_grid as deployed
from simulations.engine.passing_grid import DeployedGrid, deployment_grid
from simulations.scenario_files import RunOptions, load_scenario
from tests.clients.node.test_own_data import NOTHING, held, take_apart
from tests.helpers.root import ROOT


def test_files_are_numbered_one_after_the_other(tiny, tmp_path):
    (tmp_path / "items.txt").write_text("i0000\n")
    take_apart(list(csv.DictReader((tmp_path / "planted.csv").open())), tmp_path / "apart", (0, 1, 30, 40))
    scenario = held(load_scenario(tiny, [*NOTHING, f"data.catalogue={tmp_path}/items.txt"]))
    own = sorted((tmp_path / "apart").iterdir())
    configs = node_configs(scenario, nodes=9, own=own)
    assert [(one["partition-id"], one["num-partitions"], one["first-device"]) for one in configs] == [
        (0, 3, 0),
        (1, 3, 1),
        (2, 3, 30),
    ]
    assert [one["data"] for one in configs] == [str(path) for path in own]
    with pytest.raises(ScenarioError, match=r"--own: nodes have files of their own where the scenario has data"):
        node_configs(scenario, nodes=3)


def test_without_files_each_node_takes_its_share_of_the_scenarios_devices(tiny):
    scenario = load_scenario(tiny)
    assert [one["partition-id"] for one in node_configs(scenario, nodes=2)] == [0, 1]
    with pytest.raises(ScenarioError, match="--own"):
        node_configs(scenario, nodes=2, own=[tiny])


def test_a_mistake_is_told_before_anything_starts(tiny, monkeypatch):
    monkeypatch.setattr(processes, "_program", lambda name: pytest.fail("started"))
    ran = CliRunner().invoke(app, ["deploy", str(tiny), "--set", "refinement.roundz=1"])
    assert isinstance(ran.exception, FlPeelError)
    assert "unknown key refinement.roundz" in str(ran.exception)
    ran = CliRunner().invoke(app, ["deploy", str(tiny), "--own", "nowhere.csv"])
    assert str(ran.exception).startswith("--own: ")


def test_a_program_of_flowers_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match="/nowhere/flower-superlink: no such program; install flwr"):
        processes._program("flower-superlink")


@pytest.mark.faults
def test_all_that_a_deployment_started_ends_with_it_and_nothing_else(tmp_path, monkeypatch):
    """Whoever does not heed a friendly word, and whoever has lost its parent, too."""
    stubborn = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); signal.pause()"
    )
    mine, other = os.environ | {"FLWR_HOME": str(tmp_path)}, os.environ | {"FLWR_HOME": f"{tmp_path}-other"}

    def started(environment):
        running = subprocess.Popen([sys.executable, "-c", stubborn], env=environment, stdout=subprocess.PIPE, text=True)
        assert running.stdout.readline() == "on\n"
        return running

    ours, theirs = started(mine), started(other)
    try:
        monkeypatch.setattr(processes, "END_S", 0.5)
        end_all(tmp_path)
        ours.wait(timeout=20)
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


KILLED = """
import os, subprocess, sys, tempfile
from pathlib import Path
from fl_peel.files import owned_folder
from simulations.deployment import processes
from simulations.deployment import processes

with owned_folder(Path(sys.argv[1]), "deployed-") as folder, processes.guarded(folder / "home"):
    (folder / "home").mkdir()
    (folder / "interactions.csv").touch()
    environment = os.environ | {"FLWR_HOME": str(folder / "home")}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False])
def test_a_deployment_that_is_killed_leaves_no_process_and_no_folder(tmp_path, killed):
    """As one that ends, which takes its time."""
    words = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as deploying:
        child = psutil.Process(int(deploying.stdout.readline()))
        assert [folder.stat().st_mode & 0o777 for folder in tmp_path.iterdir()] == [0o700]
        if killed:
            deploying.kill()
        deploying.stdin.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (list(tmp_path.iterdir()) or is_alive(child)):
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())
    assert not is_alive(child)


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_killed_deployment_left_goes_with_the_next_one(tiny, tmp_path, monkeypatch):
    """Where whoever guards it was killed, too."""
    monkeypatch.setattr(processes.tempfile, "gettempdir", lambda: str(tmp_path))
    left = tmp_path / f"{processes.PREFIX}left"
    (left / processes.HOME).mkdir(parents=True)
    (left / "owned").touch()
    ended = []
    monkeypatch.setattr(processes, "end_all", ended.append)
    monkeypatch.setattr(processes, "deployed", stopped)
    with pytest.raises(EngineError):
        processes.run_deployed(load_scenario(tiny), [{"partition-id": 0}], print, RunOptions())
    assert ended == [left / processes.HOME]
    assert not list(tmp_path.glob(f"{processes.PREFIX}*"))


def stopped(*_, **__):
    raise EngineError("no")


@pytest.fixture
def endless(monkeypatch, tmp_path):
    """A deployment whose `flwr run` says a line and goes on for ever."""
    talks = "import time; print('refinement 1/2', flush=True); time.sleep(600)"
    monkeypatch.setattr(processes, "_program", lambda name: [sys.executable, "-c", talks])
    return Deployment(tmp_path, [], None, 1, os.environ | {"FLWR_HOME": str(tmp_path)})


def test_whoever_stops_listening_waits_for_nobody(endless, tmp_path):
    def stopped(line):
        raise SystemExit(143)

    start = time.monotonic()
    with pytest.raises(SystemExit):
        endless.run(tmp_path, {}, stopped)
    assert time.monotonic() - start < 300


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_and_says_so(endless, tmp_path):
    lines = []
    with pytest.raises(EngineError, match=r"the run took more than 5 s and was ended; raise the limit"):
        endless.run(tmp_path, {}, lines.append, limit_s=5.0)


def test_a_port_that_is_free_can_be_had():
    assert 1024 < free_port() < 65_536


def test_containers_start_what_flower_has():
    """Flags of compose.yaml are those that processes on this machine are started with."""
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert {"superlink", "node-0", "node-1", "node-2"} <= services.keys()
    source = (ROOT / "simulations" / "deployment" / "processes.py").read_text(encoding="utf-8")
    for name in ("superlink", "node-0", "node-1", "node-2"):
        words = services[name]["command"].split()
        assert f'"{words[0]}"' in source
        flags = [word for word in words if word.startswith("--")]
        assert flags
        assert [flag for flag in flags if f'"{flag}"' not in source] == []


class Metadata:
    def __init__(self, of):
        self.reply_to_message_id = of


class Reply:
    def __init__(self, of):
        self.metadata = Metadata(of)


class Http:
    """Takes what Flower's takes: messages that can be read twice. Answers at the second look."""

    def __init__(self, answers):
        self.answers, self.pushed, self.looks = answers, [], 0

    def push_messages(self, messages):
        assert list(messages) == list(messages)
        self.pushed.append(list(messages))
        return [None if message == "to nobody" else message for message in messages]

    def pull_messages(self, message_ids):
        self.looks += 1
        return [Reply(one) for one in message_ids if one in self.answers] if self.looks > 1 else []


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(deployed, "REPLIES_POLL_S", 0.001)


def test_messages_may_come_from_a_generator_and_go_one_by_one():
    http = Http({"a", "b"})
    replies = DeployedGrid(http, 1.0).send_and_receive(one for one in ("a", "b"))
    assert sorted(reply.metadata.reply_to_message_id for reply in replies) == ["a", "b"]
    assert http.pushed == [["a"], ["b"]]


def test_who_does_not_answer_or_is_not_there_is_waited_for_no_longer_than_the_timeout():
    http = Http({"a"})
    replies = DeployedGrid(http, 1.0).send_and_receive(["a", "b", "to nobody"], timeout=0.05)
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["a"]
    assert list(DeployedGrid(Http({}), 1.0).send_and_receive(["to nobody"])) == []


def test_the_simulation_keeps_its_own():
    class InMemory(Http):
        pull_interval = 0.1

    memory, http = InMemory({}), Http({})
    assert deployment_grid(memory, 3.0) is memory
    assert deployment_grid(http, 3.0).patience_s == 3.0
