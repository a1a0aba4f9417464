"""Attacks that read a device's update row by row: which came back, how large, in which direction, what was counted.

A device trains its own items (positives) and sampled others (negatives), so a touched row alone says little where many
negatives are sampled. But the gradient of a row is a multiple of the user embedding, negative for positives and
positive for negatives: all rows of one device's update lie on one line, positives on one side (the observation behind
Yuan et al., WWW 2023, and Chai et al., IEEE Intelligent Systems 2021). Positives get fewer and larger steps.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_peel.attacks.base import Attack, Secret
from fl_peel.attacks.views import DeviceView, FloatArray, IntArray, RoundView


def norms(view: RoundView) -> FloatArray:
    """L2 norm of each row's update, (R,)."""
    length: FloatArray = np.linalg.norm(view.update, axis=1)
    return length


def line(update: FloatArray) -> FloatArray:
    """Place of each row's update on the line through 0 that explains most of it, (R, d) -> (R,).

    Its sign is the one in which fewer rows are positive: a device samples more negatives than it has positives.
    """
    if not update.any():
        return np.zeros(len(update))
    _, vectors = np.linalg.eigh(update.T @ update)  # (d, d), ascending
    along: FloatArray = update @ vectors[:, -1]
    return along if (along > 0).sum() <= (along < 0).sum() else -along


def scaled(values: FloatArray) -> FloatArray:
    """Divided by their root mean square where they are not 0, so that devices share one threshold."""
    some = values[values != 0]
    size = float(np.sqrt(np.mean(some**2))) if len(some) else 0.0
    return values / size if size > 0 else values


class _RowAttack(Attack):
    """Adds up one number for each row over the rounds seen; an item that never was sent scores 0."""

    secret: ClassVar[Secret] = "train items"

    def per_row(self, view: RoundView) -> FloatArray:
        """(R,)."""
        raise NotImplementedError

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Sum over rounds."""
        total = np.zeros(view.num_items)
        for one in view.rounds:
            total[one.items] += self.per_row(one)
        return total[candidates]


class TouchedRows(_RowAttack):
    """Rows that came back changed, the more the likelier: a dummy row is told from a touched one, and a positive, with
    its large step, from a sampled negative.
    """

    name: ClassVar[str] = "touched-rows"

    def per_row(self, view: RoundView) -> FloatArray:
        """Norms on the scale of the device's own."""
        return scaled(norms(view))


class UpdateSign(_RowAttack):
    """Which side of the line that a device's updates lie on."""

    name: ClassVar[str] = "update-sign"
    source: ClassVar[str] = "Chai et al., Secure Federated Matrix Factorization, IEEE Intelligent Systems 2021"

    def per_row(self, view: RoundView) -> FloatArray:
        """Place on the line."""
        return scaled(line(view.update))


class ReportedCounts(_RowAttack):
    """Counts that come beside the update: train interactions of each row."""

    name: ClassVar[str] = "reported-counts"

    def per_row(self, view: RoundView) -> FloatArray:
        """The count, 0 without."""
        counts = view.per_row("row_examples")
        return np.zeros(len(view.items)) if counts is None else counts


class ReportedSignals(_RowAttack):
    """Validation signals of each block: hits come from validation items."""

    name: ClassVar[str] = "reported-signals"
    secret: ClassVar[Secret] = "validation items"

    def per_row(self, view: RoundView) -> FloatArray:
        """Hits of the row's blocks, 0 without."""
        hits = view.per_block("hits")
        if hits is None or len(hits) != len(view.blocks):
            return np.zeros(len(view.items))
        sent = view.position < len(view.blocks)  # (R, S)
        row_hits: FloatArray = np.where(sent, hits[np.where(sent, view.position, 0)], 0.0).sum(axis=1)
        return scaled(row_hits)


__all__ = ["ReportedCounts", "ReportedSignals", "TouchedRows", "UpdateSign", "line", "norms", "scaled"]
