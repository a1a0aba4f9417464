"""A run on a Ray cluster that is already there, named by its address, with several nodes per machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_peel.errors import EngineError
from simulations import run
from simulations.scenario_files import load_scenario
from tests.helpers.runs import figures, served


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cluster(tmp_path_factory):
    """`ray start --head` on this machine; its address and process."""
    port = free_port()
    ray = Path(sys.executable).parent / "ray"
    head = subprocess.Popen(
        [
            *(str(ray), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"),
            *("--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    try:
        assert head.stdout is not None
        for line in head.stdout:
            if "--block" in line:  # the last thing it says
                break
        assert head.poll() is None
        yield f"127.0.0.1:{port}", head
    finally:
        head.send_signal(signal.SIGTERM)  # it ends its own processes, and no other cluster's
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        # Ray leaves the address behind, and whoever starts Ray next would look for this cluster
        remembered = Path("/tmp/ray/ray_current_cluster")
        if remembered.is_file() and remembered.read_text().strip().endswith(f":{port}"):
            remembered.unlink()


@pytest.mark.engine
def test_a_run_on_an_existing_cluster_equals_one_of_its_own(tiny, tmp_path, cluster):
    """Four nodes on two processors; afterwards the cluster is still there for the next run."""
    address, head = cluster
    result = run(tiny, overrides=[f"engine.ray_address={address}", "engine.nodes=4"])
    wanted, _ = served(load_scenario(tiny), tmp_path / "run")
    assert figures(result.measured) == figures(wanted)
    assert result["environment"]["nodes"] == 4
    assert head.poll() is None


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_at_the_address_is_one_clear_error_at_once(tiny, scheme):
    address = f"{scheme}127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"engine.ray_address: no Ray cluster answers at {address}") as caught:
        run(tiny, overrides=[f"engine.ray_address={address}"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5
