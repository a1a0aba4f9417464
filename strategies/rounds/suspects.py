"""The search for devices that spoil masked sums, of which nobody sees a single vector.

A sum that comes out spoiled has a device among its own that masked or shared something else than it had to. Of those
that may have (at first all), half sit out the next sum over their group: if that one is right, the others are cleared,
else those that sat out wait aside. Who is left in the end is left out for good. Then all who are aside come back, and
are searched again if sums are still spoiled. Suspects of whom none is in a sum that is right, since they are silent or
left out by now, wait aside as well: no search waits for them.

Devices are searched in blocks, which stay the same and are left out whole, as small as two sums over the same data may
differ by. A node whose devices are enough for a block shares none. A node is left out with all of its devices where two
of its blocks were, or where it failed twice, one after the other, in sums that came to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
CHANCES = 2
"""Times that a node may fail, or that devices of it are found, until it is left out."""


@dataclass
class Search:
    """The search in one user group, in blocks. suspects: in the order of their nodes, of which one spoiled a sum whose
    other blocks were all cleared; aside: of which nothing is known; waiting: suspects that cannot be told apart before
    enough others are cleared to make a sum with; clearing: whether suspects are but those that may be.
    """

    suspects: list[int] = field(default_factory=list)
    cleared: set[int] = field(default_factory=set)
    aside: list[int] = field(default_factory=list)
    waiting: list[list[int]] = field(default_factory=list)
    clearing: bool = False


@dataclass
class Suspects:
    """Devices that are left out of masked sums, and the search for more. least: devices that make a sum; step: devices
    that two sums over the same data must differ by; devices, nodes: that are left out.
    """

    least: int
    step: int = 1
    devices: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)
    _searches: dict[int, Search] = field(default_factory=dict)
    _blocks: dict[int, int] = field(default_factory=dict)
    _hosts: dict[int, int] = field(default_factory=dict)
    _failures: dict[int, int] = field(default_factory=dict)
    _found: dict[int, int] = field(default_factory=dict)

    @property
    def searching(self) -> bool:
        """Return whether there is any search that is not over."""
        return bool(self._searches)

    def may_be_in(self, group: int, devices: IntArray, hosts: IntArray) -> BoolArray:
        """Return which of the devices (N,) of a user group, on these nodes (N,), may be in its next sum."""
        there: BoolArray = ~np.isin(devices, list(self.devices)) & ~np.isin(hosts, list(self.nodes))
        search = self._searches.get(group)
        if search is None:
            return there
        blocks = self._blocks_of(devices, hosts)
        suspects = [block for block in search.suspects if block in blocks[there]]
        half, waiting = suspects[: len(suspects) // 2], [block for some in search.waiting for block in some]
        for sit_out in ([*half, *search.aside, *waiting], [*search.aside, *waiting], waiting):
            some = there & ~np.isin(blocks, sit_out)
            if some.sum() >= self.least:
                return some
        return there

    def right(self, group: int, devices: IntArray, hosts: IntArray, *, apart: bool = False) -> None:
        """A sum over these devices (N,) on these nodes (N,) came out right: they are cleared. apart: whether others are
        in a sum of their own.
        """
        search = self._searches.get(group)
        if search is not None:
            blocks = set(self._blocks_of(devices, hosts).tolist())
            none_here = not apart and blocks.isdisjoint(search.suspects)
            search.cleared |= blocks
            search.suspects = [block for block in search.suspects if block not in search.cleared]
            search.aside = [block for block in search.aside if block not in search.cleared]
            if search.clearing or none_here:
                search.aside, search.suspects = [*search.aside, *search.suspects], []
            if not search.suspects:
                self._next(group, search)

    def spoiled(self, group: int, devices: IntArray, hosts: IntArray) -> str:
        """A sum over these devices (N,) on these nodes (N,) came out spoiled. Return what follows, in words."""
        search = self._searches.setdefault(group, Search())
        blocks = self._blocks_of(devices, hosts)
        by_node = blocks[np.lexsort((devices, hosts))].tolist()
        suspects = [block for block in dict.fromkeys(by_node) if block not in search.cleared]
        search.aside = [block for block in (*search.aside, *search.suspects) if block not in suspects]
        search.suspects, search.clearing = suspects, False
        if len(suspects) < 2:
            mine = np.isin(blocks, suspects)
            return self.leave_out(group, devices[mine], hosts[mine])
        if (len(search.cleared) + (len(suspects) + 1) // 2) * self.step < self.least and search.aside:
            search.waiting.append(suspects)
            search.suspects, search.aside, search.clearing = search.aside, [], True
        return f"which of {np.isin(blocks, suspects).sum()} devices did it is searched for"

    def leave_out(self, group: int, devices: IntArray, hosts: IntArray) -> str:
        """Leave devices (N,) on these nodes (N,) out for good. Return that in words."""
        self._with_their_blocks(devices.tolist())
        if group in self._searches:
            self._next(group, self._searches[group])
        nodes = np.unique(hosts).tolist()
        if len(nodes) == 1:
            self._found[nodes[0]] = self._found.get(nodes[0], 0) + 1
        text = f"left out from now on: {_listed(devices)} of {'node' if len(nodes) == 1 else 'nodes'} {_listed(nodes)}"
        return text + self._without_nodes(node for node in nodes if self._found.get(node, 0) >= CHANCES)

    def failed(self, nodes: Iterable[int]) -> str:
        """A sum came to nothing, in which these nodes failed. Return what follows, in words."""
        times = {node: self._failures.get(node, 0) + 1 for node in nodes}
        self._failures |= times
        return self._without_nodes(node for node in times if times[node] >= CHANCES)

    def answered(self, nodes: Iterable[int]) -> None:
        """These nodes answered all that they were asked for a sum."""
        for node in nodes:
            self._failures.pop(node, None)

    def _blocks_of(self, devices: IntArray, hosts: IntArray) -> IntArray:
        """Return the block of each device (N,). New devices are in blocks of at least ``step``, by node."""
        if self.step == 1:
            return devices
        new = np.array([device not in self._blocks for device in devices.tolist()], np.bool_)
        self._hosts.update(zip(devices[new].tolist(), hosts[new].tolist(), strict=True))
        number, rest = max(self._blocks.values(), default=-1) + 1, devices[:0]
        for node in np.unique(hosts[new]):
            rest = np.concatenate([rest, np.sort(devices[new & (hosts == node)])])
            if len(rest) >= self.step:
                for block in np.array_split(rest, len(rest) // self.step):
                    self._blocks.update(dict.fromkeys(block.tolist(), number))
                    number += 1
                rest = devices[:0]
        self._blocks.update(dict.fromkeys(rest.tolist(), max(0, number - 1)))
        return np.array([self._blocks[device] for device in devices.tolist()], np.int64)

    def _next(self, group: int, search: Search) -> None:
        """Go on with those that wait; where nobody does, the search is over."""
        search.suspects, search.clearing = search.waiting.pop() if search.waiting else [], False
        if not search.suspects:
            del self._searches[group]

    def _with_their_blocks(self, devices: Iterable[int]) -> None:
        """Leave out these devices, and all that are in a block with one of them."""
        out = set(devices)
        blocks = {self._blocks[device] for device in out if device in self._blocks}
        self.devices |= out | {device for device, block in self._blocks.items() if block in blocks}

    def _without_nodes(self, nodes: Iterable[int]) -> str:
        new = set(nodes) - self.nodes
        self.nodes |= new
        self._with_their_blocks(device for device, node in self._hosts.items() if node in new)
        return f"; left out from now on: all devices of node {_listed(sorted(new))}" if new else ""


def _listed(numbers: Iterable[int]) -> str:
    names = [str(number) for number in numbers]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
