"""A run on a Ray cluster that is already there, named by its address, with several nodes per machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fl_peel.callbacks import Callback
from fl_peel.errors import EngineError
from simulations import run
from simulations.scenario_files import load_scenario
from tests.helpers.runs import figures, served


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


ALONE = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
"""A command that another one follows, which has a folder to itself, as on another machine."""
RAY = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=100000000"]


@contextmanager
def ray_machine(*words, before=()):
    """A machine of a Ray cluster, which is this one; its process."""
    process = subprocess.Popen(
        [*before, *RAY, "--disable-usage-stats", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "--block" in line:  # the last thing it says
                break
        assert process.poll() is None
        yield process
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its own processes, and no other cluster's
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def head(num_cpus):
    """`ray start --head` on this machine; its address and process."""
    port = free_port()
    try:
        with ray_machine("--head", f"--port={port}", f"--num-cpus={num_cpus}", "--include-dashboard=false") as process:
            yield f"127.0.0.1:{port}", process
    finally:
        # Ray leaves the address behind, and whoever starts Ray next would look for this cluster
        remembered = Path("/tmp/ray/ray_current_cluster")
        if remembered.is_file() and remembered.read_text().strip().endswith(f":{port}"):
            remembered.unlink()


@pytest.fixture
def cluster(tmp_path_factory):
    """A Ray cluster on this machine; its address and process."""
    with head(2) as started:
        yield started


@pytest.mark.engine
def test_a_run_on_an_existing_cluster_equals_one_of_its_own(tiny, tmp_path, cluster):
    """Four nodes on two processors; afterwards the cluster is still there for the next run."""
    address, head = cluster
    result = run(tiny, overrides=[f"engine.ray_address={address}", "engine.nodes=4"])
    wanted, _ = served(load_scenario(tiny), tmp_path / "run")
    assert figures(result.measured) == figures(wanted)
    assert result["environment"]["nodes"] == 4
    assert head.poll() is None


@pytest.mark.engine
def test_machines_that_share_no_folder_are_one_line_and_one_that_leaves_costs_a_round(
    tiny, tmp_path, monkeypatch, caplog
):
    """The second machine has the folder of runs to itself; then it has not, and is killed in mid-run."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    words = ["engine.nodes=4", "refinement.rounds=4"]
    with head(1) as (address, _):
        words.append(f"engine.ray_address={address}")
        with (
            ray_machine(f"--address={address}", "--num-cpus=1", before=[*ALONE, str(place)]),
            pytest.raises(EngineError, match=r"^machine .* does not see the run's folder .*; set TMPDIR to a "),
        ):
            run(tiny, overrides=words)
        with ray_machine(f"--address={address}", "--num-cpus=1") as second:

            class Leaving(Callback):
                def on_event(self, event):
                    if event.stage == "refinement" and event.done == 1 and second.poll() is None:
                        for process in (*psutil.Process(second.pid).children(recursive=True), second):
                            process.kill()

            start = time.monotonic()
            result = run(tiny, overrides=words, callbacks=[Leaving()])
            assert second.poll() is not None
    assert time.monotonic() - start < 120
    rows = result.measured.rounds
    assert len(rows) == 4
    assert rows[-1].devices == rows[0].devices


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_at_the_address_is_one_clear_error_at_once(tiny, scheme):
    address = f"{scheme}127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"engine.ray_address: no Ray cluster answers at {address}") as caught:
        run(tiny, overrides=[f"engine.ray_address={address}"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5
