"""Any rival, made anew for every user group, of the item table that PEEL starts the group with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import ClassVar

import numpy as np

from fl_peel.ranking.top import MetricSums
from fl_peel.training.workers import fixed_threads
from strategies.rivals.base import (
    SPLITS,
    TOP_N,
    IntArray,
    ListOption,
    Lists,
    Material,
    Request,
    Rival,
    Split,
    list_sums,
    lists_of,
    means,
    sample_of_groups,
)

SAMPLE = 1000
"""Devices, by whole user groups, on which settings are compared; all where there are fewer."""


@dataclass(frozen=True)
class PerGroup(Rival):
    """A rival of groups. settings: its variants, one option a request at most; validation chooses one for all."""

    name: str = "per-group"
    settings: tuple[Rival, ...] = ()
    group_aware: ClassVar[bool] = True

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[ListOption]:
        """One a request, of the setting that validation likes best.

        Raises:
            ValueError: the material does not know what groups start with.
        """
        if material.starts is None:
            raise ValueError(f"{self.name}: the material has no starts of user groups")
        start = time.perf_counter()
        members = material.starts.members()
        chosen: dict[Request, tuple[float, Rival]] = {}
        tried = dict.fromkeys(requests, 0)
        with fixed_threads(1):  # groups' tables, and what is made of them, do not depend on the machine's threads
            for setting, sums in zip(self.settings, self._validated(material, members, requests), strict=True):
                for request, total in sums.items():
                    tried[request] += 1
                    recall = means(total)[f"recall@{TOP_N}"]
                    if request not in chosen or recall > chosen[request][0]:
                        chosen[request] = (recall, setting)
            gathered = {request: _GatheredLists(material.splits.num_users) for request in chosen}
            _serve(material, members, {request: setting for request, (_, setting) in chosen.items()}, gathered)
        seconds = (time.perf_counter() - start) / max(len(gathered), 1)
        for request, one in gathered.items():
            label = f"{one.label} (of one group)"
            yield ListOption(request, one.lists, one.stored, seconds, label, tried[request])

    def _validated(
        self, material: Material, members: dict[int, IntArray], requests: Sequence[Request]
    ) -> list[dict[Request, MetricSums]]:
        """Validation sums over the sampled groups of every setting, for the requests that it serves in all of them."""

        def one(group: int) -> list[dict[Request, MetricSums]]:
            inside = group_material(material, group, members[group])
            return [_validation_sums(setting, inside, requests) for setting in self.settings]

        with ThreadPoolExecutor(max_workers=2) as pool:  # the compiled loops release the interpreter lock
            parts = list(pool.map(one, sample_of_groups(members, material.seed, "per-group-sample", SAMPLE)))
        return [
            {
                request: reduce(add, [part[request] for part in same])
                for request in same[0]
                if all(request in p for p in same)
            }
            for same in zip(*parts, strict=True)
        ]


@dataclass
class _GatheredLists:
    """The lists of all devices for one request, gathered group by group."""

    num_users: int
    label: str = ""
    lists: dict[Split, Lists] = field(default_factory=dict)
    stored: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        self.stored = np.zeros(self.num_users, np.int64)
        self.lists = {split: np.full((self.num_users, TOP_N), -1, np.int32) for split in SPLITS}


def group_material(material: Material, group: int, members: IntArray) -> Material:
    """Return what a group's rival starts from: the group's table and its members' data alone."""
    starts = material.starts
    assert starts is not None
    shown = None if starts.shown is None else starts.shown(group)
    return replace(material.select_devices(members).starting_with(starts.table(group)), shown_by_sums=shown)


def _validation_sums(setting: Rival, inside: Material, requests: Sequence[Request]) -> dict[Request, MetricSums]:
    sums: dict[Request, MetricSums] = {}
    for option in setting.options(inside, requests):
        assert option.request not in sums, f"{setting.name}: two options for one request"
        lists = lists_of(option, inside, "validation")
        sums[option.request] = list_sums(lists, inside.splits.validation, inside.num_items)
    return sums


def _serve(
    material: Material,
    members: dict[int, IntArray],
    chosen: dict[Request, Rival],
    gathered: dict[Request, _GatheredLists],
) -> None:
    """Fill in what all groups' devices hold, each request under its chosen setting."""
    settings = list(dict.fromkeys(chosen.values()))

    def one(group: int) -> None:
        mine = members[group]
        inside = group_material(material, group, mine)
        for setting in settings:
            wanted = [request for request, liked in chosen.items() if liked == setting]
            for option in setting.options(inside, wanted):
                everybody = gathered[option.request]
                everybody.stored[mine] = option.stored
                for split in SPLITS:
                    everybody.lists[split][mine] = lists_of(option, inside, split)
                if group == least:
                    everybody.label = option.label

    least = min(members)
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(one, members))
