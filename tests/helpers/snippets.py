"""Blocks of code of a document, and how a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """language: ``bash`` and ``python`` run; ``console`` is typed, and not run by tests; anything with a title is a
    file, and ``text`` with one the beginning of a file that others made.
    """

    language: str
    title: str
    text: str

    def commands(self) -> list[str]:
        """Lines to type, without comments."""
        lines = [line.split("  #")[0].strip() for line in self.text.splitlines()]
        return [line for line in lines if line]


def snippets_of(path: Path) -> list[Snippet]:
    """All blocks of a document that say their language."""
    return [Snippet(*result) for result in _BLOCK.findall(path.read_text(encoding="utf-8"))]


def follow(path: Path, folder: Path, typed: Callable[[str], None]) -> int:
    """Do what a document says, in a folder; typed: runs a line of a shell. Returns how much was run."""
    done = 0
    for snippet in snippets_of(path):
        if snippet.language == "text" and snippet.title:
            assert (folder / snippet.title).read_text(encoding="utf-8").startswith(snippet.text), snippet.title
        elif snippet.title:
            (folder / snippet.title).write_text(snippet.text, encoding="utf-8")
        elif snippet.language == "python":
            exec(compile(snippet.text, str(path), "exec"), {})
            done += 1
        elif snippet.language == "bash":
            for line in snippet.commands():
                typed(line)
                done += 1
    return done


def in_shell(line: str) -> None:
    """Type a line into bash, with this Python and its commands first on the path."""
    command = f'PATH="{Path(sys.executable).parent}:$PATH"; {line}'
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"
