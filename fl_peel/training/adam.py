"""Torch's Adam without torch's compiler, whose import takes longer than torch's own and which nothing here uses."""

from __future__ import annotations

import inspect
from typing import Any

import torch

_OWN = torch.optim.Adam


class EagerAdam(torch.optim.Adam):
    """The same steps, to the last bit.

    Torch wraps methods of optimizers to keep its compiler out of them, and imports it to do so.
    """

    add_param_group = inspect.unwrap(_OWN.add_param_group)
    zero_grad = inspect.unwrap(_OWN.zero_grad)
    state_dict = inspect.unwrap(_OWN.state_dict)
    load_state_dict = inspect.unwrap(_OWN.load_state_dict)

    def step(self, closure: Any = None) -> Any:
        """Take a step with the gradients that are there."""
        with torch.no_grad():
            return inspect.unwrap(_OWN.step)(self, closure)
