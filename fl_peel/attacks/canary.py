"""An empirical lower bound of epsilon: what the accountant promises, put to the test with canary devices.

A canary device contributes as much as its bounds allow, in a direction of its own. An observer who knows everything but
whether the canary takes part sees the noised releases of all rounds and decides by the likelihood ratio, the best test
there is. Over many trials with and without the canary, its true and false positive rates bound epsilon from below:
(epsilon, delta) implies TPR <= e^epsilon FPR + delta (Kairouz, Oh and Viswanath, ICML 2015), and Clopper-Pearson
intervals make that hold with confidence (Jagielski, Ullman and Oprea, NeurIPS 2020; Nasr et al., IEEE S&P 2021). The
threshold is chosen on one half of the trials and the rates are measured on the other.

The releases come from the run's own code and plan (:func:`fl_peel.privacy.sources.noise`,
:meth:`fl_peel.privacy.noise_plan.Plan.scale`), so that wrong scales, forgotten rounds or shares that add up to too much
show. What all other devices contribute is a constant that this observer subtracts. Where nothing is noised, it reads
off who takes part: the bound is then as high as that many trials can show.

One run of the audit has the confidence that it says; over many seeds their largest bound is put to the test too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom

from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.release import NamedSums, Part, bounds, released, shapes
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.noise_plan import Plan, in_masked_sums, noise_devices_of
from fl_peel.privacy.sources import SeededNoise, noise, with_noise_shares
from fl_peel.randomness import rng_for
from fl_peel.scenario.scenario import Scenario

FloatArray = NDArray[np.float64]
Ratio = TypeVar("Ratio", float, FloatArray)
NUM_ROWS, DIM, NUM_BLOCKS = 8, 4, 8
"""Sizes of the canary's table: noise is independent in every number, so that a larger table would change nothing."""
ONE_RUN = 1_000_000
"""Number of the run with many canaries, among those of the trials."""
ONE_RUN_CANARIES, GUESSED = 4000, 0.05
"""Canaries of that run, and the share of them that is guessed: few guesses, of which most are right."""
CONFIDENCE = 0.95
MOST_EPSILON = 50.0
"""Largest bound that is looked for: 200 right guesses show at most 4.2 at 95 %."""


@dataclass(frozen=True)
class CanaryOutcome:
    """Result of an audit. epsilon_low: lower bound at ``confidence``, 0 where runs could not be distinguished;
    advantage: TPR - FPR; seeds: number of seeds, of which this is the outcome with the largest bound.
    """

    epsilon_low: float
    advantage: float
    tpr: float
    fpr: float
    trials: int
    confidence: float
    seeds: int = 1


def worst_canary(scenario: Scenario, plan: Plan | None, *, trials: int, seeds: int) -> CanaryOutcome:
    """Return the outcome with the largest bound over so many seeds, each of the same confidence."""
    outcomes = [canary_audit(scenario, plan, trials=trials, seed=scenario.seed + number) for number in range(seeds)]
    return replace(max(outcomes, key=lambda one: one.epsilon_low), seeds=seeds)


def canary_audit(scenario: Scenario, plan: Plan | None, *, trials: int, seed: int) -> CanaryOutcome:
    """Audit a run's plan with ``trials`` runs with a canary and as many without. plan: None where nothing is noised."""
    if plan is None:  # what is left after the subtraction is the canary, or nothing
        return empirical_epsilon(np.zeros(trials), np.ones(trials), scenario.privacy.delta, CONFIDENCE)
    without, present = (
        np.array([_log_ratio(scenario, plan, seed, trial, present=there) for trial in range(trials)])
        for there in (False, True)
    )
    return empirical_epsilon(without, present, scenario.privacy.delta, CONFIDENCE)


def _log_ratio(scenario: Scenario, plan: Plan, seed: int, trial: int, *, present: bool) -> float:
    """Return the log likelihood ratio of "with the canary" to "without", over all releases of one run."""
    limits = bounds(scenario, scenario.privacy.clipping.norm)
    sizes = shapes(GroupShape(NUM_ROWS, 1, DIM, NUM_BLOCKS), plan.shares)
    direction = rng_for(seed, "canary", trial)
    sampling, mechanism = plan.schedule.sampling, plan.mechanism
    total = 0.0
    for scales, drawn in _noised_rounds(scenario, plan, limits, sizes, (seed, trial, int(present))):
        takes_part = present and (sampling >= 1 or direction.random() < sampling)
        ratio = 0.0
        for part, scale in scales.items():
            canary = _canary(direction, part, sizes[part], limits[part], l1=mechanism.norm == "l1")
            without = np.zeros_like(canary) if mechanism.where == "server" else -canary
            seen = drawn[part] / FIXED_POINT + (canary if takes_part else without)
            ratio += float(_part_ratios(seen, canary, without, scale, l1=mechanism.norm == "l1").sum())
        total += _sampled_ratio(ratio, sampling)
    return total


def one_run_audit(scenario: Scenario, plan: Plan, *, seed: int) -> float:
    """Return the lower bound of epsilon of a run in which each of many canary devices takes part with probability 1/2
    (Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023).

    Each canary has a row and a block to itself; parts of a release with fewer numbers than canaries are not looked at.
    Of the canaries, ``GUESSED`` are guessed: those whose likelihood ratio is farthest from 1.
    """
    limits, canaries = bounds(scenario, scenario.privacy.clipping.norm), ONE_RUN_CANARIES
    sizes = shapes(GroupShape(canaries, 1, 1, canaries), plan.shares)
    rng = rng_for(seed, "one-run canaries")
    present = rng.random(canaries) < 0.5
    sampling, l1 = plan.schedule.sampling, plan.mechanism.norm == "l1"
    scores = np.zeros(canaries)
    for scales, drawn in _noised_rounds(scenario, plan, limits, sizes, (seed, ONE_RUN, 0)):
        takes_part = present & (rng.random(canaries) < sampling)
        ratios = np.zeros(canaries)
        for part, scale in scales.items():
            if math.prod(sizes[part]) != canaries:
                continue
            canary = np.full(canaries, limits[part])
            without = np.zeros(canaries) if plan.mechanism.where == "server" else -canary
            seen = drawn[part].reshape(canaries) / FIXED_POINT + np.where(takes_part, canary, without)
            ratios += _part_ratios(seen, canary, without, scale, l1=l1)
        scores += _sampled_ratio(ratios, sampling)
    guessed = np.argsort(-np.abs(scores), kind="stable")[: int(canaries * GUESSED)]
    correct = int(((scores[guessed] > 0) == present[guessed]).sum())
    return one_run_epsilon(canaries, len(guessed), correct, scenario.privacy.delta, CONFIDENCE)


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
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


def _noised_rounds(
    scenario: Scenario,
    plan: Plan,
    limits: dict[Part, float],
    sizes: dict[Part, tuple[int, ...]],
    what: tuple[int, int, int],
) -> Iterator[tuple[dict[Part, float], NamedSums]]:
    """Yield the scale of every released part, and its noise, round by round. what: as :func:`_drawn`, but the round."""
    server_round = 0
    for times, share in plan.schedule.rounds:
        parts = released(plan.shares, signals=share >= 1.0)
        scales = {part: plan.scale(part, limits[part]) for part in parts}
        for _ in range(times):
            server_round += 1
            yield scales, _drawn(scenario, plan, limits, scales, sizes, (*what, server_round))


def _drawn(
    scenario: Scenario,
    plan: Plan,
    limits: dict[Part, float],
    scales: dict[Part, float],
    sizes: dict[Part, tuple[int, ...]],
    what: tuple[int, int, int, int],
) -> NamedSums:
    """Return the noise of one round; where devices add it in shares, that of the smallest sum that may be opened.
    what: the seed, the trial, whether the canary is present, and the round.
    """
    seed, *rest = what
    if not in_masked_sums(scenario, plan.mechanism):
        return noise(plan.mechanism, scales, sizes, ("canary-noise", *rest), SeededNoise(seed))
    fewest = noise_devices_of(scenario, scenario.secure_aggregation.min_devices)
    stds = {part: plan.std(part, limits[part]) for part in scales}
    trial, present, server_round = rest
    devices = np.arange(fewest) + fewest * (2 * trial + present)
    nothing = NamedSums({part: np.zeros(sizes[part], np.int64) for part in scales})
    return with_noise_shares(nothing, stds, fewest, SeededNoise(seed), server_round, devices)


def _canary(rng: np.random.Generator, part: Part, shape: tuple[int, ...], bound: float, *, l1: bool) -> FloatArray:
    """Return a contribution that uses all of its bound: in a random direction, or (L1) in one random place."""
    canary = np.zeros(math.prod(shape))
    if l1:
        canary[rng.integers(len(canary))] = bound
        return canary.reshape(shape)
    canary[:] = rng.normal(size=len(canary))
    return (canary * (bound / np.linalg.norm(canary))).reshape(shape)


def _part_ratios(seen: FloatArray, canary: FloatArray, without: FloatArray, scale: float, *, l1: bool) -> FloatArray:
    """Return the log likelihood ratio of every number of a part."""
    if l1:  # Laplace: density exp(-|x| / b)
        return (np.abs(seen - without) - np.abs(seen - canary)) / scale
    ratios: FloatArray = ((seen - without) ** 2 - (seen - canary) ** 2) / (2 * scale**2)
    return ratios


def _sampled_ratio(ratio: Ratio, sampling: float) -> Ratio:
    """Return the log likelihood ratio of a round in which the canary is drawn with probability ``sampling``."""
    return ratio if sampling >= 1 else np.logaddexp(math.log1p(-sampling), math.log(sampling) + ratio)


def empirical_epsilon(without: FloatArray, present: FloatArray, delta: float, confidence: float) -> CanaryOutcome:
    """Return the bound that statistics of trials without (N,) and with (N,) the canary prove.

    The larger a statistic, the likelier the canary took part. Both directions are tried, each of their two rates with a
    quarter of the error that ``confidence`` leaves.
    """
    half = len(without) // 2
    alpha = (1 - confidence) / 4
    best, rates = 0.0, (0.0, 0.0)
    for sign in (1.0, -1.0):
        quiet, loud = (without, present) if sign > 0 else (-present, -without)
        threshold = _best_threshold(quiet[:half], loud[:half], delta, alpha)
        false, true = int((quiet[half:] > threshold).sum()), int((loud[half:] > threshold).sum())
        bound = _bound(true, false, len(quiet) - half, delta, alpha)
        if sign > 0 or bound > best:
            rates = (true / (len(quiet) - half), false / (len(quiet) - half))
        best = max(best, bound)
    return CanaryOutcome(best, rates[0] - rates[1], *rates, len(without), confidence)


def _bound(true: int, false: int, trials: int, delta: float, alpha: float) -> float:
    """Return ln((TPR - delta) / FPR) with the rates at their Clopper-Pearson limits; 0 where that is below 0."""
    tpr = float(beta.ppf(alpha, true, trials - true + 1)) if true else 0.0
    fpr = float(beta.ppf(1 - alpha, false + 1, trials - false)) if false < trials else 1.0
    return max(0.0, math.log((tpr - delta) / fpr)) if tpr > delta else 0.0


def _best_threshold(quiet: FloatArray, loud: FloatArray, delta: float, alpha: float) -> float:
    candidates = np.quantile(np.concatenate([quiet, loud]), np.linspace(0.01, 0.99, 99))
    values = [_bound(int((loud > t).sum()), int((quiet > t).sum()), len(quiet), delta, alpha) for t in candidates]
    return float(candidates[int(np.argmax(values))])
