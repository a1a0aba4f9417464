"""A deployment on this machine: SuperLink and SuperNodes as processes, and a run on them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

import fl_peel
from clients.node.masked import FILE_KEY_BYTES, KEY_VARIABLE
from fl_peel.data.readers import read_interactions
from fl_peel.errors import EngineError, ScenarioError
from fl_peel.files import OWNED, owned_folder, remove_abandoned
from fl_peel.scenario.scenario import Scenario
from simulations.deployment.keys import KeyFolder, make_keys
from simulations.engine.inputs import data_folder, given_folder
from simulations.scenario_files import RunOptions

HOST = "127.0.0.1"
CONNECTION = "deployed"
"""Name of the SuperLink in the configuration of ``flwr``."""
START_S = 60.0
"""Seconds that a SuperLink may take to listen."""
END_S = 10.0
"""Seconds that a process has to end in, once it was asked to."""
Config = Mapping[str, str | int | float | bool]


@dataclass
class Deployment:
    """The running processes. home: Flower's folder, of this deployment alone; node_configs: configuration of each
    SuperNode.
    """

    home: Path
    node_configs: Sequence[Config]
    keys: KeyFolder | None
    port: int
    environment: Mapping[str, str]
    _nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start_node(self, number: int) -> None:
        words = [*_program("flower-supernode"), "--superlink", self.address, "--host", HOST, "--port", str(free_port())]
        words += ["--node-config", _flat(self.node_configs[number])]
        if self.keys is None:
            words.append("--insecure")
        else:
            words += ["--root-certificates", str(self.keys.authority)]
            words += ["--auth-supernode-private-key", str(self.keys.node(number))]
        secret = {KEY_VARIABLE: secrets.token_hex(FILE_KEY_BYTES)}
        self._nodes[number] = self._start(f"node-{number}", words, secret)

    def flwr(self, *words: str, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """Return the output of one of Flower's commands about this deployment."""
        return subprocess.run(
            [*_program("flwr"), *words],
            env=dict(self.environment),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(self, app: Path, config: Config, on_line: Callable[[str], None], limit_s: float | None = None) -> None:
        """Run the app in ``app``, until it is over. on_line: gets every line of the server's side; limit_s:
        after so long all processes are ended.

        Raises:
            EngineError: it failed, with Flower's word for why, or was ended.
        """
        words = [*_program("flwr"), "run", str(app), CONNECTION, "--stream", "--run-config", _flat(config)]
        with (
            subprocess.Popen(
                words,
                env=dict(self.environment),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as running,
            _ended_after(limit_s, self.home) as ended,
        ):
            assert running.stdout is not None, "it was asked for"
            try:
                for line in running.stdout:
                    on_line(line.rstrip("\n"))
            except BaseException:  # Ctrl-C, SIGTERM, or whoever listens: nobody waits for the end
                running.kill()
                raise
        if ended.is_set():
            raise EngineError(f"the run took more than {limit_s:g} s and was ended; raise the limit")
        self._require_done()

    def _require_done(self) -> None:
        """Flower's command ends well whatever came of the run."""
        listing = self.flwr("ls", CONNECTION, "--limit", "1", "--format", "json")
        try:
            (row,) = json.loads(listing.stdout)["runs"]
            status, details = str(row["status"]), str(row["status-details"])
        except (ValueError, KeyError, TypeError) as error:
            text = " ".join((listing.stdout + listing.stderr).split())
            raise EngineError(f"Flower does not report the outcome of the run: {text[-500:]}") from error
        if status != "finished:completed":
            raise EngineError(f"the run is {status}: {details}; see {self.log('superlink')}")

    def log(self, name: str) -> Path:
        """Return the path of a process's log: ``superlink`` (the server's side, too) or ``node-N``."""
        return self.home / f"{name}.log"

    def _start(self, name: str, words: Sequence[str], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                words,
                env={**self.environment, **more},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _start_superlink(self) -> None:
        words = [*_program("flower-superlink"), "--host", HOST, "--port", str(self.port)]
        words.append("--disable-runtime-dependency-installation")
        if self.keys is None:
            words.append("--insecure")
        else:
            words += ["--ssl-ca-certfile", str(self.keys.authority), "--ssl-certfile", str(self.keys.certificate)]
            words += ["--ssl-keyfile", str(self.keys.key), "--enable-supernode-auth"]
        link = self._start("superlink", words, {})
        deadline = time.monotonic() + START_S
        while not _listens(self.port):
            if link.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"the SuperLink did not start; see {self.log('superlink')}")
            time.sleep(0.1)

    def _register(self, number: int) -> None:
        assert self.keys is not None, "without keys nobody is registered"
        public = self.keys.node(number).with_suffix(".pub")
        answer = self.flwr("supernode", "register", str(public), CONNECTION)
        if answer.returncode:
            text = " ".join((answer.stdout + answer.stderr).split())
            raise EngineError(f"SuperNode {number} could not be registered: {text[-500:]}")


@contextmanager
def deployed(home: Path, node_configs: Sequence[Config], *, secure: bool = True) -> Iterator[Deployment]:
    """A SuperLink and SuperNodes, all of which end with the block. home: an empty folder, for Flower's state, keys and
    logs; secure: with TLS, and SuperNodes that prove who they are.

    Raises:
        EngineError: one of them does not start.
    """
    home.mkdir(parents=True, exist_ok=True)
    keys = make_keys(home / "keys", nodes=len(node_configs)) if secure else None
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    deployment = Deployment(home, node_configs, keys, free_port(), environment)
    connection = "insecure = true" if keys is None else f"root-certificates = {json.dumps(str(keys.authority))}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{deployment.address}"\n{connection}\n'
    )
    with guarded(home):
        deployment._start_superlink()
        for number in range(len(node_configs)):
            if keys is not None:
                deployment._register(number)
            deployment.start_node(number)
        yield deployment


@contextmanager
def guarded(home: Path) -> Iterator[None]:
    """All processes of the deployment in ``home`` end with the block, or with this process, however that ends: then its
    folder is removed, too.
    """
    words = [sys.executable, "-m", __name__, str(home)]
    guard = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        end_all(home)
        guard.communicate(b"over")


def _guard(home: Path) -> None:
    """Wait for the process that deployed, which has the other end of standard input, to end without a word; then end
    what is left.
    """
    folder = home.parent if (home.parent / OWNED).exists() else home
    if not sys.stdin.buffer.read():
        end_all(home)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ended_after(limit_s: float | None, home: Path) -> Iterator[threading.Event]:
    """Whatever takes longer loses its processes, which is told."""
    ended = threading.Event()

    def end() -> None:
        ended.set()
        end_all(home)

    if limit_s is None:
        yield ended
        return
    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield ended
    finally:
        timer.cancel()


def end_all(home: Path) -> None:
    """End every process of the deployment in ``home``: whoever was started by one has its environment."""
    ours = _processes(home)
    _end(ours, signal.SIGTERM)
    _end(_processes(home), signal.SIGKILL)


def _processes(home: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def _end(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
    psutil.wait_procs(processes, timeout=END_S)


def free_port() -> int:
    """Return a port of loopback that is free at the moment."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        return int(listening.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        asking.settimeout(1.0)
        return asking.connect_ex((HOST, port)) == 0


def _program(name: str) -> list[str]:
    """Return the path of one of Flower's programs, as installed with this Python.

    Raises:
        EngineError: it was not.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise EngineError(f"{path}: no such program; install flwr where fl-peel is installed")
    return [str(path)]


def _flat(config: Config) -> str:
    """Format a configuration as Flower reads it: ``key=value``, separated by blanks."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))


PREFIX, HOME = "deployed-fl-peel-", "home"
"""Prefix of the name of a deployment's folder, and Flower's own in it."""


def node_configs(scenario: Scenario, *, nodes: int, own: Sequence[Path] = ()) -> list[Config]:
    """Return what SuperNodes are started with. own: data files of theirs, one each, numbered in this order; nodes:
    number of SuperNodes where there are no files, so that each takes its share of the scenario's devices.

    Raises:
        ScenarioError: files and a scenario that do not fit together.
        DataError: a file cannot be read.
    """
    if bool(own) != scenario.data.held_by_nodes:
        raise ScenarioError(
            "--own: nodes have files of their own where the scenario has data.catalogue, and neither data.name nor "
            "data.path; give both or none"
        )
    if not own:
        return [{"partition-id": number, "num-partitions": nodes, "simulated": True} for number in range(nodes)]
    configs: list[Config] = []
    first = 0
    for number, path in enumerate(own):
        place = {"partition-id": number, "num-partitions": len(own)}
        configs.append({**place, "data": str(path.absolute()), "first-device": first})
        first += read_interactions(path, format=scenario.data.format, dialect=scenario.data.dialect).num_users
    return configs


def run_deployed(
    scenario: Scenario,
    configs: Sequence[Config],
    on_line: Callable[[Deployment, str], None],
    options: RunOptions,
    *,
    secure: bool = True,
    limit_s: float | None = None,
) -> None:
    """Start a SuperLink and SuperNodes, run a scenario with absolute paths on them, and end them. on_line: gets every
    line of the server's side, with what runs; options: of these, the folders of data and results; limit_s: after so
    long everything is ended.

    Raises:
        EngineError: one of them did not start, or the run failed, with its last words.
    """
    place = Path(tempfile.gettempdir())
    remove_abandoned(place, PREFIX, lambda folder: end_all(folder / HOME))
    with owned_folder(place, PREFIX) as folder:
        home = folder / HOME
        (folder / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
        if scenario.data.held_by_nodes:  # what devices keep goes with the deployment
            configs = [{**one, "run-dir": f"{folder}/node-{one['partition-id']}"} for one in configs]
        out = given_folder(options.out)
        given = {
            "scenario": f"{folder}/scenario.yaml",
            "data-dir": data_folder(options.data_dir),
            "out": str(out.absolute()) if out else "",
        }
        with deployed(home, configs, secure=secure) as deployment:
            show_line = partial(on_line, deployment)
            try:
                deployment.run(write_app(folder / "app"), given, show_line, limit_s)
            except EngineError as error:
                tail = deployment.log("superlink").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
                for line in tail:
                    show_line(line)
                raise EngineError(str(error).partition("; see ")[0]) from error


# ---- The Flower app of a deployment: the packages as they are installed on each machine, of which nothing is sent


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
serverapp = "fl_peel.server_app:app"
clientapp = "fl_peel.client_app:app"

[tool.flwr.app.config]
scenario = "ml-100k"
num-server-rounds = -1
local-epochs = -1
learning-rate = -1.0
fleet = ""
selector = ""
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
