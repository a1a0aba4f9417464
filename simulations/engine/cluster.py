"""A Ray cluster that is there already: whether somebody answers at its address, and speaks as Ray does."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import TypeVar

from fl_peel.errors import EngineError

Result = TypeVar("Result")
logger = logging.getLogger("fl_peel")
CONNECT_S = 10.0
"""Seconds that a Ray cluster may take to answer."""


class LostMachineError(EngineError):
    """A machine has left the cluster during a run; the same run may go on on the others."""


def on_remaining_machines(work: Callable[[bool], Result]) -> Result:
    """Return the result of work that goes on from what it has kept; it is started again whenever a machine of a cluster
    has left, so that devices are hosted on others. work: is given whether it starts for the first time.
    """
    first = True
    while True:
        try:
            return work(first)
        except LostMachineError as error:
            logger.warning("%s", error)
            first = False


def require_cluster(address: str) -> None:
    """Look whether a cluster answers at ``host:port`` or ``ray://host:port``; Ray itself would try for many minutes.

    Raises:
        EngineError: that is no address, nobody answers there, or somebody who is no Ray.
    """
    if address == "auto":
        return  # Ray looks for the cluster of this machine, and finds none at once
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535 or "/" in host:
        raise EngineError(
            f"engine.ray_address: {address!r} is not an address of a Ray cluster; write HOST:PORT, ray://HOST:PORT or "
            "auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise EngineError(
            f"engine.ray_address: no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head` or correct the address"
        ) from error
    if os.environ.get("RAY_USE_TLS", "0") in ("0", "", "false"):
        _require_grpc(address, f"{host}:{port}")


def _require_grpc(address: str, target: str) -> None:
    """Whoever listens there must greet as gRPC does: a web server, or one that stays silent, is no Ray."""
    import grpc

    with grpc.insecure_channel(target, (("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_S)
        except grpc.FutureTimeoutError as error:
            raise EngineError(
                f"engine.ray_address: the server at {address} is not a Ray cluster; correct the address"
            ) from error
