"""Contract suite of sections: subclass :class:`SectionContract`, set ``section``, and pytest runs its tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

from simulations.report.render import SECTIONS, Chart, Page, Section
from strategies.figures.schema import RunResult, from_json


def example_results() -> tuple[RunResult, RunResult]:
    """A run of which hardly anything was measured, and one with budgets, a full table and rounds."""
    bare: dict[str, Any] = {"scenario": {"name": "<example>"}, "seed": 3, "full_table": {"bytes": 4000}, "stages": {}}
    bare |= {"budgets": [], "device_classes": {}, "rounds": []}
    quality = {"recall@20": 0.2, "ndcg@20": 0.1, "recall@20_interval": {"low": 0.15, "high": 0.25}}
    budget = {"precision": "int8", "selector": "exposure", "stored_bytes_max": 39, "devices": 10, **quality}
    clock = {"virtual_seconds": 2.0, "sampled": 9, "unavailable": 2, "excluded": 0, "stragglers": 4}
    clock |= {"memory_dropouts": 0, "memory_drops": 0}
    moved = {"download_bytes": 900, "upload_bytes": 90, "message_bytes": 1000, "devices": 3, "failures": 0}
    measured = bare | {
        "budgets": [budget | {"share": share, "budget_bytes": int(4000 * share)} for share in (0.01, 0.1)],
        "full_table": {"bytes": 4000, "global": quality, "strongest": "global"},
        "rounds": [{"server_round": number, "seconds": 0.5, **moved, **clock} for number in (1, 2)],
    }
    return from_json(bare), from_json(measured)


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
            text = Page("t", [section]).html()
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
            texts = {Page("t", [self.made(result)]).html() for _ in range(2)}
            assert len(texts) == 1, "it changed"
