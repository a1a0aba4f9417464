"""How a device trains, and where. Imports no torch: the scenario's keys are read with it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_peel.errors import ScenarioError

if TYPE_CHECKING:
    import torch


TORCH_CPU = "torch-cpu"
"""Device name for GPU training computed by the processor: slow, for tests."""


def check_device_name(device: str) -> str:
    """Return the name of a device after checking it.

    Raises:
        ScenarioError: there is no such device.
    """
    if not re.fullmatch(rf"cpu|{TORCH_CPU}|cuda(:\d+)?", device):
        raise ScenarioError(f"device {device!r} is unknown; use cpu, cuda, cuda:N or {TORCH_CPU}")
    return device


def is_gpu(device: str) -> bool:
    """Return whether the device is a GPU."""
    return device.startswith("cuda")


LocalLoss = Literal["bpr", "sampled-softmax"]


@dataclass(frozen=True)
class LocalTraining:
    """Settings of a device's local training.

    max_norm: bound of one device's block update, infinite for none; clip_blocks: instead, each of the K blocks sent is
    bounded by max_norm / sqrt(K), so that all together are bounded as well; clip_l1: norms are L1 (then max_norm / K).
    """

    epochs: int = 1
    batch_size: int = 64
    num_negatives: int = 1
    learning_rate: float = 0.05
    user_learning_rate: float = 0.05
    l2: float = 0.0
    loss: LocalLoss = "bpr"
    temperature: float = 1.0
    max_norm: float = float("inf")
    clip_blocks: bool = False
    clip_l1: bool = False

    def bound(self, num_blocks: int) -> float:
        """Return the bound on what is clipped as one: the update, or each of the ``num_blocks`` blocks sent."""
        if not self.clip_blocks:
            return self.max_norm
        return self.max_norm / (num_blocks if self.clip_l1 else math.sqrt(num_blocks))


# ---- Where cohorts compute: compiled loops on the processor, or torch on a GPU. The values of ``engine.device``
# Torch is imported where it is needed: that a device is ``cpu`` is known without.


def require_device(device: str) -> str:
    """The device, if it is here.

    Raises:
        ScenarioError: no such device, or a GPU that torch does not find on this machine.
    """
    check_device_name(device)
    if is_gpu(device):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            here = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
            raise ScenarioError(f"engine.device: torch finds {here} for {device!r} on this machine; use cpu")
    return device


def torch_device(device: str) -> torch.device | None:
    """Where torch trains and ranks cohorts; None where the compiled loops do, on ``cpu``.

    Raises:
        ScenarioError: as for :func:`require_device`.
    """
    require_device(device)
    if device == "cpu":
        return None

    import torch

    return torch.device(pretraining_device(device))


def pretraining_device(device: str) -> str:
    """Torch's own name of the device, on which the server pretrains."""
    return "cpu" if device == TORCH_CPU else device
