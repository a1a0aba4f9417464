"""Templates to pages, and what stands on all of them: where a result is from."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fl_peel.json_codec import to_plain
from fl_peel.plugins import Registry
from simulations.report.drawing import Plot, css, themed
from simulations.report.result_files import json_bytes
from simulations.report.table_view import TableView
from strategies.figures.schema import RunResult

# ---- Sections of pages: what a page shows under one heading, and those of a run's report by name
# A section of a run's report is one function from the result to a :class:`Section`. An installed package adds one by
# an entry point of the group ``fl_peel.sections``.


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


TEMPLATES = Path(__file__).with_name("templates.yaml")
"""Templates and scripts of pages, by name."""


@cache
def templates() -> Mapping[str, str]:
    """Return the content of the file of templates, read once a process."""
    content: dict[str, str] = yaml.safe_load(TEMPLATES.read_text(encoding="utf-8"))
    return content


def policy(script: str, *more: str) -> str:
    """Return the policy of a page: no script runs but its own, and nothing is fetched but what ``more`` allows."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            f"script-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
            *more,
        )
    )


def scenario_name(scenario: Mapping[str, Any] | str) -> str:
    """The name that a scenario gives itself."""
    return scenario if isinstance(scenario, str) else str(scenario.get("name", "scenario"))


@cache
def _environment() -> Environment:
    """The templates, each compiled once a process."""
    environment = Environment(
        loader=DictLoader(templates()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = lambda plot: Markup(themed(plot.svg))  # to_svg escapes names
    environment.filters["narrow_svg"] = lambda plot: Markup(themed(plot.narrow))
    return environment


def render(template: str, **values: Any) -> str:
    """A page from a template, every value escaped. script, policy: where they are not the usual ones."""
    colors = {"light": Markup(css(dark=False)), "dark": Markup(css(dark=True))}
    script = templates()["page.js"]
    usual = {"colors": colors, "script": Markup(script), "policy": policy(script)}
    return _environment().get_template(template).render(usual | values)


@dataclass(frozen=True)
class Page:
    """What a result comes to, on a page and in the terminal. lead: sentences; facts: names and values; command,
    versions: where the result does not say them itself; demo: page to play with that lies beside it.
    """

    title: str
    sections: Sequence[Section]
    lead: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    command: str = ""
    versions: Mapping[str, str] | None = None
    demo: str | None = None

    def html(self, source: object = None) -> str:
        """Return one HTML file. source: the result, which says where it is from: scenario, seed, versions, command."""
        drawn = [(one, tuple(_drawn_parts(one))) for one in self.sections]
        shown = [{"id": one.id, "title": one.title, "parts": parts} for one, parts in drawn if parts]
        scenario, packages = getattr(source, "scenario", None), getattr(source, "versions", None) or self.versions
        if not isinstance(scenario, str | None):
            scenario = yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True)
        return render(
            "page.html",
            title=self.title,
            lead="\n".join(self.lead),
            facts=self.facts,
            sections=shown,
            demo=self.demo,
            command=getattr(source, "command", None) or self.command,
            seed=getattr(source, "seed", None),
            scenario=scenario,
            versions=TableView("Versions", ("package", "version"), tuple(packages.items()), 2) if packages else None,
        )

    def terminal(self) -> Iterator[TableView | str]:
        """Yield what the terminal shows: the lead, and those parts of sections that say so."""
        yield from self.lead
        for part in (part for section in self.sections for part in section.parts):
            if isinstance(part, TableView | Remark) and part.terminal:
                yield part if isinstance(part, TableView) else part.text

    def svg(self, name: str) -> str | None:
        charts = (part for section in self.sections for part in section.parts if isinstance(part, Chart))
        return next((chart.plot.svg for chart in charts if chart.plot is not None and chart.plot.name == name), None)


def _drawn_parts(section: Section) -> Iterator[tuple[str, Any]]:
    for part in section.parts:
        if isinstance(part, Chart):
            if part.plot is not None:
                yield "Chart", (part.plot, part.caption)
        elif isinstance(part, Remark):
            yield "Remark", part.text
        elif isinstance(part, TableView):
            yield "TableView", part
        elif part:
            yield "note", part


Result = TypeVar("Result")


@dataclass(frozen=True)
class ResultKind(Generic[Result]):
    """A kind of result. name: of its files; read: makes the result of its JSON, which the second argument names in
    messages; page: what it comes to; table: name of the two files of figures, where it is another.
    """

    name: str
    read: Callable[[Any, str], Result]
    page: Callable[[Result], Page]
    table: str = ""

    def contents(self, content: Any, demo: str | None = None) -> dict[str, bytes]:
        """Return the files of a result by name: JSON, figures as CSV and as Parquet, the page, and its lead figure
        alone, for a README or a paper. content: of its JSON; demo: as of :class:`Page`.

        Raises:
            ReportError: naming the key's path, for a value out of range or of the wrong type, NaN or infinity.
        """
        plain = to_plain(content, self.name)
        result: Any = self.read(plain, self.name)
        shown, figures = replace(self.page(result), demo=demo), result.figures
        contents = {
            f"{self.name}.json": json_bytes(plain),
            f"{self.table or self.name}.csv": figures.to_csv(),
            f"{self.table or self.name}.parquet": figures.to_parquet(),
            f"{self.name}.html": shown.html(result).encode(),
        }
        svg = shown.svg(self.name)
        return contents if svg is None else {**contents, f"{self.name}.svg": svg.encode()}
