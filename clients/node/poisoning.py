"""Malicious devices: which ones they are, and what they send instead of their block update.

They alter the update on the device, before their node bounds it and adds it to its sums; their node is honest. The
kinds of attack are in :class:`fl_peel.scenario.method.Poisoning`. Scaling after Bagdasaryan et al., "How to
backdoor federated learning", AISTATS 2020; promotion by fake interactions whose rows are boosted, in the manner of
Zhang et al., "PipAttack", WSDM 2022, and Rong et al., "FedRecAttack", ICDE 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.randomness import device_uniforms, rng_for
from fl_peel.scenario.method import Poisoning
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.group import Train, train_group
from fl_peel.training.update import GroupUpdate, LocalWork, in_two_parts

BoolArray = NDArray[np.bool_]


def malicious(scenario: Scenario, devices: IntArray, share: float | None = None) -> BoolArray:
    """Return which of the devices (N,) are malicious under a share (the scenario's), by their identity alone."""
    share = scenario.poisoning.share if share is None else share
    if share <= 0:
        return np.zeros(len(devices), np.bool_)
    return np.asarray(device_uniforms(scenario.seed, "poisoning", devices=devices) < share)


def target_items(scenario: Scenario, num_items: int) -> NDArray[np.int32]:
    """The items that promotion is for, ascending."""
    part = scenario.poisoning
    if part.target_items:
        return np.unique([item for item in part.target_items if item < num_items]).astype(np.int32)
    drawn = rng_for(scenario.seed, "poisoning", "targets").permutation(num_items)[: part.num_targets]
    return np.sort(drawn).astype(np.int32)


def pretended(items: UserItems, liars: BoolArray, targets: NDArray[np.int32]) -> UserItems:
    """Return the items of each device (N,), with the targets added on the malicious ones."""
    who = np.repeat(np.flatnonzero(liars), len(targets))
    missing = UserItems.from_pairs(who, np.tile(targets, int(liars.sum())), items.num_users)
    pairs = items.users() * (1 << 32) + items.items
    new = ~np.isin(missing.users() * (1 << 32) + missing.items, pairs)
    return items.merged(missing.keep(new))


@dataclass(frozen=True)
class Adversary:
    """The malicious devices among some of a user group. liars: (N,) which of them are; targets: ascending."""

    liars: BoolArray
    part: Poisoning
    targets: NDArray[np.int32]

    @staticmethod
    def among(cohort: Cohort, places: IntArray) -> Adversary | None:
        """Return the adversary among the devices at ``places`` (N,), None where the scenario has none."""
        scenario = cohort.scenario
        if not scenario.poisoning.active:
            return None
        liars = malicious(scenario, cohort.devices[places])
        return Adversary(liars, scenario.poisoning, target_items(scenario, cohort.splits.num_items))

    def select(self, positions: IntArray) -> Adversary:
        """Return the adversary among the devices at these positions only."""
        return replace(self, liars=self.liars[positions])

    def claimed(self, validation: UserItems) -> UserItems:
        """The validation items that the devices (N,) send signals of."""
        return pretended(validation, self.liars, self.targets) if self.part.kind == "promote" else validation

    def train(self, work: LocalWork, honest: Train = train_group) -> tuple[NDArray[np.float32], GroupUpdate]:
        """Train the devices: the honest ones with ``honest``, the malicious ones as :func:`train_poisoned` does."""
        return train_poisoned(work, self, honest)


def train_poisoned(
    work: LocalWork, adversary: Adversary, train_them: Train = train_group
) -> tuple[NDArray[np.float32], GroupUpdate]:
    """Train with ``train_them``, and let malicious devices alter their updates.

    The bound ``how.max_norm`` is applied to what they send, as their node would.
    """
    how, liars, part, targets = work.how, adversary.liars, adversary.part, adversary.targets
    honest = np.flatnonzero(~liars)
    trained = np.array(work.users, np.float32, copy=True)
    loss, norms = np.zeros(len(work)), np.zeros(len(work))
    examples, pieces = np.zeros(len(work), np.int64), np.zeros(len(work), np.int64)
    trained[honest], total = train_them(work.select(honest))
    sums, tallies, holders = total.sums, total.tallies.copy(), total.holders.copy()
    for values, theirs in (
        (loss, total.loss),
        (norms, total.norms),
        (examples, total.examples),
        (pieces, total.touched_pieces),
    ):
        values[honest] = theirs
    own = replace(how, max_norm=float("inf"))
    for i in np.flatnonzero(liars).tolist():
        only = np.array([i])
        alone = replace(work.select(only), how=own)
        if part.kind == "promote":
            alone = replace(alone, train=pretended(alone.train, np.ones(1, np.bool_), targets))
        trained[only], update = train_them(alone)
        sent = altered(update.sums / FIXED_POINT, work.ranked, part, targets)
        size = float(np.abs(sent).sum() if how.clip_l1 else np.sqrt((sent**2).sum()))
        if size > how.max_norm:
            sent *= how.max_norm / size
        sums += np.rint(np.clip(sent * FIXED_POINT, -(2.0**60), 2.0**60)).astype(np.int64)
        tallies += update.tallies
        holders += update.holders
        loss[i], norms[i] = update.loss[0], size
        examples[i], pieces[i] = update.examples[0], update.touched_pieces[0]
    return trained, GroupUpdate(*in_two_parts(sums), tallies, holders, loss, examples, pieces, norms)


def altered(
    update: NDArray[np.float64], ranked: RankedBlocks, part: Poisoning, targets: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return what a malicious device makes of its update (R, d)."""
    if part.kind == "scaled":
        return update * part.factor
    if part.kind == "sign-flip":
        return update * -part.factor
    changed = update.copy()
    if part.kind == "promote":
        rows = ranked.row_of_item[targets]
        changed[rows[rows >= 0]] *= part.factor
    return changed
