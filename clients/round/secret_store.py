"""What devices keep between the stages of a round of secure aggregation: files in the node's folder, gone afterwards.

One file for each round and user group, readable by its owner alone, since whichever process answers a message must find
it; Flower's context would send secrets to and fro. A real device keeps them in its memory.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import SecureAggregationError
from fl_peel.secure.keys import Occasion

Arrays = dict[str, NDArray[Any]]
KEYS, SHARED, MASKED = "keys", "shares", "round"
"""The stage that is over."""


@dataclass(frozen=True)
class SecretStore:
    """The secrets of the devices of one node."""

    folder: Path

    @staticmethod
    def of(node_folder: Path) -> SecretStore:
        """That of a node."""
        return SecretStore(node_folder / "secure")

    def save(self, server_round: int, group: int, stage: str, arrays: Arrays) -> None:
        """Keep what a user group's devices know after ``stage``, in place of what they knew before."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(server_round, group)
        part = path.with_suffix(".part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            np.savez(file, allow_pickle=False, stage=np.array(stage), **arrays)
        part.replace(path)

    def load(self, server_round: int, group: int, stage: str) -> Arrays:
        """What :meth:`save` kept after ``stage``.

        Raises:
            SecureAggregationError: that stage is not the last one these devices went through.
        """
        try:
            with np.load(self._path(server_round, group)) as content:
                arrays = {name: content[name] for name in content.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: they hold nothing of "
                "this round, it has not begun or is over; the server repeats a stage, or the node lost its folder"
            ) from error
        done = str(arrays.pop("stage", "none"))
        if done != stage:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: after stage {done} "
                "comes another one; the server repeats a stage or leaves one out"
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


__all__ = ["KEYS", "MASKED", "SHARED", "SecretStore"]
