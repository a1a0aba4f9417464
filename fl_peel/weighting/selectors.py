"""What ranks the blocks of a user group: the learned controller and the fixed orders it must beat.

A selector maps what the server knows about a group's item groups to one weight for each, which their slices share
(:func:`of_slices`); devices keep the largest that fit (:mod:`fl_peel.blocks.ranked_blocks`). To add one, write a
function of this signature and register it under the entry point group ``fl_peel.selectors``; it is then a value of
``selector`` and of ``evaluation.selectors``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import ranking
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.randomness import rng_for
from fl_peel.scenario.settings import CONTROLLER, SELECTORS
from fl_peel.weighting.block_statistics import BlockStatistics

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller

FloatArray = NDArray[np.floating[Any]]
BlockSelector = Callable[[BlockStatistics, int, int], FloatArray]
"""(statistics of one user group's item groups, seed, user group) -> weights of these, non-negative."""


def popularity(statistics: BlockStatistics, seed: int, user_group: int) -> FloatArray:
    """Train interactions within the user group; more energetic slices first among equals."""
    return _then_by_energy(statistics.popularity, statistics)


def exposure(statistics: BlockStatistics, seed: int, user_group: int) -> FloatArray:
    """Exposure: how often the block's items are in the top lists of the group's users under the pretrained table."""
    return _then_by_energy(statistics.shown, statistics)


def global_popularity(statistics: BlockStatistics, seed: int, user_group: int) -> FloatArray:
    """Train interactions over everybody: nobody personalized."""
    return _then_by_energy(statistics.global_popularity, statistics)


def energy(statistics: BlockStatistics, seed: int, user_group: int) -> FloatArray:
    """Mean squared length of the block's rows (magnitude pruning of whole blocks)."""
    return statistics.energy


def random_blocks(statistics: BlockStatistics, seed: int, user_group: int) -> FloatArray:
    """Uniform random weights, the same in every round."""
    return rng_for(seed, "random-blocks", user_group).random(len(statistics.energy), dtype=np.float32)


def _then_by_energy(rates: NDArray[np.float32], statistics: BlockStatistics) -> NDArray[np.float64]:
    """Rates, ties broken by energy.

    Between two neighbouring float32 numbers lie 2**29 float64 numbers: room for 2**28 steps of energy, so that no rate
    overtakes another.
    """
    exact = rates.astype(np.float64)
    most = float(statistics.energy.max(initial=0))
    if most <= 0:
        return exact
    steps = np.floor(statistics.energy.astype(np.float64) / most * 2.0**28)
    tied: NDArray[np.float64] = exact + np.spacing(exact) * steps
    return tied


_BUILT_IN: dict[str, BlockSelector] = {
    "popularity": popularity,
    "exposure": exposure,
    "global-popularity": global_popularity,
    "energy": energy,
    "random": random_blocks,
}


def block_weights(
    name: str, statistics: BlockStatistics, controller: Controller, *, seed: int, user_group: int
) -> NDArray[np.float64]:
    """Weights (B,) of a user group's blocks, or item groups, under the selector of this name.

    Raises:
        ScenarioError: no such selector, or a plug-in returned something else than one finite weight per block.
    """
    if name == CONTROLLER:
        return controller.weights(statistics).astype(np.float64)
    selector = _BUILT_IN.get(name)
    if selector is None:  # looking for plug-ins reads the metadata of every package installed
        selector = find_selector(name)
    answer = selector(statistics, seed, user_group)
    num_blocks = len(statistics.energy)
    try:
        weights = np.asarray(answer, np.float64)
    except (TypeError, ValueError):
        raise ScenarioError(
            f"selector {name!r} returned a {type(answer).__name__}; it must return one number for each of "
            f"{num_blocks} blocks"
        ) from None
    if weights.shape != (num_blocks,) or not np.isfinite(weights).all():
        raise ScenarioError(
            f"selector {name!r} returned weights of shape {weights.shape}; it must return one finite number for each "
            f"of {num_blocks} blocks"
        )
    return weights


LEAST_FALL = 1e-9
"""Exposure that is added to that of the first of all item groups, so that those which nobody is shown keep an order."""


def of_slices(weights: NDArray[np.float64], shown: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weights (B,) of the slices of item groups. weights: (G,) of these, of which the order counts; shown: (B,)
    exposure of each block, which is divided among slices by their parts in the scores.

    The weight of a slice is its part, times an exposure: of all item groups' exposures the one that has the item
    group's rank. That is how much of what devices are shown it scores, whatever ranks items. On principal axes the
    parts fall from slice to slice. Of powers 0.5 to 16 of the exposure none is better on validation items of ML-100K
    under all budgets (docs/method.md).
    """
    num_groups = len(weights)
    parts = shown.reshape(num_groups, -1).astype(np.float64)
    if parts.shape[1] == 1:
        return weights
    whole = parts.sum(axis=1)
    parts = np.divide(parts, whole[:, None], out=np.full_like(parts, 1 / parts.shape[1]), where=whole[:, None] > 0)
    exposures = np.empty(num_groups)
    exposures[ranking(weights)] = np.sort(whole)[::-1] + LEAST_FALL * np.linspace(1, 0, num_groups, endpoint=False)
    weighted: NDArray[np.float64] = exposures[:, None] * parts
    return weighted.reshape(-1)


def find_selector(name: str) -> BlockSelector:
    """The function of this name, shipped or of an installed package.

    Raises:
        ScenarioError: no selector has this name, it cannot be imported, or it is no function.
    """
    try:
        selector: BlockSelector = SELECTORS.get(name)
    except FieldError as error:
        raise ScenarioError(str(error)) from None
    if not callable(selector):
        raise ScenarioError(
            f"selector {name!r} is a {type(selector).__name__}; register a function of a group's statistics"
        )
    return selector
