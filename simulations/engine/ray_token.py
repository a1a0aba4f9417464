"""A token for the Ray that a run starts: who does not know it can neither join nor run code there.

Ray listens on every interface of the machine, and without a token takes whoever asks.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

TOKEN_BYTES = 32


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment set, and afterwards as they were."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def own_token(address: str | None) -> Iterator[None]:
    """A fresh token for the Ray that is started within; it has ended afterwards, whatever happened.

    address: of a cluster that is there already; it keeps its own setting, as does a Ray that this process has joined.
    """
    import ray

    if address or ray.is_initialized():
        yield
        return
    try:
        with environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(TOKEN_BYTES)):
            _read_again()
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        _read_again()


def _read_again() -> None:
    """Ray reads the environment when it is imported, and keeps the first token: for another, it must look again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


__all__ = ["environment", "own_token"]
