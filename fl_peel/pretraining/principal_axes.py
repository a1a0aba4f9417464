"""Principal axes of user groups: columns in the order of what they add to the scores of the group's devices.

With user embeddings P (N, d) and item rows V (I, d), scores are P V^T. The best approximation by c columns is that of
the leading singular vectors, whatever c is (Eckart and Young, 1936). With M = V^T V / I and C = P^T P / N, these follow
from the eigenvectors B of M^(1/2) C M^(1/2), of eigenvalues L: users are P M^(1/2) B S and rows V M^(-1/2) B S^(-1).
Scores stay as they are. S = c L^(-1/4) gives users and rows half of each column's energy, so that rows are coded well,
and c leaves users as long as they were. Tables from sums (:mod:`fl_peel.pretraining.spectral_steps`) are of such
columns from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
LEAST = 1e-3
"""Smallest eigenvalue that counts, as a share of the mean one: a small group has no users in most directions."""


@dataclass(frozen=True)
class Axes:
    """Maps of each user group onto its principal axes: users (G, d, d) of its devices' embeddings, rows (G, d, d) of
    its item table.
    """

    users: Floats
    rows: Floats

    @staticmethod
    def from_embeddings(embeddings: Floats, groups: NDArray[np.integer], num_groups: int, items: Floats) -> Axes:
        """Return the axes of user groups. embeddings: (U, d) of users; groups: (U,) their groups, -1 for users that do
        not count; items: (I, d) rows of all groups.
        """
        wide = items.astype(np.float64)
        root, inverse = _roots(wide.T @ wide / len(wide))
        users, rows = np.empty((2, num_groups, *root.shape), np.float32)
        for group in range(num_groups):
            mine = embeddings[groups == group].astype(np.float64)
            moments = mine.T @ mine / max(len(mine), 1)
            values, turn = np.linalg.eigh(root @ moments @ root)
            values, turn = values[::-1], turn[:, ::-1]
            turn = turn * np.where(turn[np.abs(turn).argmax(axis=0), np.arange(len(values))] < 0, -1.0, 1.0)
            values = np.maximum(values, max(LEAST * float(values.mean()), 1e-30))
            length = np.sqrt(np.trace(moments) / np.sqrt(values).sum()) or 1.0
            scale = length * values**-0.25
            users[group], rows[group] = root @ turn * scale, inverse @ turn / scale
        return Axes(users, rows)


def _roots(moments: Doubles) -> tuple[Doubles, Doubles]:
    """Return the square root of a symmetric matrix (d, d), and its inverse."""
    values, basis = np.linalg.eigh(moments)
    roots = np.sqrt(np.maximum(values, max(LEAST**2 * float(values.mean()), 1e-30)))
    return basis * roots @ basis.T, basis / roots @ basis.T


def turned(embeddings: Floats, groups: NDArray[np.integer], maps: Floats) -> Floats:
    """Return user embeddings (N, d) of devices in these user groups (N,) on the axes of theirs. maps: (G, d, d). One
    after the other, so that no device's embedding depends on who else is there.
    """
    result = np.empty_like(embeddings)
    for place, group in enumerate(groups.tolist()):
        result[place] = embeddings[place].astype(np.float64) @ maps[group].astype(np.float64)
    return result
