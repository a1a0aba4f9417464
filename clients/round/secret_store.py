"""Secrets that devices keep between the stages of a round of secure aggregation: files in the node's folder, gone
afterwards.

One file for each round and user group, readable by its owner alone, since whichever process answers a message must find
it; Flower's context would send secrets to and fro. A real device keeps them in its memory. A run that starts its own
workers gives them a key in their environment, which files are encrypted with: what a killed run leaves cannot be read.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from fl_peel.errors import SecureAggregationError
from fl_peel.secure.keys import Occasion

Arrays = dict[str, NDArray[Any]]
KEYS, SHARED, MASKED = "keys", "shares", "round"
"""The stage that is over."""
KEY_VARIABLE, KEY_BYTES, NONCE_BYTES = "FL_PEEL_SECRETS_KEY", 32, 12
"""The variable of the environment that has the key, in hexadecimal digits; for AES-256-GCM."""


@dataclass(frozen=True)
class SecretStore:
    """The secrets of the devices of one node."""

    folder: Path

    @staticmethod
    def from_node_folder(node_folder: Path) -> SecretStore:
        """Return the store of a node."""
        return SecretStore(node_folder / "secure")

    def save(self, server_round: int, group: int, stage: str, arrays: Arrays) -> None:
        """Keep what a user group's devices know after ``stage``, in place of what they knew before."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(server_round, group)
        part = path.with_suffix(".part")
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, stage=np.array(stage), **arrays)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_sealed(content.getvalue(), path.name))
        part.replace(path)

    def load(self, server_round: int, group: int, stage: str) -> Arrays:
        """Load what :meth:`save` kept after ``stage``.

        Raises:
            SecureAggregationError: that stage is not the last one these devices went through.
        """
        try:
            path = self._path(server_round, group)
            with np.load(io.BytesIO(_opened(path.read_bytes(), path.name))) as content:
                arrays = {name: content[name] for name in content.files}
        except InvalidTag as error:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: their state of this round "
                "was changed, or is of another run"
            ) from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: they have no state of "
                "this round, which has not started or is over; the server repeats a stage, or the node lost its folder"
            ) from error
        done = str(arrays.pop("stage", "none"))
        if done != stage:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: after stage {done} a "
                "different one follows; the server repeats a stage or leaves one out"
            )
        return arrays

    def forget(self, *, but_groups: Iterable[int] = (), of_round: int | None = None) -> None:
        """Remove all secrets, but those of some user groups in one round."""
        kept = {self._path(of_round, group) for group in but_groups} if of_round is not None else set()
        for path in self.folder.glob("*"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, server_round: int, group: int) -> Path:
        return self.folder / f"{server_round}-{group}.npz"


def _sealed(content: bytes, name: str) -> bytes:
    """Return the content of a file of that name: encrypted, where this process has a key."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return content
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(bytes.fromhex(key)).encrypt(nonce, content, name.encode())


def _opened(content: bytes, name: str) -> bytes:
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return content
    if len(content) < NONCE_BYTES:
        raise InvalidTag
    return AESGCM(bytes.fromhex(key)).decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], name.encode())
