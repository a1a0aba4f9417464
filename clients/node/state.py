"""State that devices keep between rounds: memory-mapped files in their node's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.stored import stored_user
from fl_peel.errors import EngineError

NAMES = ("users", "groups", "kept_blocks", "kept_users")


@dataclass(frozen=True)
class DeviceState:
    """Memory-mapped, one entry per hosted device: users (N, d), as fp16 stores them; groups, kept_blocks (N,) int32;
    kept_users (N, d), likewise, the user embedding that a device goes back to where a refinement is not kept.
    """

    users: NDArray[np.float32]
    groups: NDArray[np.int32]
    kept_blocks: NDArray[np.int32]
    kept_users: NDArray[np.float32]

    @staticmethod
    def open(folder: Path, mode: Literal["r", "r+"]) -> DeviceState:
        """Open the state of the node in ``folder``; mode "r+" to change it.

        Raises:
            EngineError: the node has not joined the run, or what it keeps is damaged.
        """
        try:
            state = DeviceState(*(np.load(folder / f"{name}.npy", mmap_mode=mode) for name in NAMES))
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise EngineError(
                f"{folder}: this node's devices have not joined the run ({why}); start it again"
            ) from error
        users, devices = state.users, state.groups.shape
        shapes = users.shape[:1], state.kept_blocks.shape, state.kept_users.shape[:1]
        if len(devices) != 1 or any(shape != devices for shape in shapes) or state.kept_users.shape != users.shape:
            raise EngineError(f"{folder}: the stored state of this node's devices is damaged; start the run again")
        return state

    @staticmethod
    def create(folder: Path, users: NDArray[np.float32], groups: NDArray[np.int32]) -> None:
        """Write the state devices start with; nothing is kept yet (-1)."""
        DeviceState.begin(folder, len(groups), 0, users, groups)

    @staticmethod
    def begin(
        folder: Path, num_devices: int, first: int, users: NDArray[np.float32], groups: NDArray[np.int32]
    ) -> None:
        """Write the first state of some devices: those from the place ``first`` on, of ``num_devices``. The first part
        makes the files anew.

        Raises:
            EngineError: the parts before it are not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stored, here = stored_user(users), slice(first, first + len(groups))
        parts = {
            "users": stored,
            "groups": groups,
            "kept_blocks": np.full(len(groups), -1, np.int32),
            "kept_users": stored,
        }
        for name, part in parts.items():
            path = folder / f"{name}.npy"
            if here == slice(0, num_devices):
                np.save(path, part)
                continue
            if first == 0:
                np.lib.format.open_memmap(path, "w+", part.dtype, (num_devices, *part.shape[1:]))
            try:
                np.load(path, mmap_mode="r+")[here] = part
            except (OSError, ValueError) as error:
                raise EngineError(
                    f"{path}: devices with smaller numbers have not joined the run; start it again"
                ) from error
