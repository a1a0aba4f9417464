"""Any rival, made anew for every user group, of the item table that PEEL starts the group with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_peel.pretraining.train import fixed_threads
from fl_peel.randomness import rng_for
from fl_peel.ranking.top import MetricSums
from strategies.rivals.base import TOP_N, IntArray, Listed, Material, Option, Request, Rival, Split
from strategies.rivals.quality import Lists, list_sums, means, top_lists

SAMPLE = 5000
"""Devices, by whole user groups, on which settings are compared; all where there are fewer."""


@dataclass(frozen=True)
class PerGroup(Rival):
    """A rival of groups. settings: variants of it with at most one option a request each; for every request one of
    them is chosen on validation, the same for all groups.
    """

    name: str = "per-group"
    settings: tuple[Rival, ...] = ()
    group_aware: ClassVar[bool] = True

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Listed]:
        """One a request, of the setting that validation likes best.

        Raises:
            ValueError: the material does not know what groups start with.
        """
        if material.starts is None:
            raise ValueError(f"{self.name}: the material has no starts of user groups")
        yield from self._served(material, requests)

    def _served(self, material: Material, requests: Sequence[Request]) -> list[Listed]:
        start = time.perf_counter()
        assert material.starts is not None
        members = material.starts.members()
        sample = sample_of_groups(members, material.seed)
        chosen: dict[Request, tuple[float, Rival]] = {}
        tried = dict.fromkeys(requests, 0)
        with fixed_threads(1):  # groups' tables, and what is made of them, do not depend on the machine's threads
            for setting in self.settings:
                sums = _validated(setting, material, [members[group] for group in sample], sample, requests)
                for request, total in sums.items():
                    tried[request] += 1
                    recall = means(total)[f"recall@{TOP_N}"]
                    if request not in chosen or recall > chosen[request][0]:
                        chosen[request] = (recall, setting)
            found = {request: _Everybody(material.splits.num_users) for request in chosen}
            for setting in self.settings:
                mine = [request for request, (_, liked) in chosen.items() if liked is setting]
                if mine:
                    _serve(setting, material, members, mine, found)
        seconds = (time.perf_counter() - start) / max(len(found), 1)
        return [
            Listed(
                request,
                one.lists["validation"],
                one.lists["test"],
                one.stored,
                seconds,
                f"{one.label} (of one group)",
                tried[request],
            )
            for request, one in found.items()
        ]


@dataclass
class _Everybody:
    """What is gathered of all devices for one request, group by group."""

    num_users: int
    label: str = ""
    lists: dict[Split, Lists] = field(default_factory=dict)
    stored: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        self.stored = np.zeros(self.num_users, np.int64)
        self.lists = {
            "validation": np.full((self.num_users, TOP_N), -1, np.int32),
            "test": np.full((self.num_users, TOP_N), -1, np.int32),
        }


def sample_of_groups(members: dict[int, IntArray], seed: int) -> list[int]:
    """Random user groups that hold at least SAMPLE devices together, if there are as many."""
    reached, chosen = 0, []
    for group in rng_for(seed, "per-group-sample").permutation(sorted(members)).tolist():
        if reached >= SAMPLE:
            break
        chosen.append(group)
        reached += len(members[group])
    return chosen


def of_group(material: Material, group: int, members: IntArray) -> Material:
    """What a group's rival starts from: the group's table and its members' data alone."""
    assert material.starts is not None
    return material.of(members).starting_with(material.starts.table(group))


def _validated(
    setting: Rival, material: Material, members: Sequence[IntArray], groups: Sequence[int], requests: Sequence[Request]
) -> dict[Request, MetricSums]:
    """Validation sums over the groups, for the requests that the setting serves in all of them."""

    def one(group: int, mine: IntArray) -> dict[Request, MetricSums]:
        inside = of_group(material, group, mine)
        sums: dict[Request, MetricSums] = {}
        for option in setting.options(inside, requests):
            assert option.request not in sums, f"{setting.name}: two options for one request"
            lists = top_lists(option, inside, "validation") if isinstance(option, Option) else option.validation_lists
            sums[option.request] = list_sums(lists, inside.splits.validation, material.num_items)
        return sums

    with ThreadPoolExecutor(max_workers=2) as pool:  # the compiled loops release the interpreter lock
        parts = list(pool.map(one, groups, members))
    everywhere = set.intersection(*(set(part) for part in parts)) if parts else set()
    totals: dict[Request, MetricSums] = {}
    for request in (r for r in requests if r in everywhere):
        totals[request] = parts[0][request]
        for part in parts[1:]:
            totals[request] = totals[request] + part[request]
    return totals


def _serve(
    setting: Rival,
    material: Material,
    members: dict[int, IntArray],
    requests: Sequence[Request],
    found: dict[Request, _Everybody],
) -> None:
    """Fill in the lists of all groups' devices, for the requests that chose this setting."""

    def one(group: int) -> None:
        mine = members[group]
        inside = of_group(material, group, mine)
        for option in setting.options(inside, requests):
            everybody = found[option.request]
            everybody.stored[mine] = option.stored
            if group == least:
                everybody.label = option.label
            if isinstance(option, Listed):
                everybody.lists["validation"][mine] = option.validation_lists
                everybody.lists["test"][mine] = option.test_lists
            else:
                everybody.lists["validation"][mine] = top_lists(option, inside, "validation")
                everybody.lists["test"][mine] = top_lists(option, inside, "test")

    least = min(members)
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(one, members))


__all__ = ["PerGroup", "of_group", "sample_of_groups"]
