"""Flower's deployment engine itself: a SuperLink and SuperNodes, with TLS and keys, as processes on loopback.

What is slow here is Flower's: a ClientApp starts anew for every message, and a SuperNode that is killed counts as there
until it has missed two heartbeats, a minute.
"""

import contextlib
import csv
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from simulations.deployment.processes import node_configs, run_deployed
from simulations.report.run_files import read_report
from simulations.scenario_files import RunOptions, load_scenario
from tests.clients.node.test_own_data import NOTHING, held, take_apart
from tests.helpers.runs import figures, served

PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr", "flwr-serverapp", "flwr-clientapp")
MISSING = [name for name in PROGRAMS if not (Path(sys.executable).parent / name).is_file()]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.deployment,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed beside this Python: {', '.join(MISSING)}"),
]
LIMIT_S = 1800.0
"""After which a run is ended: far more than one takes, also where others compute."""
RETRY_S, PATIENCE_S = 5.0, 120.0
"""Between two tries of a SuperNode that was killed, which the SuperLink refuses until it has missed its heartbeats; and
how long it is tried.
"""
FEW_MESSAGES = (
    "evaluation.budgets=[50%]",
    "evaluation.selectors=[exposure]",
    "evaluation.full_tables=false",
    "evaluation.artifacts=0",
    "elasticity.rounds=0",
    "elasticity.falls=[]",
    "fairness.tiers=[]",
    "refinement.acceptance.rule=always",
    "selector=exposure",
)
FEW_STEPS = (
    "pretraining.passes=1",
    "pretraining.count_exponent=0.5",
    "pretraining.value_exponent=0",
    "privacy.min_owners=1",
    "refinement.rounds=1",
)


def absolute(tiny, tmp_path):
    """The same scenario with paths that hold anywhere."""
    text = tiny.read_text().replace("planted.csv", f"{tmp_path}/planted.csv")
    (tmp_path / "absolute.yaml").write_text(text.replace("fleet.yaml", f"{tmp_path}/fleet.yaml"))
    return tmp_path / "absolute.yaml"


@pytest.fixture
def deploys(monkeypatch, tmp_path):
    """Where deployments put their folders; of none is anything left, neither files nor processes."""
    place = tmp_path / "deployed"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.glob("fl-peel-deployed-*"))
    assert not any(str(place) in home for home in flower_homes())


def flower_homes():
    """Flower's folder as each process of this user has it in its environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or one that has ended
            yield process.environ().get("FLWR_HOME", "")


def test_nodes_that_hold_their_own_data_have_the_figures_of_the_simulation(tiny, tmp_path, deploys):
    """No disk is shared, the server has items alone."""
    bounds = (0, 13, 40)
    rows = list(csv.DictReader((tmp_path / "planted.csv").open()))
    (tmp_path / "items.txt").write_text("".join(f"{item}\n" for item in sorted({row["item"] for row in rows})))
    take_apart(rows, tmp_path / "apart", bounds)
    changes = [*NOTHING, *FEW_STEPS, *FEW_MESSAGES, f"data.catalogue={tmp_path}/items.txt"]
    scenario = load_scenario(absolute(tiny, tmp_path), changes)
    wanted, _ = served(scenario, tmp_path / "simulated")
    (tmp_path / "planted.csv").unlink()

    files = [tmp_path / "apart" / f"node-{number}.csv" for number in range(2)]
    lines = []
    configs = node_configs(held(scenario), nodes=2, own=files)
    assert [config["first-device"] for config in configs] == list(bounds[:-1])
    options = RunOptions(out=tmp_path / "out")
    run_deployed(held(scenario), configs, lambda _, line: lines.append(line), options, limit_s=LIMIT_S)
    result = read_report(tmp_path / "out" / "report.json")
    assert figures(result) == figures(wanted)
    assert (result.environment.engine, result.environment.nodes) == ("deployment", 2)
    assert any("refinement" in line for line in lines)


def kill_node(deployment, number):
    """End a SuperNode and all that it started, as a loss of power does."""
    node = deployment._nodes.pop(number)
    for process in (*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)):
        process.kill()
    node.wait()


def bring_back(deployment, number):
    """Start a SuperNode that was killed, again until the SuperLink takes it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        deployment.start_node(number)
        try:
            deployment._nodes[number].wait(timeout=RETRY_S)
        except subprocess.TimeoutExpired:
            return


@pytest.mark.faults
@pytest.mark.hostile
def test_a_node_that_is_killed_costs_its_devices_and_is_taken_back(tiny, tmp_path, deploys):
    changes = [*FEW_MESSAGES, "refinement.rounds=4", "engine.reply_timeout_s=180"]
    scenario = load_scenario(absolute(tiny, tmp_path), changes)
    configs = node_configs(scenario, nodes=3)
    seen, bringing = [], []

    def meanwhile(deployment, line):
        if "refinement " not in line:
            return
        seen.append(line)
        if len(seen) == 1:
            kill_node(deployment, 2)
        if len(seen) == 3:  # a whole round went on without it
            bringing.append(threading.Thread(target=bring_back, args=(deployment, 2)))
            bringing[0].start()

    run_deployed(scenario, configs, meanwhile, RunOptions(out=tmp_path / "out"), limit_s=LIMIT_S)
    bringing[0].join(timeout=60)
    result = read_report(tmp_path / "out" / "report.json")
    failures = [row.failures for row in result.rounds]
    assert len(failures) == 4
    assert max(failures) >= 13  # devices 2, 5, 8, ... of 40; more where others leave Flower no processor
    assert sum(row.devices for row in result.device_classes.values()) == 40  # back by the evaluation


@pytest.mark.hostile
def test_two_deployments_at_once_know_nothing_of_each_other(tiny, tmp_path, deploys, trial):
    """Each has its ports, keys and processes, and ends its own alone."""
    path = absolute(tiny, tmp_path)

    def deployed(seed):
        trial("two at once", "fl-peel deploy and fl-peel deploy")
        scenario = load_scenario(path, [*FEW_MESSAGES, "refinement.rounds=1"], seed=seed)
        out = tmp_path / f"out-{seed}"
        run_deployed(scenario, node_configs(scenario, nodes=2), lambda *_: None, RunOptions(out=out), limit_s=LIMIT_S)
        return figures(read_report(out / "report.json")), figures(served(scenario, tmp_path / f"simulated-{seed}")[0])

    with ThreadPoolExecutor(2) as pool:
        for got, wanted in pool.map(deployed, (1, 2)):
            assert got == wanted
