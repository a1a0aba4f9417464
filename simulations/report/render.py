"""Templates to pages, and what stands on all of them: where a result is from."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from simulations.report.tables.table_view import TableView
from simulations.report.templates import TEMPLATES
from simulations.report.templates.script import SCRIPT
from simulations.report.theme import css, themed


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


def render(template: str, **values: Any) -> str:
    """A page from a template of :mod:`simulations.report.templates`; every value is escaped. script, policy: where the
    page has others than the usual ones.
    """
    environment = Environment(
        loader=DictLoader(dict(TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = lambda plot: Markup(themed(plot.svg))  # to_svg escapes names
    environment.filters["narrow_svg"] = lambda plot: Markup(themed(plot.narrow))
    environment.filters["themed"] = themed
    colors = {"light": Markup(css(dark=False)), "dark": Markup(css(dark=True))}
    usual = {"colors": colors, "script": Markup(SCRIPT), "policy": policy(SCRIPT)}
    return environment.get_template(template).render(usual | values)


def provenance(values: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return the contents of the part on how to reproduce; ``command``: command to show where the result has none of
    its own.
    """
    scenario = values.get("scenario")
    versions: Mapping[str, str] = values.get("versions") or {}
    return {
        "command": values.get("command") or command,
        "seed": values.get("seed"),
        "scenario": scenario
        if scenario is None or isinstance(scenario, str)
        else yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True),
        "versions": TableView("Versions", ("package", "version"), tuple(versions.items()), 2) if versions else None,
    }
