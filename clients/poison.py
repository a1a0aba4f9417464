"""Malicious devices: who they are, and what they send instead of their block update.

They alter the update on the device, before their node bounds it and adds it to its sums; their node is honest. The
kinds of attack are in :class:`fl_peel.config.Poisoning`. Scaling after Bagdasaryan et al., "How to backdoor federated
learning", AISTATS 2020; promotion by fake interactions whose rows are boosted, in the manner of Zhang et al.,
"PipAttack", WSDM 2022, and Rong et al., "FedRecAttack", ICDE 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.cohort import Cohort
from fl_peel.config import Poisoning, Scenario
from fl_peel.interactions import IntArray, UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.local_training import GroupUpdate, LocalTraining, in_two_parts, train_group
from fl_peel.randomness import device_uniforms, rng_for
from fl_peel.selection import RankedBlocks

BoolArray = NDArray[np.bool_]


def malicious(scenario: Scenario, devices: IntArray, share: float | None = None) -> BoolArray:
    """Which of the devices (N,) are malicious under a share, by default the scenario's; a function of the identity."""
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
    """The items of each device (N,), with the targets added on those that lie."""
    who = np.repeat(np.flatnonzero(liars), len(targets))
    missing = UserItems.from_pairs(who, np.tile(targets, int(liars.sum())), items.num_users)
    pairs = items.users() * (1 << 32) + items.items
    new = ~np.isin(missing.users() * (1 << 32) + missing.items, pairs)
    return items.merged(missing.keep(new))


@dataclass(frozen=True)
class Malice:
    """Some devices of a user group among whom are malicious ones: liars (N,); targets, ascending."""

    liars: BoolArray
    part: Poisoning
    targets: NDArray[np.int32]

    @staticmethod
    def among(cohort: Cohort, places: IntArray) -> Malice | None:
        """Of the hosted devices at these places (N,); None where the scenario has no malicious devices."""
        scenario = cohort.scenario
        if not scenario.poisoning.active:
            return None
        liars = malicious(scenario, cohort.devices[places])
        return Malice(liars, scenario.poisoning, target_items(scenario, cohort.splits.num_items))

    def select(self, positions: IntArray) -> Malice:
        """Of some of the devices."""
        return replace(self, liars=self.liars[positions])

    def claimed(self, validation: UserItems) -> UserItems:
        """The validation items that the devices (N,) send signals of."""
        return pretended(validation, self.liars, self.targets) if self.part.kind == "promote" else validation

    def train(
        self,
        ranked: RankedBlocks,
        cutoffs: IntArray,
        users: NDArray[np.float32],
        train: UserItems,
        seeds: NDArray[np.uint64],
        how: LocalTraining,
        device: str = "cpu",
    ) -> tuple[NDArray[np.float32], GroupUpdate]:
        """As :func:`fl_peel.local_training.train_group`."""
        return train_poisoned(ranked, cutoffs, users, train, seeds, how, self.liars, self.part, self.targets, device)


def evaluation_items(cohort: Cohort, split: str) -> tuple[UserItems, UserItems]:
    """What devices should be recommended, and what not, of a split: test, validation, or targets of promotion.

    Devices that are malicious under any share of the scenario want nothing, and so do not count.
    """
    scenario, splits = cohort.scenario, cohort.splits
    exclude = splits.train if split == "validation" else cohort.seen
    share = scenario.poisoning.largest_share
    if split == "targets":
        targets = target_items(scenario, splits.num_items)
        nothing = UserItems(np.zeros(splits.num_users + 1, np.int64), np.zeros(0, np.int32))
        wanted = pretended(nothing, np.ones(splits.num_users, np.bool_), targets)
        known = np.isin(wanted.users() * (1 << 32) + wanted.items, exclude.users() * (1 << 32) + exclude.items)
        wanted = wanted.keep(~known)
    else:
        wanted = splits.test if split == "test" else splits.validation
    if share > 0:
        wanted = wanted.keep(~np.repeat(malicious(scenario, cohort.devices, share), wanted.counts()))
    return wanted, exclude


def train_poisoned(
    ranked: RankedBlocks,
    cutoffs: IntArray,
    users: NDArray[np.float32],
    train: UserItems,
    seeds: NDArray[np.uint64],
    how: LocalTraining,
    liars: BoolArray,
    part: Poisoning,
    targets: NDArray[np.int32],
    device: str = "cpu",
) -> tuple[NDArray[np.float32], GroupUpdate]:
    """As :func:`fl_peel.local_training.train_group`, where the devices ``liars`` (N,) alter their updates.

    The bound ``how.max_norm`` is applied to what they send, as their node would.
    """
    honest = np.flatnonzero(~liars)
    trained = np.array(users, np.float32, copy=True)
    loss, norms = np.zeros(len(users)), np.zeros(len(users))
    examples, pieces = np.zeros(len(users), np.int64), np.zeros(len(users), np.int64)
    trained[honest], total = train_group(
        ranked, cutoffs[honest], users[honest], train.select(honest), seeds[honest], how, device
    )
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
        items = train.select(only)
        if part.kind == "promote":
            items = pretended(items, np.ones(1, np.bool_), targets)
        trained[only], update = train_group(ranked, cutoffs[only], users[only], items, seeds[only], own, device)
        sent = altered(update.sums / FIXED_POINT, ranked, part, targets)
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
    """What a malicious device makes of its update (R, d)."""
    if part.kind == "scaled":
        return update * part.factor
    if part.kind == "sign-flip":
        return update * -part.factor
    changed = update.copy()
    if part.kind == "promote":
        rows = ranked.row_of_item[targets]
        changed[rows[rows >= 0]] *= part.factor
    return changed


__all__ = ["Malice", "altered", "evaluation_items", "malicious", "pretended", "target_items", "train_poisoned"]
