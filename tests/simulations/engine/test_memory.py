"""Peak memory: what is shared counts once, and the costly question is asked only when there may be a new peak."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil

from simulations.engine import engine as memory_module
from simulations.engine.engine import ASKED_S, PeakMemory


@dataclass
class Fake:
    """A process of ``own`` bytes and ``shared`` ones, of which ``part`` is told as its own."""

    pid: int
    own: int
    shared: int = 0
    part: int = 0
    asked: int = field(default=0)

    def memory_info(self) -> Any:
        return SimpleNamespace(rss=self.own + self.shared)

    def memory_full_info(self) -> Any:
        self.asked += 1
        return SimpleNamespace(rss=self.own + self.shared, pss=self.own + self.part)


def look(memory: PeakMemory, *processes: Fake, now_s: float = 0.0) -> int:
    memory.look(cast(list[psutil.Process], list(processes)), now_s)
    return memory.peak_bytes


def test_what_is_shared_counts_once() -> None:
    one, other = Fake(1, 1000, shared=600, part=300), Fake(2, 500, shared=600, part=300)
    assert look(PeakMemory(), one, other) == 2100


def test_every_growth_of_more_than_a_percent_is_told() -> None:
    memory, one, other = PeakMemory(), Fake(1, 1000, shared=600, part=300), Fake(2, 500, shared=600, part=300)
    for own in (1000, 1050, 5000, 200):
        one.own = own
        look(memory, one, other)
    assert memory.peak_bytes == 6100


def test_what_cannot_be_a_peak_is_not_asked_about() -> None:
    memory, one = PeakMemory(), Fake(1, 1000, shared=600, part=300)
    for number in range(20):
        one.own = 1000 - number
        look(memory, one, now_s=number / 2)
    assert one.asked == 1


def test_what_is_shared_no_longer_is_noticed_in_time() -> None:
    memory, one, other = PeakMemory(), Fake(1, 1000, shared=900, part=450), Fake(2, 1000, shared=900, part=450)
    assert look(memory, one, other) == 2900
    one.own, one.shared, one.part = 2800, 0, 0
    look(memory, one, other, now_s=ASKED_S)
    assert memory.peak_bytes == 2800 + 1450


def test_a_process_that_comes_is_asked_about_at_once() -> None:
    memory, one = PeakMemory(), Fake(1, 1000, shared=900, part=0)
    look(memory, one)
    assert look(memory, one, Fake(2, 500, part=0), now_s=0.5) == 1500


def test_a_process_that_has_ended_holds_nothing() -> None:
    class Gone(Fake):
        def memory_info(self) -> Any:
            raise psutil.NoSuchProcess(self.pid)

        memory_full_info = memory_info

    assert look(PeakMemory(), Fake(1, 1000), Gone(2, 500)) == 1000


def test_it_follows_this_process() -> None:
    with PeakMemory() as memory:
        held = np.ones(40_000_000)
        memory._stop.wait(1.2)
    assert memory.peak_bytes > held.nbytes


def test_while_a_run_grows_asking_takes_a_fiftieth_of_the_time(monkeypatch) -> None:
    """Each question takes 0.04 s here, so that two seconds must lie between two of them."""
    clock = itertools.count()
    monkeypatch.setattr(memory_module.time, "thread_time", lambda: 0.04 * next(clock))
    memory, one = PeakMemory(), Fake(1, 1000, shared=600, part=300)
    for number in range(9):
        one.own = 1000 * (number + 1)
        assert look(memory, one, now_s=number / 2) == one.own + 300  # by what was shared before, where it is not asked
    assert one.asked == 3
