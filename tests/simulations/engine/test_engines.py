"""What engines owe a run, whichever hosts the nodes: the same checks on worker processes of our own and on Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl_peel.errors import DataError, EngineError, ScenarioError
from simulations.engine import engine as engines
from simulations.engine.embedded_engine import ForkServer, called, helpers_ahead, prepare_drawing, start_workers
from simulations.engine.engine import PeakMemory, backend_of, simulated, starting
from simulations.report import drawing
from simulations.report.sections.costs import stage_seconds
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from tests.helpers.root import ROOT
from tests.helpers.runs import run
from tests.simulations.engine.clients import CLIENT, asking, carrying
from tests.simulations.report.test_report import run_result
from tests.simulations.test_run import figures, served

PATIENCE_S = 120.0
"""That a worker has to come back in, on a machine that does other things."""


@pytest.fixture
def on_engine(tiny, tmp_path):
    """Runs ``server(grid, nodes)`` on so many nodes of the contract's ClientApp; returns what it does."""

    def run(server, backend="embedded", nodes=2):
        scenario = load_scenario(tiny, [f"engine.backend={backend}", f"engine.nodes={nodes}"])

        def connected(grid, *_):
            while len(ids := sorted(grid.get_node_ids())) < nodes:
                time.sleep(0.05)
            return server(grid, ids)

        return simulated(scenario, RunPaths("", str(tmp_path)), server=connected, client=CLIENT)

    return run


def answers(grid, messages, timeout=PATIENCE_S):
    """Replies by node."""
    return {one.metadata.src_node_id: one for one in grid.send_and_receive(messages, timeout=timeout)}


def echoed(grid, nodes):
    """Process ids of the workers, by node, once all of them answer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        replies = answers(grid, [asking("echo", node) for node in nodes])
        if set(replies) == set(nodes) and not any(one.has_error() for one in replies.values()):
            return {node: one.content.config_records["process"]["pid"] for node, one in replies.items()}
        assert time.monotonic() < deadline, replies
        time.sleep(0.5)


@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_figures_are_the_same_to_the_last_digit(nodes, tiny, tmp_path):
    """On Ray: test_ray_token.py."""
    result = run(tiny, overrides=["engine.backend=embedded", f"engine.nodes={nodes}"])
    wanted, _ = served(load_scenario(tiny), tmp_path / "run", nodes=3)
    assert figures(result) == figures(wanted)
    assert result.environment.nodes == nodes


def messages_come_back_whole_and_say_whose_they_are(grid, nodes):
    arrays = {node: np.random.default_rng(node).standard_normal((300, 4000)) for node in nodes}  # 9.6 MB
    replies = answers(grid, [carrying(array, node) for node, array in arrays.items()])
    for node, array in arrays.items():
        (back,) = replies[node].content.array_records["arrays"].values()
        assert back.numpy().tobytes() == array.tobytes()
    places = [one.content.config_records["process"] for one in replies.values()]
    assert sorted(one["partition-id"] for one in places) == list(range(len(nodes)))
    assert {one["num-partitions"] for one in places} == {len(nodes)}
    assert os.getpid() not in {one["pid"] for one in places}


def a_node_that_raises_is_an_error_and_the_others_answer(grid, nodes):
    replies = answers(grid, [asking("fail", nodes[0]), asking("echo", nodes[1])])
    assert "ZeroDivisionError" in replies[nodes[0]].error.reason
    assert "of a node" in replies[nodes[0]].error.reason
    assert not replies[nodes[1]].has_error()
    assert set(echoed(grid, nodes)) == set(nodes)


def a_late_answer_is_not_waited_for_and_the_next_round_is_whole(grid, nodes):
    echoed(grid, nodes)
    start = time.monotonic()
    replies = answers(grid, [asking("sleep", nodes[0], seconds=30.0), asking("echo", nodes[1])], timeout=8.0)
    assert time.monotonic() - start < 25
    assert set(replies) == {nodes[1]}
    assert set(echoed(grid, nodes)) == set(nodes)


def what_workers_hold_is_counted(grid, nodes):
    held = 400_000_000
    echoed(grid, nodes)
    with PeakMemory() as before:
        time.sleep(1.0)
    with PeakMemory() as during:
        replies = answers(grid, [asking("hold", nodes[0], bytes=held)])
    assert replies[nodes[0]].content.config_records["config"]["sum"] == held
    assert during.peak_bytes - before.peak_bytes > 0.8 * held


def a_worker_that_is_killed_costs_its_message_and_comes_back(grid, nodes):
    replies = answers(grid, [asking("die", nodes[0]), asking("echo", nodes[1])])
    assert replies[nodes[0]].has_error()
    assert not replies[nodes[1]].has_error()
    assert set(echoed(grid, nodes)) == set(nodes)


def a_worker_that_is_killed_between_messages_is_replaced(grid, nodes):
    pid = echoed(grid, nodes)[nodes[0]]
    os.kill(pid, 9)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=PATIENCE_S)
    assert pid not in echoed(grid, nodes).values()


CHECKS = (
    messages_come_back_whole_and_say_whose_they_are,
    a_node_that_raises_is_an_error_and_the_others_answer,
    what_workers_hold_is_counted,
    a_worker_that_is_killed_costs_its_message_and_comes_back,
    a_worker_that_is_killed_between_messages_is_replaced,
    a_late_answer_is_not_waited_for_and_the_next_round_is_whole,  # last: one worker sleeps on
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_worker_processes(on_engine, check):
    on_engine(check)


@pytest.mark.engine
@pytest.mark.faults
def test_on_ray(on_engine):
    """All of them in one run, since Ray takes seconds to start."""
    reached = []

    def server(grid, nodes):
        for check in CHECKS:
            check(grid, nodes)
            reached.append(check)
        stop_the_server(grid, nodes)

    raises_as_it_is_and_leaves_nothing(lambda: on_engine(server, backend="ray"))
    assert tuple(reached) == CHECKS


def stop_the_server(grid, nodes):
    echoed(grid, nodes)
    raise DataError("no such thing")


def raises_as_it_is_and_leaves_nothing(run):
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(DataError, match=r"^no such thing$"):
        run()
    left = [one for one in psutil.Process().children(recursive=True) if one not in before]
    assert not psutil.wait_procs(left, timeout=30)[1]


def test_what_stops_the_server_is_raised_as_it_is_and_nothing_is_left(on_engine):
    raises_as_it_is_and_leaves_nothing(lambda: on_engine(stop_the_server))


def test_the_embedded_engine_is_taken_on_one_machine(tiny, monkeypatch):
    def chosen(*changes):
        return backend_of(load_scenario(tiny, changes).engine)

    assert chosen() == chosen("engine.nodes=500") == chosen("engine.device=cuda:1") == "embedded"
    assert chosen("engine.ray_address=host:6379") == chosen("engine.backend=ray") == "ray"
    for several, backend in ((True, "ray"), (False, "embedded")):
        monkeypatch.setattr(engines, "_several_gpus", lambda several=several: several)
        assert chosen("engine.device=cuda") == backend
    assert chosen("engine.backend=embedded", "engine.device=cuda") == "embedded"
    with pytest.raises(ScenarioError, match="ray_address names a Ray cluster, which backend embedded does not use"):
        chosen("engine.backend=embedded", "engine.ray_address=host:6379")


def test_as_many_workers_as_processors_have_room_for(tiny, monkeypatch):
    monkeypatch.setattr("simulations.engine.embedded_engine.processors", lambda: 4)
    for nodes, cpus_per_node, wanted in ((1, 1, 1), (3, 1, 3), (9, 1, 4), (9, 2, 2), (2, 9, 1)):
        engine = load_scenario(tiny, [f"engine.nodes={nodes}", f"engine.cpus_per_node={cpus_per_node}"]).engine
        with start_workers(engine, CLIENT, {}) as workers:
            assert len(workers._workers) == wanted


def test_workers_that_were_started_ahead_are_those_of_the_run(tiny_scenario, tmp_path, monkeypatch):
    children = psutil.Process().children()
    with starting(tiny_scenario):
        (ahead,) = [one for one in psutil.Process().children() if one not in children]
        server = lambda *_: [one for one in psutil.Process().children() if one not in children]  # noqa: E731
        monkeypatch.setattr("simulations.engine.embedded_engine.start_workers", None)
        assert ahead in simulated(tiny_scenario, RunPaths("", str(tmp_path)), server=server)
    assert not ahead.is_running()


def test_figures_are_drawn_beside_the_workers_and_here_where_these_processes_have_died(tiny_scenario, monkeypatch):
    result = run_result()
    alone = stage_seconds(result)
    with starting(tiny_scenario):
        prepare_drawing()
        with helpers_ahead(2) as helpers, drawing.drawn_by(helpers):
            loaded = partial(eval, "'matplotlib.figure' in __import__('sys').modules")
            helpers[0].send(loaded)
            assert helpers[0].recv(), "before it draws"
            with monkeypatch.context() as here:
                here.setattr(drawing, "styled", lambda *_: pytest.fail("drawn here"))
                assert stage_seconds(result) == alone
            first, second = psutil.Process().children()[-1].children()
            for process in (first, second):
                process.kill()
                assert stage_seconds(result) == alone
    with helpers_ahead(2) as helpers:
        assert not helpers


def test_helpers_are_given_the_next_call_as_soon_as_they_are_done(tiny_scenario):
    calls = [("long", partial(eval, "__import__('time').sleep(1)"))]
    calls += [(name, partial(eval, "__import__('os').getpid()")) for name in ("a", "b", "c")]
    with starting(tiny_scenario), helpers_ahead(2) as helpers:
        (a, first), (b, second), (c, third), last = called(helpers, calls)
        assert (a, b, c, last) == ("a", "b", "c", ("long", None))
        assert first == second == third, "by the one that does nothing long"
        with pytest.raises(EngineError, match=r"^a process that helps has died, perhaps for lack of memory$"):
            list(called(helpers, [("ends", partial(eval, "__import__('os')._exit(1)"))]))


def test_a_client_that_cannot_be_imported_is_one_line(tiny_scenario, tmp_path):
    def server(grid, *_):
        (node, *_) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([asking("echo", node)], timeout=PATIENCE_S)
        return reply.error.reason

    output = simulated(tiny_scenario, RunPaths("", str(tmp_path)), server=server, client="nowhere_at_all:app")
    assert output == "no worker process starts: ModuleNotFoundError: No module named 'nowhere_at_all'"


@pytest.mark.faults
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    """Also while they work."""
    program = (
        "import sys, time\nfrom simulations.engine.embedded_engine import run_embedded\n"
        "from fl_peel.scenario.scenario import Engine\nfrom tests.simulations.engine.clients import *\n"
        "def serve(grid, stop):\n"
        "    nodes = sorted(grid.get_node_ids())\n"
        "    list(grid.send_and_receive([asking('echo', node) for node in nodes]))\n"
        "    print('ready', flush=True)\n"
        "    list(grid.send_and_receive([asking('sleep', node, seconds=600.0) for node in nodes]))\n"
        "run_embedded(Engine(), CLIENT, {}, serve)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline() == "ready\n"
        started = psutil.Process(ran.pid).children(recursive=True)
        assert len(started) > 1
        ran.kill()
        assert not psutil.wait_procs(started, timeout=30)[1]


def test_what_forks_has_one_thread():
    """Threads do not survive a fork, and what they held is held for ever. Those of OpenBLAS, which it has where a node
    may use several processors, are started anew by itself.
    """
    server = ForkServer(engines.CLIENT, {"OMP_NUM_THREADS": "1"}, ("torch",))
    try:
        with server.fork() as connection:
            connection.recv()  # all is imported
            assert psutil.Process(server._process.pid).num_threads() == 1
    finally:
        server.close()


def test_nothing_in_the_working_directory_hides_what_workers_import(tiny_scenario, tmp_path, monkeypatch):
    folder = tmp_path / "hiding"
    folder.mkdir()
    (folder / "flwr.py").write_text("raise AssertionError('not mine')")
    monkeypatch.chdir(folder)

    def server(grid, *_):
        return [
            one.has_error() for one in grid.send_and_receive([asking("echo", node) for node in grid.get_node_ids()])
        ]

    assert simulated(tiny_scenario, RunPaths("", str(tmp_path)), server=server, client=CLIENT) == [False, False]
    assert Path.cwd() == folder
