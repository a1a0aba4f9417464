"""What the server makes of noised sums of stage 1: free of privacy, as nothing is asked of devices (Dwork & Roth, "The
Algorithmic Foundations of Differential Privacy", 2014, proposition 2.1).

Standard deviations of the noise are known beforehand, but for the number of devices that add it.
"""

from __future__ import annotations

import math

import numpy as np

from fl_peel.steps.moments import Moments
from fl_peel.steps.units import UNIT_SCALE, Doubles, Floats, Ints
from fl_peel.steps.user_groups import GroupSums

CERTAIN = 2.0
"""Standard deviations of noise that an item's count must exceed to be known."""
LEAST_KNOWN = 64
"""Items that are known at least, those with the largest counts."""


def known(counts: Ints, std: float) -> Doubles:
    """Item counts (I,) of bounded sums, zero where noise alone has as much: passes are then over fewer items, and so
    over less noise, and every item that is left out would add more of it than of devices.
    """
    estimates = counts / UNIT_SCALE
    least = float(np.sort(estimates)[-min(LEAST_KNOWN, len(estimates))])
    return np.where((estimates > 0) & (estimates >= min(least, CERTAIN * std)), estimates, 0.0)


def popular_directions(counts: Doubles, columns: int, exponent: float) -> Doubles:
    """Where passes over noised sums begin, (I, min(columns, items that are known)) orthonormal: D^(1 - b), which is
    close to the leading direction, and the directions of the most popular items. Random ones would be nearly orthogonal
    to what devices have, and drown (Hardt and Price, "The Noisy Power Method", NeurIPS 2014).
    """
    order = np.argsort(-counts, kind="stable")[: min(columns, int((counts > 0).sum()))]
    directions = np.zeros((len(counts), len(order)))
    directions[order, np.arange(len(order))] = 1.0
    directions[:, -1] = np.where(counts > 0, counts ** (1.0 - exponent), 0.0)
    basis: Doubles = np.linalg.qr(directions[:, ::-1])[0]
    return basis * (counts > 0)[:, None]


def symmetric(passed: Doubles, directions: Doubles, counts: Doubles) -> Doubles:
    """A pass (I, K) as far as it can be one of a symmetric matrix over known items, which noise is not."""
    block = np.where((counts > 0)[:, None], passed, 0.0)
    inside = directions.T @ block
    return block + directions @ ((inside.T - inside) / 2)


def above_noise(values: Doubles, counts: Doubles, std: float) -> Doubles:
    """Singular values (K,), descending, of a noised pass; zero where noise alone has as much: its norm is about
    std (sqrt(2 K) + sqrt(m - K)) over m known items (Davidson and Szarek, "Local operator theory, random matrices and
    Banach spaces", 2001, section 2.3). The leading one stays.
    """
    items, columns = int((counts > 0).sum()), len(values)
    noise = std * (math.sqrt(2.0 * columns) + math.sqrt(max(items - columns, 0)))
    kept = np.where(values > noise, values, 0.0)
    kept[:1] = values[:1]
    return kept


def moved(centroids: Floats, groups: GroupSums, size_std: float, std: float) -> Floats:
    """Centroids (G, c) after a round of Lloyd's algorithm: each goes towards its mean by as much as is not noise
    (James and Stein, 1961, positive part); where no more devices are than noise has, it stays.
    """
    sizes = groups.sizes / UNIT_SCALE
    some = sizes > np.maximum(2.0 * size_std, 1.0)
    divisor = np.where(some, sizes, 1.0)[:, None]
    step = groups.sums / UNIT_SCALE / divisor - centroids
    noise = centroids.shape[1] * (std / divisor[:, 0]) ** 2
    share = np.maximum(0.0, 1.0 - noise / np.maximum((step * step).sum(axis=1), 1e-300))
    return (centroids + np.where(some, share, 0.0)[:, None] * step).astype(np.float32)


def cleaned(moments: Moments, counts: Doubles, stds: dict[str, float]) -> Moments:
    """A user group's moments as if of devices: a size of at least one, products without negative eigenvalues nor such
    as noise alone has, items shrunk towards the counts (I,) of everybody. stds: by part.
    """
    size = max(1, round(moments.size / UNIT_SCALE))
    products = moments.second / UNIT_SCALE**2
    values, turn = np.linalg.eigh((products + products.T) / 2)
    noise = stds["moment products"] * math.sqrt(2.0 * len(values))  # of a symmetric matrix: Davidson and Szarek
    kept = np.where(values > noise, values, 0.0)
    kept[-1] = max(values[-1], 1.0 / UNIT_SCALE)
    second = np.rint((turn * kept) @ turn.T * UNIT_SCALE**2).astype(np.int64)
    items = shrunk_items(moments.items / UNIT_SCALE, counts, stds["moment items"])
    return Moments(size, moments.first, (second + second.T) // 2, items)


def shrunk_items(items: Doubles, counts: Doubles, std: float) -> Doubles:
    """Item counts (I,) of a user group, between its noised ones and its share of everybody's: an item's own part goes
    with how far counts are from those of everybody beyond noise.
    """
    prior = counts * max(float(items.sum()), 0.0) / max(float(counts.sum()), 1e-300)
    away = items - prior
    beyond = max(0.0, float((away * away).mean()) - std**2)
    return np.maximum(prior + away * (beyond / (beyond + std**2) if beyond else 0.0), 0.0)
