"""Attacks on stage 1 by devices: what counts, passes, the choice of the filter, user groups and moments say.

In the clear a device's messages name its items outright, and its user group; its vector is a sum of rows of its items,
which the server knows, so that the vector alone tells items, too. Where sums are all that is seen, the same is tried on
the sums: they are alike for all of their devices, and so must the scores be.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_peel.attacks.base import Attack, Secret, Stage
from fl_peel.attacks.row_attacks import scaled
from fl_peel.attacks.views import DeviceView, FloatArray, IntArray, StepView
from fl_peel.steps.choice import spread_of
from fl_peel.steps.units import inverse_power

RIDGE = 1e-6
"""Ridge by which a vector is solved for its rows, as a share of the largest squared length of the rows' directions."""
SUREST = 0.98
"""Share of wins that counts as certain at most: few validation items are few coins."""


def contributed_items(view: DeviceView) -> FloatArray:
    """Return the sum of what a device contributes to counts and moments, by item (I,)."""
    total = np.zeros(view.num_items)
    for one in (*view.of_step("counts"), *view.of_step("moments")):
        if "items" in one.reply:
            total += one.reply["items"].reshape(-1, view.num_items).sum(axis=0)
    return total


class _Stage1Attack(Attack):
    """Base class of attacks that read steps of stage 1."""

    stage: ClassVar[Stage] = "stage 1"
    secret: ClassVar[Secret] = "train items"


class Stage1Rows(_Stage1Attack):
    """Inference of items from counts, alone or in a user group, and from rows to which a pass adds anything."""

    name: ClassVar[str] = "stage1-rows"

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Sum over steps, each on the scale of the device's own."""
        total = scaled(contributed_items(view))
        for one in view.of_step("pass"):
            norms = one.reply.get("norms")
            if norms is not None:
                place = one.sent["place"]
                total = total + scaled(norms[np.abs(place) - 1] if len(place) else norms)
        return total[candidates]


class Stage1Vector(_Stage1Attack):
    """Inference of items from the device's vector, solved by least squares for the rows that it may be a sum of."""

    name: ClassVar[str] = "stage1-vector"

    def __init__(self) -> None:
        self._own: FloatArray | None = None
        self._parts: FloatArray = np.zeros((0, 0))

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return how much of each item's row is in the vector, or in the sum of vectors."""
        total = np.zeros(view.num_items)
        rows = next((one.sent["own"] for one in view.of_step("vectors")), None)
        for one in view.of_step("moments"):
            if rows is not None and "first" in one.reply:
                total += scaled(self._apart(rows) @ one.reply["first"].sum(axis=0))
        return total[candidates]

    def _apart(self, own: FloatArray) -> FloatArray:
        """Return the matrix (I, K) from a vector to shares of rows. Devices have the same rows, so it is cached."""
        if self._own is not own:
            wide = own.astype(np.float64)
            squares = wide.T @ wide
            ridge = RIDGE * max(float(np.diag(squares).max(initial=0.0)), 1e-300)
            self._own, self._parts = own, wide @ np.linalg.inv(squares + ridge * np.eye(len(squares)))
        return self._parts


class Stage1Choice(_Stage1Attack):
    """Inference of items from the filters under which validation items win, compared with those under which each would
    have.
    """

    name: ClassVar[str] = "stage1-choice"
    secret: ClassVar[Secret] = "validation items"

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return the mean log likelihood ratio over filters of "one of the items that won so often" to "any item"."""
        total = np.zeros(view.num_items)
        for one in view.of_step("choice"):
            if one.reply and one.reply["answered"][0] > 0:
                total += self._ratios(one, contributed_items(view))
        return total[candidates]

    @staticmethod
    def _ratios(one: StepView, held: FloatArray) -> FloatArray:
        sent, rates = one.sent, one.reply["won"] / one.reply["answered"][0]
        directions, counts, drawn = sent["directions"].astype(np.float64), sent["counts"], sent["drawn"]
        # the device's vector, of the items it is known to have
        base = (held > 0) @ (inverse_power(counts, float(sent["item_exponent"][0]))[:, None] * directions)
        ratios, choices = np.zeros(len(held)), 0
        known = counts > 0
        for rate, count, value in zip(rates, sent["count_exponents"], sent["value_exponents"], strict=True):
            scores = inverse_power(counts, -float(count)) * (
                directions @ (base * spread_of(sent["values"], float(value)))
            )
            rivals = np.sort(scores[drawn[held[drawn] == 0]])[::-1]
            if not len(rivals):
                continue
            wins = scores >= rivals[min(int(sent["place"][0]), len(rivals)) - 1]
            usual = float(wins[known].mean())
            rate, usual = (float(np.clip(share, 1 - SUREST, SUREST)) for share in (rate, usual))
            ratios += np.where(wins, np.log(rate / usual), np.log((1 - rate) / (1 - usual)))
            choices += 1
        return ratios / max(choices, 1)


class Stage1Group(_Stage1Attack):
    """Inference of the user group: the one to whose moments the device contributes."""

    name: ClassVar[str] = "stage1-group"
    secret: ClassVar[Secret] = "user group"

    def scores(self, view: DeviceView, candidates: IntArray, seed: int) -> FloatArray:
        """Return the number of contributing devices in each group, from the replies that include this device."""
        total = np.zeros(len(candidates))
        for one in view.of_step("moments"):
            if "sizes" in one.reply:
                inside = candidates < len(one.reply["sizes"])
                total[inside] += one.reply["sizes"][candidates[inside]]
        return total
