"""What do the neighbours of a group's users say about items, and how much of it fits into the group's table?

A table of d columns for everybody has no room for who else went where. One that serves a hundred users has: the scores
that these users' neighbours give to items, regressed on the users' own embeddings, are a correction of d columns that
the group's table can carry. It is found in closed form from the collected interactions; users keep their embeddings.

The scores are the linear part of the graph filter of Shen et al., "How Powerful is Graph Convolution for
Recommendation?" (CIKM 2021, GF-CF): with R the interactions, D_u and D_i the degrees and
R~ = D_u^-1/2 R D_i^-1/2, the rows of R~ R~^T R~ D_i^1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.data.interactions import UserItems

FloatArray = NDArray[np.float32]
CHUNK_USERS = 256
"""Users whose scores of all items are held at a time."""
CHUNK_ROWS, CHUNK_ITEMS = 8, 256
"""Rows of scores, and items, that are computed with in double precision at a time: they stay in a processor's cache."""


@dataclass(frozen=True)
class Neighbourhood:
    """The collected interactions of all users, to be walked from users to items and back."""

    given: UserItems
    num_items: int

    @cached_property
    def _by_item(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Where each item's users start (I + 1,), and the users, ascending."""
        users = np.repeat(np.arange(self.given.num_users, dtype=np.int32), self.given.counts())
        order = np.argsort(self.given.items, kind="stable")
        indptr = np.zeros(self.num_items + 1, np.int64)
        np.cumsum(np.bincount(self.given.items, minlength=self.num_items), out=indptr[1:])
        return indptr, users[order]

    def scores(self, users: NDArray[np.int64]) -> FloatArray:
        """Scores of all items by the neighbours of ``users`` (M,), (M, I); 0 for users without interactions."""
        scores = np.zeros((len(users), self.num_items), np.float32)
        kernels.neighbour_scores(users, self.given.indptr, self.given.items, *self._by_item, scores)
        return scores

    def group_table(
        self,
        table: FloatArray,
        covariance: NDArray[np.float64],
        embeddings: FloatArray,
        users: NDArray[np.int64],
        *,
        weight: float,
        ridge: float,
    ) -> FloatArray:
        """The item table (I, d) of a user group: ``table`` plus the ridge regression of its users' scores.

        With U (M, d) the ``embeddings`` of ``users`` (M,) and X (M, I) their scores, each row scaled to ``weight``
        times the standard deviation of the row of U ``table``^T, this is
        table + ((U^T U + ridge tr(U^T U) / d I)^-1 U^T X)^T. covariance: :func:`item_covariance` of ``table``.
        """
        dim = table.shape[1]
        moment, gram = np.zeros((dim, self.num_items)), np.zeros((dim, dim))
        for start in range(0, len(users), CHUNK_USERS):
            part = embeddings[start : start + CHUNK_USERS].astype(np.float64)
            scores = self.scores(users[start : start + CHUNK_USERS])
            rows = range(0, len(scores), CHUNK_ROWS)
            spread = np.concatenate([scores[row : row + CHUNK_ROWS].std(axis=1, dtype=np.float64) for row in rows])
            # the variance of u . v over items v is u^T C u with C the items' covariance
            own = np.sqrt(np.maximum(np.einsum("ud,ud->u", part @ covariance, part), 0.0))
            scale = np.divide(weight * own, spread, out=np.zeros_like(spread), where=spread > 0)
            moment += (part * scale[:, None]).astype(np.float32).T @ scores
            gram += part.T @ part
        trace = np.trace(gram)
        if trace == 0:
            return table.copy()
        # well conditioned by the ridge; a solver would copy the moment of all items twice, column by column
        inverse = np.linalg.inv(gram + ridge * trace / dim * np.eye(dim))
        change, changed = inverse @ moment, np.empty(table.shape, np.float32)
        for first in range(0, self.num_items, CHUNK_ITEMS):
            some = slice(first, first + CHUNK_ITEMS)
            changed[some] = table[some] + change[:, some].T
        return changed


def item_covariance(table: FloatArray) -> NDArray[np.float64]:
    """Covariance of the columns of an item table (I, d), (d, d)."""
    centred = table - table.mean(axis=0, dtype=np.float64)
    covariance: NDArray[np.float64] = centred.T @ centred / len(table)
    return covariance
