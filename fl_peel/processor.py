"""Where cohorts compute: compiled loops on the processor, or torch on a GPU. The values of ``engine.device``."""

from __future__ import annotations

import re

import torch

from fl_peel.errors import ScenarioError

TORCH_CPU = "torch-cpu"
"""What a GPU would do, done by the processor: slow, for tests."""


def check_device_name(device: str) -> str:
    """The name, if it is one.

    Raises:
        ScenarioError: it is not.
    """
    if not re.fullmatch(rf"cpu|{TORCH_CPU}|cuda(:\d+)?", device):
        raise ScenarioError(f"device {device!r} is unknown; use cpu, cuda, cuda:N or {TORCH_CPU}")
    return device


def is_gpu(device: str) -> bool:
    """Whether the device is a GPU."""
    return device.startswith("cuda")


def require_device(device: str) -> str:
    """The device, if it is here.

    Raises:
        ScenarioError: no such device, or a GPU that torch does not find on this machine.
    """
    check_device_name(device)
    if is_gpu(device):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= found:
            here = f"{found} GPU{'s' if found > 1 else ''}" if found else "no GPU"
            raise ScenarioError(f"engine.device: torch finds {here} for {device!r} on this machine; use cpu")
    return device


def torch_device(device: str) -> torch.device | None:
    """Where torch trains and ranks cohorts; None where the compiled loops do, on ``cpu``.

    Raises:
        ScenarioError: as for :func:`require_device`.
    """
    require_device(device)
    return None if device == "cpu" else torch.device(pretraining_device(device))


def pretraining_device(device: str) -> str:
    """Torch's own name of the device, on which the server pretrains."""
    return "cpu" if device == TORCH_CPU else device


__all__ = ["TORCH_CPU", "check_device_name", "is_gpu", "pretraining_device", "require_device", "torch_device"]
