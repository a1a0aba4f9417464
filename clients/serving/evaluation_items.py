"""Items that devices should be recommended, and items that they should not."""

from __future__ import annotations

import numpy as np

from clients.node.cohort import Cohort
from clients.round.poisoning import malicious, pretended, target_items
from fl_peel.data.interactions import UserItems


def evaluation_items(cohort: Cohort, split: str) -> tuple[UserItems, UserItems]:
    """Return the items that devices should be recommended, and those that they should not, of a split: test,
    validation, or targets of promotion.

    Devices that are malicious under any share of the scenario want nothing, and so do not count.
    """
    scenario, splits = cohort.scenario, cohort.splits
    exclude = (splits.train if split == "validation" else cohort.seen).below(splits.num_items)
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


__all__ = ["evaluation_items"]
