"""Block weights: the controller, a small network from per-block features to one weight per block and user group.

PEEL, section III-C: the input of a block is its popularity and loss in the user group, hidden layers and a softmax
turn it into a weight, and the weights are learned in the outer level of a bi-level optimization from the devices'
local validation data. A network shared by all blocks and groups has a few hundred parameters, so it cannot overfit
the way one free parameter per block does.

Departures. (1) The network starts from a good order instead of a random one: the logit of a block is a linear term
in the features, which starts as the logarithm of the block's *shown* rate (how much the group's users are shown it,
an item at rank r counting 1 / log2(r + 1)), plus a network whose output starts at zero. (2) The outer loss: devices
count which blocks served their validation items; given exposure (devices that kept block b), hits are multinomial with
probability proportional to exposure x exp(logit), and its negative log-likelihood is minimized. The gradient by a
logit is the block's expected share of the hits minus its observed share. (3) Where items have several slices, the
network weighs item groups, and how wide rows are is in closed form (:func:`fl_peel.weighting.selectors.of_slices`).
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl_peel.randomness import seed_for
from fl_peel.scenario.settings import ControllerConfig
from fl_peel.training.adam import EagerAdam
from fl_peel.training.workers import fixed_threads
from fl_peel.weighting.block_statistics import BlockStatistics, FloatArray

_THREADS = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: sums of more add up in another order. One user group at a time, for the number is global."""
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _spread_over(groups: Sequence[BlockStatistics], config: ControllerConfig) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation (F,) of each feature over all blocks, as NumPy has them of one array; of hundreds of
    user groups it is the only one.
    """
    sizes = [len(group.loss) for group in groups]
    features = np.empty((sum(sizes), len(config.features)), np.float32)
    first = 0
    for group, size in zip(groups, sizes, strict=True):
        features[first : first + size] = group.features(config.features)
        first += size
    mean: FloatArray = features.mean(axis=0)
    features -= mean
    features *= features
    std: FloatArray = np.sqrt(features.mean(axis=0))
    return mean, std


class Controller(nn.Module):
    """Linear start plus a small network. ``forward`` maps standardized features (B, F) to logits (B,)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, num_features: int, config: ControllerConfig, mean: FloatArray, std: FloatArray, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed_for(seed, "controller") % (1 << 63))
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        widths = [num_features, *config.hidden, 1]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            linear = nn.Linear(wide, narrow)
            with torch.no_grad():
                linear.weight.copy_(torch.randn(narrow, wide, generator=generator) / wide**0.5)
                linear.bias.zero_()
            layers += [linear, nn.Tanh()]
        last = layers[-2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.network = nn.Sequential(*layers[:-1])
        self.start = nn.Parameter(torch.zeros(num_features))
        with torch.no_grad():
            self.start[0] = float(std[0])  # logit = log shown rate, up to a constant
        self._optimizer = EagerAdam(
            [
                {"params": [self.start], "weight_decay": 0.0},
                {"params": self.network.parameters(), "weight_decay": config.weight_decay},
            ],
            lr=config.learning_rate,
            fused=True,  # the square root of the other form is MKL's, and that of a processor
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything as NumPy arrays, the optimizer's moments, too: what a run that was stopped goes on from."""
        moments = self._optimizer.state_dict()["state"]
        return {
            "config": self.config,
            "arrays": {name: tensor.numpy().copy() for name, tensor in self.state_dict().items()},
            "moments": {
                number: {name: tensor.numpy().copy() for name, tensor in moment.items()}
                for number, moment in moments.items()
            },
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state["arrays"]
        self.__init__(len(arrays["start"]), state["config"], arrays["mean"], arrays["std"], 0)  # type: ignore[misc]
        self.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
        moments = {
            number: {name: torch.from_numpy(array.copy()) for name, array in moment.items()}
            for number, moment in state["moments"].items()
        }
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})

    def __deepcopy__(self, memo: dict[int, Any]) -> Controller:
        copied = object.__new__(Controller)
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    @staticmethod
    def for_statistics(groups: Sequence[BlockStatistics], config: ControllerConfig, *, seed: int) -> Controller:
        """A controller whose inputs are standardized over all blocks of all user groups."""
        mean, std = _spread_over(groups, config)
        # a feature that does not vary yet (no loss has been seen) keeps its own scale
        return Controller(len(mean), config, mean, np.where(std > 1e-6, std, 1).astype(np.float32), seed)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,) of blocks with features (B, F)."""
        return self._logits((features - self.mean) / self.std)

    def _logits(self, standard: Tensor) -> Tensor:
        logits: Tensor = standard @ self.start + self.network(standard).squeeze(-1)
        return logits

    def weights(self, statistics: BlockStatistics) -> FloatArray:
        """Softmax over the blocks of a user group, (B,)."""
        with _one_thread(), torch.no_grad():
            logits = self(torch.from_numpy(statistics.features(self.config.features)))
            weights: FloatArray = torch.softmax(logits.double(), dim=0).numpy().astype(np.float32)
        return weights

    def outer_step(self, groups: Sequence[BlockStatistics]) -> float:
        """Adam steps on the validation signals of all groups; returns the mean loss per hit before the last one."""
        data = []
        for group in groups:
            observed = group.exposure > 0
            if group.hits[observed].sum() > 0:
                data.append(
                    (
                        (torch.from_numpy(group.features(self.config.features)[observed]) - self.mean) / self.std,
                        torch.from_numpy(np.log(group.exposure[observed])).float(),
                        torch.from_numpy(group.hits[observed]).float(),
                    )
                )
        if not data:
            return float("nan")
        total = sum(float(hits.sum()) for _, _, hits in data)
        with fixed_threads(1):  # small sums: more threads are slower and may add up in another order
            return self._fit(data, total)

    def _fit(self, data: Sequence[tuple[Tensor, Tensor, Tensor]], total: float) -> float:
        parameters, value = list(self.parameters()), 0.0

        def gradients(group: tuple[Tensor, Tensor, Tensor]) -> tuple[float, tuple[Tensor, ...]]:
            standard, log_exposure, hits = group
            log_share = torch.log_softmax(self._logits(standard) + log_exposure, dim=0)
            loss = -(hits * log_share).sum() / total
            return float(loss.detach()), torch.autograd.grad(loss, parameters)

        with ThreadPoolExecutor(2) as threads:  # groups do not depend on each other, and are added up in their order
            for _ in range(self.config.steps):
                self._optimizer.zero_grad()
                value = 0.0
                for loss, gradient in threads.map(gradients, data):
                    value += loss
                    for parameter, part in zip(parameters, gradient, strict=True):
                        parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)
                self._optimizer.step()
        return value
