"""Whether the Ray that a run started is still there: without its raylet every message of every round fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

RAYLET = "raylet"
"""Name of the process that keeps a machine's workers."""
POLL_S = 1.0
"""Seconds between two looks for it."""


class RayletWatch:
    """While it is entered, calls ``lost`` once if a raylet that this process started has ended. None need be there."""

    def __init__(self, lost: Callable[[], None], poll_s: float = POLL_S, name: str = RAYLET) -> None:
        self._lost = lost
        self._poll_s = poll_s
        self._name = name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RayletWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        raylet = None
        while not self._over.wait(self._poll_s):
            raylet = raylet or _child(self._name)
            if raylet is not None and not _is_alive(raylet):
                self._lost()
                return


def _child(name: str) -> psutil.Process | None:
    for process in psutil.Process().children():
        try:
            if process.name() == name and _is_alive(process):
                return process
        except psutil.Error:
            continue
    return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


__all__ = ["RayletWatch"]
