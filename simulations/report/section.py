"""Sections of pages: what a page shows under one heading, and those of a run's report by name.

A section of a run's report is one function from the result to a :class:`Section`. An installed
package adds one by an entry point of the group ``fl_peel.sections``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from fl_peel.plugins import Registry
from simulations.report.drawing import Plot
from simulations.report.table_view import TableView
from strategies.figures.schema import RunResult

logger = logging.getLogger("fl_peel")


@dataclass(frozen=True)
class Chart:
    """A figure with its caption. draw: draws it when its page is written; None where there is nothing to draw."""

    draw: Callable[[], Plot | None]
    caption: str

    @cached_property
    def plot(self) -> Plot | None:
        """Return the figure, which is drawn once."""
        return self.draw()


@dataclass(frozen=True)
class Remark:
    """A sentence that stands out from the page. terminal: whether the terminal says it, too."""

    text: str
    terminal: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page. id: of the HTML element; parts: tables, figures, remarks, and text for notes; empty ones are
    left out, and with them a section in which nothing is left.
    """

    id: str
    title: str
    parts: Sequence[TableView | Chart | Remark | str | None]


SECTIONS: Registry[Callable[[RunResult], Section]] = Registry(
    "section",
    "fl_peel.sections",
    MappingProxyType(
        {
            name: f"simulations.report.sections.{file}:{name}"
            for file, name in (
                *(("quality", "quality"), ("costs", "stage1"), ("rounds", "refinement"), ("rounds", "traces")),
                *(("classes", "classes"), ("quality", "groups"), ("rounds", "learning"), ("rounds", "times")),
                *(("classes", "fairness"), ("elasticity", "elasticity"), ("costs", "privacy"), ("costs", "costs")),
                ("costs", "environment"),
            )
        }
    ),
)
"""Sections of a run's report, in the order of the page; those of installed packages come last."""


def run_sections(result: RunResult) -> Iterator[Section]:
    """Yield a report's sections; an installed package's that fails is left out, with a warning."""
    for name in SECTIONS.names():
        try:
            section = SECTIONS.get(name)(result)
        except Exception as error:
            if name in SECTIONS.shipped:
                raise
            logger.warning("the section %r is left out of the report: %s: %s", name, type(error).__name__, error)
            continue
        yield section
