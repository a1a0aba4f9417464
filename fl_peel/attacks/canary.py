"""An empirical lower bound of epsilon: what the accountant promises, put to the test with canary devices.

Each of many canary devices takes part in a run or not, by a coin (Steinke, Nasr and Jagielski, "Privacy Auditing with
One (1) Training Run", NeurIPS 2023). One that does contributes as much as its bounds allow, in a number of its own of
everything that is released. An observer who knows everything but the coins sees the noised numbers of stage 1 and of
all rounds, and guesses the coins of which it is surest, by likelihood ratio, the best test there is. Of a run that
keeps (epsilon, delta) only so many guesses are right, but with a small probability: more than that bound epsilon from
below.

The noise comes from the run's own code and plan (:mod:`fl_peel.privacy.sources`,
:class:`fl_peel.privacy.noise_plan.Plan`), so that wrong scales, forgotten rounds or shares that add up to too much
show. Noise is independent in every number; what all other devices contribute is a constant that this observer
subtracts. Where nothing is noised, it reads off who takes part: the bound is then as high as that many guesses can
show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom

from fl_peel.exchange.release import NamedSums, Part, bounds, released
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.noise_plan import Plan, Stage1Scales, in_masked_sums, noise_devices_of
from fl_peel.privacy.sources import SeededNoise, noise, with_noise_shares
from fl_peel.randomness import rng_for
from fl_peel.scenario.scenario import Scenario

FloatArray = NDArray[np.float64]
Bools = NDArray[np.bool_]
CANARIES = 4000
"""Canary devices of a run."""
GUESSED = (0.05, 0.25)
"""Shares of the canaries that are guessed: the fewer, the more are right, and the less they show."""
CONFIDENCE = 0.95
MOST_EPSILON = 50.0
"""Largest bound that is looked for: 1,000 right guesses show at most 5.5."""
EVERYTHING = "everything"
"""Name of the likelihood ratio of all parts together; others are of one part alone, whose noise is small among all."""


def canary_epsilon(scenario: Scenario, plan: Plan | None, *, seed: int) -> float:
    """Return the lower bound of epsilon, at ``CONFIDENCE``, that a run under this plan shows; plan: None where nothing
    is noised.
    """
    rng = rng_for(seed, "canaries")
    present = rng.random(CANARIES) < 0.5
    if plan is None:
        return shown_epsilon({EVERYTHING: np.where(present, 1.0, -1.0)}, present, scenario.privacy.delta)
    scores: dict[str, FloatArray] = {}
    l1, by_server = plan.mechanism.norm == "l1", plan.mechanism.where == "server"
    for one in _releases(scenario, plan, seed):
        takes_part = present & (rng.random(CANARIES) < one.sampling)
        ratios: dict[str, FloatArray] = {EVERYTHING: np.zeros(CANARIES)}
        for part, noise_of_part in one.noise.items():
            canary, scale = one.bounds[part], one.scales[part]
            without = 0.0 if by_server else -canary
            seen = noise_of_part + np.where(takes_part, canary, without)
            if l1:  # Laplace: density exp(-|x| / b)
                ratios[part] = (np.abs(seen - without) - np.abs(seen - canary)) / scale
            else:
                ratios[part] = ((seen - without) ** 2 - (seen - canary) ** 2) / (2 * scale**2)
            ratios[EVERYTHING] = ratios[EVERYTHING] + ratios[part]
        for name, ratio in ratios.items():
            scores[name] = scores.get(name, 0.0) + _sampled(ratio, one.sampling)
    return shown_epsilon(scores, present, scenario.privacy.delta)


def _sampled(ratios: FloatArray, sampling: float) -> FloatArray:
    """Return log likelihood ratios (C,) of a release in which a device takes part with probability ``sampling``."""
    if sampling >= 1:
        return ratios
    mixed: FloatArray = np.logaddexp(math.log1p(-sampling), math.log(sampling) + ratios)
    return mixed


@dataclass(frozen=True)
class _Release:
    """What is released at once, by part. noise: (C,) on the numbers of the canaries; sampling: probability with which a
    device that is there takes part.
    """

    noise: dict[Part, FloatArray]
    scales: dict[Part, float]
    bounds: dict[Part, float]
    sampling: float = 1.0


def _releases(scenario: Scenario, plan: Plan, seed: int) -> Iterator[_Release]:
    """Yield all that a run releases, with as many numbers for every part as there are canaries. Where devices add noise
    in shares, it is that of the smallest sum that may be opened.
    """
    source, shared = SeededNoise(seed), in_masked_sums(scenario, plan.mechanism)
    fewest = noise_devices_of(scenario, scenario.secure_aggregation.min_devices) if shared else 0
    known = Stage1Scales.from_scenario(scenario, plan.multiplier)
    stage1 = replace(known, mechanism=plan.mechanism, source=source)
    for release in plan.stage1:
        part = release.part
        for number in range(release.times):
            shares = [stage1.shared(fewest, number, device) for device in range(fewest)]
            draws = shares if shared else [stage1.whole("canary", number)]
            drawn = np.sum([draw(part, (CANARIES,), 0) for draw in draws], axis=0)
            yield _Release({part: drawn / release.unit}, {part: stage1.scale(part)}, {part: release.bound})
    limits, server_round = bounds(scenario, scenario.privacy.clipping.norm), 0
    for times, share in plan.schedule.rounds:
        parts = released(plan.shares, signals=share >= 1.0)
        sizes: dict[Part, tuple[int, ...]] = dict.fromkeys(parts, (CANARIES,))
        scales = {part: plan.scale(part, limits[part]) for part in parts}
        for _ in range(times):
            server_round += 1
            if shared:
                stds, nothing = {part: plan.std(part, limits[part]) for part in parts}, NamedSums.zeros(sizes)
                sums = with_noise_shares(nothing, stds, fewest, source, server_round, np.arange(fewest))
            else:
                sums = noise(plan.mechanism, scales, sizes, ("canary-noise", server_round), source)
            noised = {part: values / FIXED_POINT for part, values in sums.items()}
            yield _Release(noised, scales, limits, plan.schedule.sampling)


def shown_epsilon(scores: Mapping[str, FloatArray], present: Bools, delta: float) -> float:
    """Return the bound that scores (C,) of canaries prove, of which those at ``present`` (C,) took part: the larger a
    score, the likelier it did; 0: it is as likely as not. The best of several scores and numbers of guesses, each with
    its part of the error that ``CONFIDENCE`` leaves.
    """
    confidence, best = 1 - (1 - CONFIDENCE) / (len(scores) * len(GUESSED)), 0.0
    for one in scores.values():
        right = ((one > 0) == present)[np.argsort(-np.abs(one), kind="stable")]
        for guesses in (max(int(len(one) * share), 1) for share in GUESSED):
            correct = int(right[:guesses].sum())
            best = max(best, guessed_epsilon(len(one), guesses, correct, delta, confidence))
    return best


def guessed_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Return the largest epsilon that so many correct guesses rule out (Steinke et al., theorem 5.2), or 0."""

    def probability(epsilon: float) -> float:
        right = 1.0 / (1.0 + math.exp(-epsilon))
        fewer = np.arange(1, correct + 1)
        sums = np.cumsum(binom.pmf(correct - fewer, guesses, right))
        worst = float((sums / fewer).max(initial=0.0))
        return float(binom.sf(correct - 1, guesses, right)) + 2 * canaries * delta * worst

    if probability(0.0) > 1 - confidence:
        return 0.0
    if probability(MOST_EPSILON) <= 1 - confidence:
        return MOST_EPSILON
    return float(brentq(lambda epsilon: probability(epsilon) - (1 - confidence), 0.0, MOST_EPSILON, xtol=1e-6))
