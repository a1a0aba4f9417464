"""A run on a Ray cluster that is already there, named by its address, with several nodes per machine."""

import gc
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import services

from fl_peel.errors import EngineError
from fl_peel.events import Callback
from simulations import run
from simulations.engine import ray_engine
from simulations.engine.engine import WORKERS, lasting_objects
from simulations.engine.inputs import checked
from simulations.engine.ray_engine import environment, own_token, require_cluster, watched_raylet
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
@pytest.mark.hostile  # a minute and a half, and mounts of its own
def test_machines_that_share_no_folder_are_one_line_and_one_that_leaves_ends_no_work(
    tiny, tmp_path, monkeypatch, trial, caplog
):
    """The second machine has the folder of runs to itself; then it has not, and is killed in mid-run: all devices are
    hosted on the other one from then on.
    """
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    words = ["engine.nodes=4", "refinement.rounds=4"]
    with head(1) as (address, _):
        trial("two raylets", "without a shared folder")
        words.append(f"engine.ray_address={address}")
        with (
            ray_machine(f"--address={address}", "--num-cpus=1", before=[*ALONE, str(place)]),
            pytest.raises(EngineError, match=r"^machine .* does not see the run's folder .*; set TMPDIR to a "),
        ):
            run(tiny, overrides=words)
        trial("two raylets", "of which one is killed")
        with ray_machine(f"--address={address}", "--num-cpus=1") as second:

            class Leaving(Callback):
                def on_event(self, event):
                    if event.stage == "refinement" and event.done == 1 and second.poll() is None:
                        for process in (*psutil.Process(second.pid).children(recursive=True), second):
                            process.kill()

            start = time.monotonic()
            result = run(tiny, overrides=words, out=tmp_path / "out", callbacks=[Leaving()])
            assert second.poll() is not None
    assert time.monotonic() - start < 180
    assert [record.getMessage() for record in caplog.records if "has left the Ray cluster" in record.getMessage()]
    assert len(result.measured.rounds) == 4
    assert not result.measured.environment.excluded_nodes


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_at_the_address_is_one_clear_error_at_once(tiny, scheme):
    address = f"{scheme}127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"engine.ray_address: no Ray cluster answers at {address}") as caught:
        run(tiny, overrides=[f"engine.ray_address={address}"])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "address", ["nonsense", "ray://", "ray://host", "host:port", ":6379", "host:99999", "http://h:80"]
)
def test_what_is_no_address_is_refused(tiny_scenario, address):
    engine = tiny_scenario.engine.model_copy(update={"ray_address": address})
    with pytest.raises(
        EngineError, match="is not an address of a Ray cluster; write HOST:PORT, ray://HOST:PORT or auto"
    ):
        checked(tiny_scenario.model_copy(update={"engine": engine}), None)


def test_ray_looks_for_the_cluster_of_this_machine_itself():
    require_cluster("auto")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_somebody_who_listens_and_says_nothing_is_no_ray(scheme, monkeypatch):
    monkeypatch.setattr("simulations.engine.ray_engine.CONNECT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"the server at {address} is not a Ray cluster; correct the address"):
            require_cluster(address)
    assert time.monotonic() - start < 20


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
    """On 8 nodes; the figures are those of nodes in this process, and what the engine sets does not stay behind.
    Workers are as urgent as this process: on a busy machine those at Ray's niceness of 15 come to nothing.
    """
    python_path = os.environ.get("PYTHONPATH")
    tokens, strangers, events, urgency = [], [], [], []

    def look(event):
        events.append(event)
        if event.stage == "joining" and event.done == event.total:
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            started = psutil.Process().children(recursive=True)
            urgency.extend(process.nice() for process in started if "ClientAppActor" in " ".join(process.cmdline()))
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
    kinds = sorted(entry.name.rpartition("-")[0] for entry in (tmp_path / "cache").iterdir())
    assert kinds == ["groups", "pretrained"], "of both runs together"
    assert not list(tmp_path.glob("report*"))
    assert os.environ.get("PYTHONPATH") == python_path
    assert len(set(tokens)) == 2
    assert set(urgency) == {psutil.Process().nice()}
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


@pytest.mark.faults
def test_a_killed_one_is_told_once_and_a_living_one_not():
    lost, calls = threading.Event(), []

    def events():
        calls.append(1)
        lost.set()

    with subprocess.Popen(["sleep", "60"]) as process, watched_raylet(events, poll_s=0.05, name="sleep"):
        assert not lost.wait(0.5)
        process.kill()
        assert lost.wait(10)
    assert len(calls) == 1


def test_a_start_that_ray_gave_up_is_tried_again_aloud_until_patience_ends(monkeypatch, caplog):
    """Whatever else ends a start is not."""
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_engine, "TELL_S", 0.01)
    busy, tries = RuntimeError("The current node timed out during startup."), []

    def start():
        tries.append(time.sleep(0.05))
        if len(tries) < 3:
            raise busy
        return "started"

    def start_patiently(start, patience_s, alive=False):
        return ray_engine.start_patiently(start, patience_s, lambda: alive)

    assert start_patiently(start, 60) == "started"
    assert len(tries) == 3
    assert any("the start of Ray: waited for since" in record.getMessage() for record in caplog.records)
    tries.clear()
    with pytest.raises(EngineError, match=r"within engine\.patience_s, 0\.02 s: the machine is too busy"):
        start_patiently(start, 0.02)
    tries.clear()
    busy = RuntimeError("no such address")
    with pytest.raises(RuntimeError, match="no such address"):
        start_patiently(start, 60)
    assert len(tries) == 1
    looks = []

    def look(address):
        looks.append(address)
        if len(looks) < 4:
            raise RuntimeError("no such node yet")
        return "there"

    monkeypatch.setattr(services, "get_node", look)
    with pytest.raises(RuntimeError, match="no such node yet"):
        start_patiently(lambda: services.get_node("gcs"), 60)
    assert start_patiently(lambda: services.get_node("gcs"), 60, alive=True) == "there"
    assert len(looks) == 4, "one that is alive is looked for until it is there"


def test_none_is_waited_for():
    with watched_raylet(lambda: pytest.fail("there was none"), poll_s=0.01, name="no such process"):
        threading.Event().wait(0.1)


FAULTS = """
import resource, sys, threading
import numpy as np
if sys.argv[1] == "here":
    from simulations.engine.engine import reuse_memory
    reuse_memory()
sizes = [9 << 20, 11 << 20] * 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in sizes:
    first, second = np.empty(size, np.uint8), np.empty(size, np.uint8)
    first[:], second[:] = 1, 2
    del first, second
    if "threads" in sys.argv:  # what this thread freed, the next ones take
        threads = [threading.Thread(target=lambda: np.empty(size, np.uint8).fill(3)) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*how: str) -> int:
    """Pages that the system had to give while 40 pairs of arrays of 2,300 to 2,800 pages were made and freed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    plain["NUMPY_MADVISE_HUGEPAGE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *how],
        env=plain | (WORKERS if "workers" in how else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
@pytest.mark.parametrize("how", ["here", "workers"])
def test_arrays_take_the_place_of_those_before(how):
    assert faults(how) < 0.2 * faults("plain")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")
@pytest.mark.parametrize("how", ["here", "workers"])
def test_threads_share_what_was_freed(how):
    alone = faults(how)
    assert faults(how, "threads") < 1.2 * alone + 1000


FREED = """
import psutil
import numpy as np
from fl_peel.mmap_arrays import release_memory
from simulations.engine.engine import reuse_memory
reuse_memory()
arrays = [np.ones(1 << 20, np.uint8) for _ in range(200)]
last = np.ones(1 << 20, np.uint8)  # above them
del arrays
held = psutil.Process().memory_info().rss
release_memory()
print(held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such function")
def test_between_stages_what_is_free_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150 << 20


def test_what_was_there_before_a_run_is_not_looked_through():
    gc.unfreeze()
    with lasting_objects():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
