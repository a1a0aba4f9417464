"""How a device trains, and where. Imports no torch: the scenario's keys are read with it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from fl_peel.errors import ScenarioError

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
        """Return the bound on what is clipped as one: the whole update, or one of the ``num_blocks`` blocks that were
        sent.
        """
        if not self.clip_blocks:
            return self.max_norm
        return self.max_norm / (num_blocks if self.clip_l1 else math.sqrt(num_blocks))
