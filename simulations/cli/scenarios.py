"""`fl-peel scenarios`: the scenarios that ship, what is in one, and the schema of all."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from simulations.cli.console import AsJson, Overrides, ScenarioName, new_table, print_json, print_table

INDENT = "    "

scenarios_app = typer.Typer(help="Scenarios: list, show, and describe their keys.")


@scenarios_app.callback(invoke_without_command=True)
def scenarios(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped scenarios and their questions."""
    if context.invoked_subcommand is not None:
        return
    from simulations.scenario_files import load_scenario, shipped_scenarios

    questions = {name: load_scenario(name).question for name in shipped_scenarios()}
    if as_json:
        print_json([{"scenario": name, "question": question} for name, question in questions.items()])
        return
    table = new_table("scenario", "question")
    for name, question in questions.items():
        table.add_row(name, Text(question))
    print_table(table)


@scenarios_app.command("show")
def scenarios_show(
    scenario: ScenarioName = "ml-100k",
    keys: Annotated[
        bool, typer.Option("--keys", help="Describe every key: type, unit, default, limits and meaning.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print a scenario with the value of every key, as YAML for `fl-peel run`."""
    from simulations.scenario_files import load_scenario

    loaded = load_scenario(scenario, overrides or [])
    content = loaded.model_dump(mode="json")
    if keys:
        _show_keys(content, as_json)
    elif as_json:
        print_json(content)
    else:
        typer.echo(loaded.to_yaml(), nl=False)


def _show_keys(content: dict[str, Any], as_json: bool) -> None:
    from fl_peel.scenario.reference import ScenarioKey, keys_of, scenario_schema, text_of

    def value_of(key: ScenarioKey) -> Any:
        """What the scenario has there; None below what it leaves out."""
        node: Any = content
        for part in key.path.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    keys = keys_of(scenario_schema())
    if as_json:
        print_json([{**vars(key), "value": value_of(key)} for key in keys])
        return
    console = Console()
    width = console.width if console.is_terminal else 400  # a file or a pipe has no width of its own
    for key in keys:
        facts = [key.type, key.unit, f"default {key.default}" if key.default else "", key.limits]
        typer.secho(f"{key.path}: {text_of(value_of(key))}", bold=True)
        for line in ("; ".join(fact for fact in facts if fact), key.description):
            typer.echo(textwrap.fill(line, width, initial_indent=INDENT, subsequent_indent=INDENT))


@scenarios_app.command("schema")
def scenarios_schema() -> None:
    """Print the JSON Schema of scenario files, with which editors complete keys and mark mistakes.

    Save it, and start a scenario file with `# yaml-language-server: $schema=FILE`.
    """
    from fl_peel.scenario.reference import scenario_schema

    typer.echo(json.dumps(scenario_schema(), indent=2, ensure_ascii=False))
