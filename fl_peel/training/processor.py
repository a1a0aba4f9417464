"""Where cohorts compute: compiled loops on the processor, or torch on a GPU. The values of ``engine.device``.

Torch is imported where it is needed: that a device is ``cpu`` is known without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_peel.errors import ScenarioError
from fl_peel.training.settings import TORCH_CPU, check_device_name, is_gpu

if TYPE_CHECKING:
    import torch


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
