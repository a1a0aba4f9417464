"""Templates to pages, and what stands on all of them: where a result is from."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from simulations.report.drawing import css, themed
from simulations.report.section import Chart, Remark, Section
from simulations.report.table_view import TableView

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


def page(
    sections: Iterable[Section],
    *,
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    source: Mapping[str, Any],
    demo: str | None = None,
) -> str:
    """Return a result's page, one HTML file. source: content that says where it is from; demo: a page beside it."""
    drawn = [(one, tuple(_drawn_parts(one))) for one in sections]
    shown = [{"id": one.id, "title": one.title, "parts": parts} for one, parts in drawn if parts]
    scenario, packages = source.get("scenario"), source.get("versions")
    if not isinstance(scenario, str | None):
        scenario = yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True)
    return render(
        "page.html",
        title=title,
        lead=lead,
        facts=facts,
        sections=shown,
        demo=demo,
        command=source.get("command") or "",
        seed=source.get("seed"),
        scenario=scenario,
        versions=TableView("Versions", ("package", "version"), tuple(packages.items()), 2) if packages else None,
    )


def _drawn_parts(section: Section) -> Iterable[tuple[str, Any]]:
    """Yield the parts of a section that have something to show, each with its kind."""
    for part in section.parts:
        if isinstance(part, Chart):
            plot = part.draw()
            if plot is not None:
                yield "Chart", (plot, part.caption)
        elif isinstance(part, Remark):
            yield "Remark", part.text
        elif isinstance(part, TableView):
            yield "TableView", part
        elif part:
            yield "note", part
