"""A reader without Python: `peel.mjs` for browsers and Node, and `rank.mjs`, a command (docs/runtime.md)."""

from __future__ import annotations

from pathlib import Path

READER = Path(__file__).parent / "peel.mjs"
"""The module as it is shipped; not among the files of a Flower app bundle, which takes no `.mjs`."""

__all__ = ["READER"]
