"""A SuperLink and its SuperNodes as processes of this machine, on loopback; none of them outlives the block, nor the
process that is in it: another one waits for its end, and ends what is left.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from clients.round.masked import FILE_KEY_BYTES, KEY_VARIABLE
from fl_peel.errors import EngineError
from fl_peel.file_lock import OWNED
from simulations.deployment.keys import KeyFolder, make_keys

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
        """Return the address of the SuperLink."""
        return f"{HOST}:{self.port}"

    def start_node(self, number: int) -> None:
        """Start a SuperNode."""
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
