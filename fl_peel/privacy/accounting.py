"""What a run spends: (epsilon, delta) of every noised release together, by dp-accounting.

Two accountants, of which the tighter counts: Renyi differential privacy (Mironov, CSF 2017) and privacy loss
distributions (Koskela et al., AISTATS 2020), both upper bounds. Noise is calibrated by bisection on the same figure.

A device is in one user group, whose sums are the only ones it is in: releases of different groups compose in parallel
and cost what one group's cost. Rounds compose. What a round releases (updates, signals, counts, the clipping quantile)
are parts of one vector: see :meth:`fl_peel.privacy.mechanisms.Mechanism.of_share`.

Sampling. ``poisson``: each device is in a round by its own coin with probability q, so that each round is a Poisson
subsampled release of that q, for whoever does not see which devices take part. ``fixed``: no amplification is claimed;
the choice of devices does not depend on data, so a device pays for the rounds it is in, and the figure is that of the
device that is in most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fl_peel.errors import ScenarioError
from fl_peel.privacy.mechanisms import Mechanism
from fl_peel.scenario.registered import LARGEST_MULTIPLIER

if TYPE_CHECKING:  # the server alone accounts: nodes start sooner without
    from dp_accounting import DpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

SMALLEST_MULTIPLIER = 0.1
"""Calibration gives no less, even where a target would allow it: such a target protects nobody."""
NO_PRIVACY = 200.0
"""Epsilons beyond this are those of Renyi divergence alone: they protect nobody, to whatever digit."""
TOLERANCE = 1e-3
"""Calibrated noise is at most this much, relatively, above the least that meets the target."""


@dataclass(frozen=True)
class Schedule:
    """How often what is released. rounds: (times, share of a full release) of the different kinds of rounds, summed
    over a device's rounds; sampling: probability of a device's coin, 1 where it is in all of these rounds for certain;
    certain: likewise, of what a device is in whatever its coin says.
    """

    rounds: tuple[tuple[int, float], ...]
    sampling: float = 1.0
    certain: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PrivacyCost:
    """The tighter epsilon at a delta, whose accountant it is of, and both (None: no answer); or infinity."""

    epsilon: float
    delta: float
    accountant: str
    rdp: float | None
    pld: float | None


def event_of(mechanism: Mechanism, multiplier: float, schedule: Schedule) -> DpEvent:
    """All of a run's noised rounds."""
    from dp_accounting import ComposedDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    events: list[DpEvent] = []
    kinds = [(schedule.sampling, kind) for kind in schedule.rounds] + [(1.0, kind) for kind in schedule.certain]
    for sampling, (times, share) in kinds:
        if times == 0 or share == 0:
            continue
        one = mechanism.event(mechanism.of_share(multiplier, share))
        if sampling < 1:
            one = PoissonSampledDpEvent(sampling, one)
        events.append(SelfComposedDpEvent(one, times))
    return ComposedDpEvent(events)


def privacy_cost(event: DpEvent, delta: float, *, discretization: float = 1e-4) -> PrivacyCost:
    """Epsilon of an event at ``delta`` against a neighbour that sends nothing but zeros."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    relation = NeighboringRelation.REPLACE_SPECIAL
    rdp = _epsilon(RdpAccountant(neighboring_relation=relation), event, delta)
    pld = None
    if rdp is None or rdp < NO_PRIVACY:  # the grid of losses would not fit in memory
        pld = _epsilon(PLDAccountant(relation, discretization), event, delta)
    figures = {"RDP": rdp, "PLD": pld}
    known = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    best = min(known, key=lambda name: known[name]) if known else "none"
    return PrivacyCost(known.get(best, math.inf), delta, best, known.get("RDP"), known.get("PLD"))


def cost_of(
    mechanism: Mechanism, multiplier: float, schedule: Schedule, delta: float, *, discretization: float = 1e-4
) -> PrivacyCost:
    """What a run spends: :func:`privacy_cost` of :func:`event_of`; kept, as it takes up to a second."""
    # a plug-in may compare its values without being frozen: then it has no hash to be kept by
    ask = _kept_cost.__wrapped__ if type(mechanism).__hash__ is None else _kept_cost
    return ask(mechanism, multiplier, schedule, delta, discretization)


@lru_cache(maxsize=1024)
def _kept_cost(
    mechanism: Mechanism, multiplier: float, schedule: Schedule, delta: float, discretization: float
) -> PrivacyCost:
    return privacy_cost(event_of(mechanism, multiplier, schedule), delta, discretization=discretization)


def _epsilon(accountant: RdpAccountant | PLDAccountant, event: DpEvent, delta: float) -> float | None:
    if not accountant.supports(event):
        return None
    with _quiet():
        accountant.compose(event)
        return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for every order of Renyi divergence that is left out: the others bound epsilon as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def calibrated(mechanism: Mechanism, schedule: Schedule, epsilon: float, delta: float) -> float:
    """The least noise multiplier, to within ``TOLERANCE``, whose run spends at most ``epsilon`` at ``delta``.

    Raises:
        ScenarioError: no noise that leaves anything meets the target.
    """

    def cost(multiplier: float) -> float:
        # fine enough a grid for the losses of this target: large ones need not be resolved to 1e-4
        step = min(1e-3, max(1e-4, epsilon * 1e-4))
        return cost_of(mechanism, multiplier, schedule, delta, discretization=step).epsilon

    low, high = SMALLEST_MULTIPLIER, 1.0
    while cost(high) > epsilon:
        low, high = high, min(4 * high, LARGEST_MULTIPLIER)
        if low == LARGEST_MULTIPLIER:
            raise ScenarioError(
                f"privacy.target_epsilon: {epsilon:g} at delta {delta:g} cannot be met over the rounds of this run "
                f"with noise below {LARGEST_MULTIPLIER:g} times the clipping bound; raise it, or lower "
                "refinement.rounds"
            )
    if low == SMALLEST_MULTIPLIER and cost(high / 4) <= epsilon:
        high /= 4
    low = max(low, high / 4)
    while high / low > 1 + TOLERANCE:
        middle = math.sqrt(low * high)
        if cost(middle) > epsilon:
            low = middle
        else:
            high = middle
    return high
