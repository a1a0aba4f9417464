"""Contract suite of sections: subclass :class:`SectionContract`, set ``section``, and pytest runs its tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from fl_peel.figures import Estimate
from simulations.report.render import page
from simulations.report.section import SECTIONS, Chart, Section
from strategies.figures.schema import BudgetRow, FullTableResult, Quality, RoundClock, RoundRow, RunResult


def example_results() -> tuple[RunResult, RunResult]:
    """A run of which hardly anything was measured, and one with budgets, full tables and rounds."""
    bare = RunResult(
        scenario={"name": "<example>"},
        seed=3,
        budgets=(),
        device_classes={},
        full_table=FullTableResult(bytes=4000),
        rounds=(),
        stages={},
    )
    recall = Estimate(0.2, 0.15, 0.25)
    budgets = tuple(
        BudgetRow(
            share=share,
            budget_bytes=round(4000 * share),
            precision="int8",
            selector="exposure",
            recall=recall,
            ndcg=recall,
            stored_bytes_max=round(3900 * share),
            devices=10,
        )
        for share in (0.01, 0.1)
    )
    clock = RoundClock(
        **{"virtual_seconds": 2.0, "sampled": 9, "unavailable": 2, "excluded": 0, "stragglers": 4},
        **{"memory_dropouts": 0, "memory_drops": 0},
    )
    moved = {"download_bytes": 900, "upload_bytes": 90, "message_bytes": 1000, "devices": 3, "failures": 0}
    rounds = tuple(RoundRow(server_round=number, seconds=0.5, clock=clock, **moved) for number in (1, 2))
    quality = Quality(recall, recall)
    full = FullTableResult(bytes=4000, globally=quality, refined=quality, strongest="global")
    measured = RunResult(
        scenario=bare.scenario,
        seed=3,
        budgets=budgets,
        device_classes={},
        full_table=full,
        rounds=rounds,
        stages={"refinement": 1.0},
    )
    return bare, measured


class SectionContract:
    """Contract suite of a section: subclass it and set ``section``; ``results`` are the runs that it is made of."""

    section: ClassVar[Callable[[RunResult], Section]]
    results: ClassVar[tuple[RunResult, ...]] = example_results()

    def made(self, result: RunResult) -> Section:
        """Return the section under test."""
        return type(self).section(result)

    def test_any_run_has_it_or_an_empty_one(self) -> None:
        """It is made of runs of which hardly anything was measured, and its page is written."""
        for result in self.results:
            section = self.made(result)
            text = page([section], title="t", lead="l", facts=[], source={})
            certain = [part for part in section.parts if part and not isinstance(part, Chart)]
            assert f'<section id="{section.id}">' in text or not certain, "it is not on its page"

    def test_its_id_is_its_own(self) -> None:
        """Its id is one that a page can have, and none of those that a report has already."""
        for result in self.results:
            section = self.made(result)
            others = (SECTIONS.get(name) for name in SECTIONS.shipped)
            taken = {"reproduce"} | {other(result).id for other in others if other is not type(self).section}
            assert re.fullmatch(r"[a-z][a-z0-9-]*", section.id), f"{section.id!r}: letters, digits and hyphens"
            assert section.id not in taken, f"{section.id!r} is the id of another section"

    def test_the_same_run_has_the_same_section(self) -> None:
        """Its page depends on nothing but the run."""
        for result in self.results:
            texts = {page([self.made(result)], title="t", lead="l", facts=[], source={}) for _ in range(2)}
            assert len(texts) == 1, "it changed"


__all__ = ["SectionContract", "example_results"]
