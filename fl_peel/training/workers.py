"""Who works beside whom in pretraining: threads of its own, but none of torch or BLAS.

Those wait for work, and for each other, by spinning on the cores that others need: on a busy machine a decomposition
took eight times longer on two threads of BLAS than on one. What a worker makes does not depend on how many there are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Workers:
    """Threads, or none: then everything is done by the caller."""

    count: int = 1
    pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Given], Made], given: Iterable[Given]) -> list[Made]:
        """What ``function`` makes of each, in their order."""
        return list(map(function, given) if self.pool is None else self.pool.map(function, given))

    def ranges(self, first: int, last: int) -> list[tuple[int, int]]:
        """From ``first`` to ``last`` in ``count`` ranges of about equal length."""
        return _ranges([first + (last - first) * number // self.count for number in range(self.count + 1)])

    def parts(self, work: NDArray[np.integer]) -> list[tuple[int, int]]:
        """Rows in ``count`` ranges of about equal work. work: (n + 1,) of it that comes before each row."""
        shares = np.linspace(work[0], work[-1], self.count + 1)[1:-1]
        return _ranges([0, *np.searchsorted(work, shares).tolist(), len(work) - 1])


def _ranges(cuts: Sequence[int]) -> list[tuple[int, int]]:
    return [(first, last) for first, last in pairwise(cuts) if first < last]


ALONE = Workers()


@contextmanager
def fixed_threads(num_threads: int) -> Iterator[None]:
    """Torch, BLAS and OpenMP on this many threads, and as before afterwards.

    Whoever uses torch in the block has imported it before; nobody else waits for that.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        with threadpool_limits(limits=num_threads):
            yield
        return
    before = torch.get_num_threads()
    with threadpool_limits(limits=num_threads):
        torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def threads_for(num_interactions: int) -> int:
    """Threads that pretraining takes for so much data: on small tables they wait for each other more than they work."""
    return 2 if num_interactions >= 300_000 else 1


@contextmanager
def own_threads(num_threads: int) -> Iterator[Workers]:
    """So many workers; torch and BLAS on one thread each."""
    with fixed_threads(1):
        if num_threads == 1:
            yield ALONE
            return
        with ThreadPoolExecutor(num_threads) as pool:
            yield Workers(num_threads, pool)
