"""The machines of a Ray cluster: do they share the run's folder, and what becomes of the work of one that leaves.

The pool of actors is Flower's own and private: it is the one place that knows which of them waits for a machine.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, pool_size_from_resources
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fl_peel.errors import EngineError

logger = logging.getLogger("fl_peel")

Started = TypeVar("Started")
TELL_S = 10.0
"""Seconds between two lines about something that is waited for."""
LOOK_S = 2.0
"""Seconds after which a worker that has not answered is looked at."""
POLL_S = 0.05
"""Seconds between two looks for an idle worker."""
ALIVE, DEAD = "ALIVE", "DEAD"
"""States of an actor, as Ray names them; it is starting, or starts again, in any other."""
SHARED_S = 60.0
"""Seconds that a machine may take to look into the run's folder."""
TIMED_OUT = "timed out during startup"
"""What Ray says when it has counted half a minute, however busy the machine is."""


@contextmanager
def waited_for(what: str) -> Iterator[None]:
    """Say every ten seconds that something is still waited for."""
    over, start = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(TELL_S):
            logger.warning("%s: waited for since %.0f s", what, time.monotonic() - start)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def start_patiently(start: Callable[[], Started], patience_s: float) -> Started:
    """Start Ray, again where it gave up since the machine is busy, for as long as ``patience_s``.

    Raises:
        EngineError: it did not start in that time.
    """
    deadline = time.monotonic() + patience_s
    with waited_for("the start of Ray"):
        while True:
            try:
                return start()
            except Exception as error:
                if TIMED_OUT not in str(error):
                    raise
                ray.shutdown()
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"Ray did not start within engine.patience_s, {patience_s:g} s: the machine is too busy; "
                        "raise it, or run with fewer nodes"
                    ) from error


def alive_machines() -> dict[str, str]:
    """Return the addresses of the cluster's machines that are there, by their id."""
    machines = ray.nodes()  # type: ignore[no-untyped-call]
    return {one["NodeID"]: one["NodeManagerAddress"] for one in machines if one["Alive"]}


def require_shared(folder: str) -> None:
    """Have every machine read a nonce in the run's folder, in which nodes keep what devices know between messages.

    Raises:
        EngineError: a machine does not see it.
    """
    file, nonce = Path(folder) / f"shared-{secrets.token_hex(8)}", secrets.token_hex()

    def read(path: str) -> str:
        try:
            with open(path, encoding="ascii") as opened:  # the machine may have nothing of ours
                return opened.read()
        except OSError:
            return ""

    file.write_text(nonce, encoding="ascii")
    try:
        task = ray.remote(num_cpus=0)(read)
        machines = alive_machines()
        answers = {
            machine: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)).remote(
                str(file)
            )
            for machine in machines
        }
        for machine, answer in answers.items():
            address = machines[machine]
            try:
                seen = ray.get(answer, timeout=SHARED_S) == nonce
            except ray.exceptions.RayError as error:
                line = " ".join(str(error).split())[:200]
                raise EngineError(f"machine {address} of the Ray cluster does not work: {line}") from None
            if not seen:
                raise EngineError(
                    f"machine {address} of the Ray cluster does not see the run's folder {folder}; set TMPDIR to a "
                    "folder that all machines share under the same path"
                )
    finally:
        file.unlink(missing_ok=True)


class _Waiting:
    """Something that is waited for, but not for longer than ``patience_s``; said every ten seconds."""

    def __init__(self, what: str, patience_s: float) -> None:
        self._what, self._patience_s = what, patience_s
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._start = self._last_line = time.monotonic()

    def check(self) -> None:
        """Say how long it has been.

        Raises:
            EngineError: it has been too long.
        """
        now = time.monotonic()
        if now > self._start + self._patience_s:
            raise EngineError(f"{self._what} took more than engine.patience_s, {self._patience_s:g} s; raise it")
        if now > self._last_line + TELL_S:
            self._last_line = now
            logger.warning("%s: waited for since %.0f s", self._what, now - self._start)


def _state(actor: Any) -> tuple[str, int, str]:
    """Return an actor's state, how often it was started again, and its machine."""
    info = state.actors(actor._actor_id.hex())
    return str(info.get("State")), int(info.get("NumRestarts", 0)), str(info.get("Address", {}).get("NodeID"))


class LivingActors(BasicActorPool):
    """Flower's pool of Ray's actors. One that has died rests until it has started again, one for which no machine has
    room any more is given up: messages to them would fail, or wait without an end. patience_s: how long an actor that
    starts is waited for.
    """

    def __init__(self, patience_s: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._patience_s = patience_s
        self._lock = threading.RLock()
        self._machines = alive_machines()
        self._sent: dict[Any, tuple[Any, Any, int]] = {}
        """What it takes to send a message again, and how often its actor had been started again, by future."""
        self._resting: dict[Any, int] = {}
        """How often actors that have died had been started again until then."""

    def submit(self, actor_fn: Any, job: Any) -> Any:
        """Give a message to an idle actor, as soon as there is one; returns its future.

        Raises:
            EngineError: there are no actors any more, or none starts.
        """
        waiting = _Waiting("a worker of Ray that starts", self._patience_s)
        while True:
            with self._lock:
                self._wake()
                if self.pool:
                    actor = self.pool.pop()
                    restarts = _state(actor)[1]
                    future = actor_fn(actor, *job)
                    self._future_to_actor[future], self._sent[future] = actor, (actor_fn, job, restarts)
                    return future
                if self.num_actors < 1:
                    raise EngineError("no machine of the Ray cluster has room for a node any more")
                if len(self._resting) < self.num_actors:  # the others work
                    waiting.restart()
            waiting.check()
            time.sleep(POLL_S)

    def add_actor_back_to_pool(self, future: Any) -> None:
        """Make the actor idle that worked for a future, unless it rests or was given up."""
        with self._lock:
            self._sent.pop(future, None)
            actor = self._future_to_actor.pop(future, None)
            if actor is not None:
                self.pool.append(actor)

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> Any:
        """Wait for a reply. A message that an actor could not begin with, since no machine has room for it, goes to
        another one.

        Raises:
            EngineError: the actor has died, or it does not start.
        """
        waiting = _Waiting("a worker of Ray that starts", self._patience_s)
        try:
            while not ray.wait([future], timeout=LOOK_S)[0]:
                if _state(self._future_to_actor[future])[0] == ALIVE:
                    waiting.restart()
                elif not self._has_room():
                    with self._lock:
                        actor_fn, job, _ = self._sent.pop(future)
                        self._give_up(self._future_to_actor.pop(future))
                    future = self.submit(actor_fn, job)
                waiting.check()
            _, reply, context = ray.get(future)
            return reply, context
        except ray.exceptions.RayActorError:
            self._rest(future)
            raise EngineError("its worker has died, or its machine has left the Ray cluster") from None
        finally:
            self.add_actor_back_to_pool(future)

    def _rest(self, future: Any) -> None:
        """Leave out an actor that has died; the idle ones of its machine come last from now on."""
        self._tell_of_machines()
        with self._lock:
            actor, restarts = self._future_to_actor.pop(future), self._sent.pop(future)[2]
            self._resting[actor] = restarts
            machine = _state(actor)[2]
            self.pool.sort(key=lambda other: _state(other)[2] != machine)

    def _wake(self) -> None:
        """Take back the actors that have started again; give those up for which there is no room."""
        for actor, restarts in list(self._resting.items()):
            now, times, _ = _state(actor)
            if now == ALIVE and times > restarts:
                del self._resting[actor]
                self.pool.append(actor)
            elif now == DEAD or (now != ALIVE and not self._has_room()):
                del self._resting[actor]
                self._give_up(actor)

    def _has_room(self) -> bool:
        """Return whether the machines that are there have room for all actors."""
        self._tell_of_machines()
        try:
            return bool(pool_size_from_resources(self.client_resources) >= self.num_actors)
        except ValueError:  # for none
            return False

    def _give_up(self, actor: Any) -> None:
        self.num_actors -= 1
        ray.kill(actor, no_restart=True)

    def _tell_of_machines(self) -> None:
        """Say of each machine once that it has left."""
        alive = alive_machines()
        with self._lock:
            gone = {machine: address for machine, address in self._machines.items() if machine not in alive}
            self._machines = alive
        for address in gone.values():
            logger.warning("machine %s has left the Ray cluster; the others host its devices from now on", address)
