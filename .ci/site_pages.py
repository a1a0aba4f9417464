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
    """Where a relative link leads, from the folder of docs."""
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

    lines = [
        "# Keys of a scenario",
        "Made from the code: what `fl-peel scenarios show NAME --keys` prints. A share may be written as a percentage,",
        "`0.1%`. A file needs no more than `data`. `fl-peel scenarios schema` prints the same as a JSON Schema, for",
        "editors.",
        "",
    ]
    for part in parts_of(scenario_schema()):
        lines += [f"## {part.path or 'At the top'}", "", _linked(part.description), ""]
        if part.keys:
            lines += _table(part.keys, part.path)
    return "\n".join(lines) + "\n"


def fleet_page() -> str:
    """Every key of a fleet file."""
    from clients.fleet.files import fleet_parts

    lines = [
        "# Keys of a fleet",
        "Made from the code. What they are for is told in [Fleets](../profiles.md). A file needs no more than",
        "`profiles`, each with `name` and `memory`. `fl-peel profiles schema` prints the same as a JSON Schema, for",
        "editors.",
        "",
    ]
    for part in fleet_parts():
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
