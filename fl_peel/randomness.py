"""Randomness derived from identity, so that order of arrival, workers and nodes cannot matter.

A stream is named by the run's seed and what it is for: ``rng_for(seed, "local-training", round, device)``.
For many devices at once, :func:`device_uniforms` gives each device its own number from the same kind of name,
without building a generator per device.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def seed_for(seed: int, *identity: str | int) -> int:
    """Derive a 64-bit seed from the run's seed and the name of what it is for."""
    text = "/".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in identity)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rng_for(seed: int, *identity: str | int) -> np.random.Generator:
    """Return the generator that belongs to this name, e.g. ``rng_for(seed, "sampling", server_round)``."""
    return np.random.default_rng(seed_for(seed, *identity))


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers (the finalizer of SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = (values ^ (values >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def device_seeds(seed: int, *identity: str | int, devices: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One 64-bit seed per device id, shape (N,): a function of the name and the id alone."""
    base = np.uint64(seed_for(seed, *identity))
    with np.errstate(over="ignore"):
        return mix64(base + _GOLDEN * (devices.astype(np.uint64) + np.uint64(1)))


def device_uniforms(seed: int, *identity: str | int, devices: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return one number in [0, 1) per device id, shape (N,)."""
    return (device_seeds(seed, *identity, devices=devices) >> np.uint64(11)).astype(np.float64) * 2.0**-53
