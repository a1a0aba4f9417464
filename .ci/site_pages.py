"""What `make docs` adds to the pages of docs/: the README in front, references made from the code, links that work.

Hooks of MkDocs; mkdocs.yml names this file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

OPTIONAL = ("model.md", "deploy.md", "runtime.md")
"""Pages of the nav that are left out where there is no such file."""
FROM_ROOT = ("index.md", "changes.md")
"""Pages that are files of the root."""
WORKER = "assets/iframe-worker.js"
"""What searches pages that are opened as files. By its name, the theme knows that it need not fetch another."""
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Leave out of the nav what is not there yet."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    config.extra["polyfills"] = [WORKER]
    return config


def _existing(nav: list[Any], docs: Path) -> list[Any]:
    """The nav without optional pages that are missing."""
    entries: list[Any] = []
    for entry in nav:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            entries.append({title: _existing(target, docs)})
        elif target not in OPTIONAL or (docs / target).is_file():
            entries.append(entry)
    return entries


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    script = ROOT / ".ci" / Path(WORKER).name
    files.append(File.generated(config, WORKER, content=script.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files that are not of the site, such as sources, become the names of these files."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, place: str) -> str:
    """A page's text with links that stay within the site. What is not there at all is left for MkDocs to find."""
    of_root = place in FROM_ROOT

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = target.partition("#")[0]
        if "://" in target or not path:
            return match[0]
        whole = _joined(place, path)
        if whole.startswith("../") or (of_root and (ROOT / whole).exists()):
            return text if "`" in text else f"`{text}`"
        return match[0]

    return _LINK.sub(link, markdown)


def _joined(place: str, path: str) -> str:
    parts = place.split("/")[:-1]
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return f"../{path}"
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def pages() -> dict[str, str]:
    """Pages that are made, by name."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace('="docs/', '="')
    return {
        "index.md": readme,
        "changes.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "notebooks/quickstart.md": notebook_page(ROOT / "docs" / "notebooks" / "quickstart.ipynb"),
        "reference/scenario.md": scenario_page(),
        "reference/fleet.md": fleet_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
    }


def messages_page() -> str:
    """docs/messages.md: every step of stage 1, with what is sent and what a device adds."""
    from fl_peel.steps import STEPS

    lines = [
        "# Messages of stage 1",
        "",
        "What the server sends in each step of [stage 1](nothing-collected.md), and what devices add up: made from",
        "`fl_peel/steps`.",
        "",
        "```",
        "fl-peel run nothing-collected     # the report has the bytes of each step",
        "```",
        "",
        "| step | what | sent to a device | summed over devices | rows | noise: share; bound |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(_step_cells(step))} |" for step in STEPS.values()),
        "",
        "- Sizes: I items, K columns, G user groups, c of their columns, C filters, D drawn items, R rows. Arrays in",
        "  italics may be absent.",
        "- Sums are of whole numbers, 64 bits each, or 32 with `pretraining.sum_bits`, all of them masked under",
        "  [secure aggregation](secure-aggregation.md). Steps without a sum answer nothing; maps are sent",
        "  when devices join.",
        "- Rows: contributors to each of so many rows are counted first, and only rows of `privacy.min_owners` of",
        "  them are opened; the arrays of `counts` and `groups` are such counts themselves.",
        "- Noise: an array's share of the budget of stage 1 under a [mechanism](privacy.md#stage-1-under-noise), all",
        "  times of the step together, and the bound on a device's part, in L2 or L1.",
    ]
    return "\n".join(lines) + "\n"


_LETTERS = {"columns": "K", "groups": "G", "leading": "c", "filters": "C", "drawn": "D"}
"""Sizes of steps as papers write them; any other one has its own name."""


def _step_cells(kind: Any) -> tuple[str, ...]:
    """The cells of a step, which is made of primes for sizes: a shape shows which size went where."""
    from dataclasses import fields, replace

    from fl_peel.steps.base import ContributionBounds, StepTerms
    from fl_peel.steps.passes import PassStep

    primes = iter((9973, 997, 101, 89, 71, 53, 37, 23))
    items = next(primes)
    letters: dict[Any, str] = {items: "I", 1: "1"}
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name == "step":
            values[field.name] = PassStep(next(primes))
            letters[items] = "R"
        elif field.type == "bool":
            values[field.name] = True
        else:
            size = values[field.name] = next(primes)
            letter = letters[size] = _LETTERS.get(field.name, field.name)
            letters[size * (size + 1) // 2] = f"{letter} ({letter} + 1) / 2"
    step, terms = kind(**values), StepTerms(items, 0.3)
    whole = (0, step.num_pieces)

    def shaped(name: str, shape: Any) -> str:
        return f"{name} ({', '.join(letters[size] for size in shape)})"

    opened = step.sent_arrays(terms, whole)
    bounded = step.sent_arrays(replace(terms, bounds=ContributionBounds(1.0)), whole)
    sent = [f"*{text}*" if one.may_lack else text for name, one in opened.items() for text in [shaped(name, one.shape)]]
    sent += [f"under a mechanism {shaped(name, bounded[name].shape)}" for name in bounded if name not in opened]
    rows = "" if step.counts_alone else letters.get(step.num_rows(terms), "")
    noised = (
        f"{one.field} {one.share:g}; {'`counts_norm`' if one.bound is None else f'{one.bound:g}'}"
        for one in step.noised
    )
    return (
        f"`{step.name}`",
        " ".join(re.split(r"\.\s|:|\.$", kind.__doc__, maxsplit=1)[0].split()),
        ", ".join(sent),
        "<br>".join(shaped(one.name, one.shape) for one in step.sums(terms)),
        rows,
        "<br>".join(noised),
    )


def notebook_page(file: Path) -> str:
    """A notebook with its outputs as they are saved in it."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for data in (output["data"] for output in cell.get("outputs", ()) if "data" in output):
            kind = next(kind for kind in ("image/png", "text/html", "text/plain") if kind in data)
            content = "".join(data[kind])
            if kind == "image/png":
                content = f'<img alt="Figure of the notebook" src="data:image/png;base64,{content.strip()}">'
            parts.append(f"```text\n{content}\n```" if kind == "text/plain" else f"<div>\n{content}\n</div>")
    return "\n\n".join(parts) + "\n"


def scenario_page() -> str:
    """Every key of a scenario."""
    from fl_peel.scenario.reference import parts_of, scenario_schema

    lead = (
        "Made from the code: what `fl-peel scenarios show NAME --keys` prints. A share may be written as a percentage,",
        "`0.1%`. A file needs no more than `data`. `fl-peel scenarios schema` prints the same as a JSON Schema, for",
        "editors.",
    )
    return _keys_page("# Keys of a scenario", lead, parts_of(scenario_schema()))


def fleet_page() -> str:
    """Every key of a fleet file."""
    from clients.fleet.fleet import fleet_parts

    lead = (
        "Made from the code. What they are for is told in [Fleets](../profiles.md). A file needs no more than",
        "`profiles`, each with `name` and `memory`. `fl-peel profiles schema` prints the same as a JSON Schema, for",
        "editors.",
    )
    return _keys_page("# Keys of a fleet", lead, fleet_parts())


def _keys_page(title: str, lead: tuple[str, ...], parts: Any) -> str:
    lines = [title, *lead, ""]
    for part in parts:
        lines += [f"## {part.path or 'At the top'}", "", _linked(part.description), ""]
        if part.keys:
            lines += _table(part.keys, part.path)
    return "\n".join(lines) + "\n"


def _table(keys: Any, path: str) -> list[str]:
    lines = ["| key | value | what |", "|---|---|---|"]
    for key in keys:
        name = key.path.removeprefix(f"{path}.") if path else key.path
        default = "must be given" if key.default is None else f"default `{key.default}`" if key.default else ""
        kind = f"{key.type}, {key.unit}" if key.unit else key.type
        value = "; ".join(part for part in (kind, key.limits, default) if part)
        cells = (f"`{name}`", value, _linked(key.description))
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return [*lines, ""]


def _linked(text: str) -> str:
    """Names of pages as links to them, from the folder of references."""
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](../\1)", text)


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    import typer

    from simulations.cli.main import app

    lines = ["# Command line", "Made from the code: what `--help` prints.", ""]
    lines += _command(typer.main.get_command(app), "fl-peel", 2)
    return "\n".join(lines) + "\n"


def _command(command: Any, name: str, level: int) -> list[str]:
    import typer

    context = typer.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"{'#' * level} {name}", "", command.help or "", "", "```text", f"{name} {usage}", "```", ""]
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [(record[0], record[1]) for record in records if record]
    if rows:
        lines += ["| option | what |", "|---|---|"]
        lines += [f"| `{_plain(option)}` | {_plain(text)} |" for option, text in rows]
        lines.append("")
    for inner, sub in sorted(getattr(command, "commands", {}).items()):
        lines += _command(sub, f"{name} {inner}", min(level + 1, 4))
    return lines


def _plain(text: str) -> str:
    """Without what colours a terminal, and what would end a cell."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def python_page() -> str:
    """All that users import from fl_peel."""
    import tomllib

    import fl_peel

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    elsewhere = project["entry-points"]["fl_peel.api"]
    lines = ["# Python", "Made from docstrings: all that is imported from `fl_peel` by name.", ""]
    for name in sorted(set(fl_peel.__all__) - {"__version__"}):
        lines += [f"::: {elsewhere.get(name, f'fl_peel:{name}').replace(':', '.')}", ""]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "messages.md").write_text(messages_page(), encoding="utf-8")
