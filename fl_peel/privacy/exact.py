"""Discrete Gaussian and Laplace noise in whole numbers, exactly, from random bits of the operating system.

A sampler of floating-point numbers leaves holes between its numbers, from which noise can be told (Mironov, "On
Significance of the Least Significant Bits for Differential Privacy", CCS 2012). The algorithms here are those of
Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020: rejection from a discrete
Laplace distribution, by coins that come true with probability exp(-x) for a rational x. A coin is a uniform number that
lies below exp(-x) or does not. Doubles tell which wherever it lies further away than they can err (``MARGIN``);
elsewhere more of its bits are drawn, and compared to exp(-x) in as many decimals as it takes. So the distributions are
exact, at the speed of NumPy: about 0.1 microseconds a number. (OpenDP 0.16, a library that has them, takes 12 to 20;
the devices of ``fl-peel run private`` draw 5e8 numbers.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Doubles = NDArray[np.float64]
Rational = tuple[int, int]
"""Numerator and denominator."""

MARGIN = 2.0**-40
"""Distance from exp(-x) beyond which doubles decide on which side of it a number lies: their errors add up to 2^-48."""
LARGEST_SCALE = 1 << 56
"""Largest scale of noise, in units: the largest number that is ever drawn stays within 63 bits."""
KNOWN_BITS = 53
"""Bits of a uniform number that a double holds."""
BATCH = 1 << 15
"""Numbers that are tried at once: enough to vectorize, few enough for a processor's cache."""
_POWERS = np.exp(-np.arange(1.0, 45.0))


class Bits(Protocol):
    """A source of random bits."""

    def words(self, count: int) -> Words:
        """Return independent uniform words, (count,)."""


class SystemBits:
    """Random bits of AES-256 in counter mode under a key of the operating system's randomness, which is kept nowhere
    else.
    """

    def __init__(self) -> None:
        self._stream = Cipher(AES256(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def words(self, count: int) -> Words:
        """See :class:`Bits`."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)


def discrete_laplace(bits: Bits, count: int, scale: int) -> Ints:
    """Return numbers k (count,) with probability proportional to exp(-|k| / scale); 1 <= scale <= ``LARGEST_SCALE``."""
    assert 1 <= scale <= LARGEST_SCALE, scale
    return _collected(count, lambda tries: _laplace(bits, tries, scale))


def discrete_gaussian(bits: Bits, count: int, scale: int) -> Ints:
    """Return numbers k (count,) with probability proportional to exp(-k^2 / (2 scale^2)).

    scale: 1 <= scale <= ``LARGEST_SCALE``.
    """
    assert 1 <= scale <= LARGEST_SCALE, scale
    return _collected(count, lambda tries: _gaussian(bits, tries, scale))


def uniforms(bits: Bits, count: int) -> Doubles:
    """Return numbers in [0, 1), (count,), in steps of 2^-53."""
    return _known(bits.words(count))


def _collected(count: int, tried: Callable[[int], Ints]) -> Ints:
    """Enough of what comes out of rejection; more than a third of the tries do."""
    numbers: Ints = np.empty(count, np.int64)
    done = 0
    while done < count:
        some = tried(min(BATCH, 5 * (count - done) // 2 + 8))[: count - done]
        numbers[done : done + len(some)] = some
        done += len(some)
    return numbers


def _laplace(bits: Bits, tries: int, scale: int) -> Ints:
    """A number below ``scale``, kept with probability exp(-number / scale), and ``scale`` for each coin of exp(-1)."""
    below = bits.words(tries) & np.uint64((1 << (scale - 1).bit_length()) - 1)
    below = below[below < scale].astype(np.int64)
    below = below[_comes_true(bits, below / scale, lambda i: (int(below[i]), scale))]
    words = bits.words(len(below))
    sizes = below + scale * _times(bits, words)
    negative = (words & np.uint64(1)) == 1  # no bit of a uniform number's
    numbers: Ints = np.where(negative, -sizes, sizes)[(sizes > 0) | ~negative]
    return numbers


def _gaussian(bits: Bits, tries: int, scale: int) -> Ints:
    """Discrete Laplace numbers, of scale t near s, kept with probability exp(-(|k| - s^2 / t)^2 / (2 s^2))."""
    proposal = 1 << max(0, round(float(np.log2(scale))))
    proposed = _laplace(bits, tries, proposal)
    away = np.abs(proposed) / scale - scale / proposal

    def exact(i: int) -> Rational:
        return (abs(int(proposed[i])) * proposal - scale**2) ** 2, 2 * (scale * proposal) ** 2

    return proposed[_comes_true(bits, away * away / 2, exact)]


def _comes_true(bits: Bits, exponents: Doubles, exact: Callable[[int], Rational]) -> NDArray[np.bool_]:
    """Coins (N,) that come true with probability exp(-x). exponents: x, as doubles have it; exact: all of it."""
    words = bits.words(len(exponents))
    known, chance = _known(words), np.exp(-exponents)
    true = known < chance
    for i in np.flatnonzero(np.abs(known - chance) <= MARGIN).tolist():
        true[i] = _Uniform(bits, words[i]).is_below(*exact(i))
    return true


def _times(bits: Bits, words: Words) -> Ints:
    """How many coins of exp(-1) come true before one does not, (N,): the k with exp(-k - 1) <= uniform < exp(-k)."""
    known = _known(words)
    times, fewest = (np.searchsorted(-_POWERS, -known - sign * MARGIN) for sign in (0.0, 1.0))
    for i in np.flatnonzero(fewest != np.searchsorted(-_POWERS, -known + MARGIN)).tolist():
        uniform, times[i] = _Uniform(bits, words[i]), 0
        while uniform.is_below(int(times[i]) + 1, 1):
            times[i] += 1
    return times.astype(np.int64)


def _known(words: Words) -> Doubles:
    return (words >> np.uint64(64 - KNOWN_BITS)).astype(np.float64) * 2.0**-KNOWN_BITS


class _Uniform:
    """A uniform number in [0, 1) of which only the first bits are drawn, as many as somebody asked for."""

    def __init__(self, bits: Bits, word: np.uint64) -> None:
        self._bits, self._top, self._length = bits, int(word) >> (64 - KNOWN_BITS), KNOWN_BITS

    def is_below(self, over: int, under: int) -> bool:
        """Return whether the number is below exp(-over / under)."""
        while True:
            low, high = between(over, under, digits=10 + self._length // 3)
            if self._top + 1 <= low * 2**self._length:
                return True
            if self._top >= high * 2**self._length:
                return False
            self._top, self._length = (self._top << 64) | int(self._bits.words(1)[0]), self._length + 64


def between(over: int, under: int, *, digits: int) -> tuple[Fraction, Fraction]:
    """Bounds of exp(-over / under), closer with more digits; Python's decimal exponential is rounded correctly."""
    least, most = (
        Context(digits, rounding, MIN_EMIN, MAX_EMAX).divide(Decimal(over), Decimal(under))
        for rounding in (ROUND_FLOOR, ROUND_CEILING)
    )
    near = Context(digits, ROUND_HALF_EVEN, MIN_EMIN, MAX_EMAX)
    low, high = near.next_minus(near.exp(most.copy_negate())), near.next_plus(near.exp(least.copy_negate()))
    return Fraction(low), Fraction(high)
