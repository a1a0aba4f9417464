"""The colours of pages and figures, on light paper and on dark, and how a figure's SVG takes those of its page.

Colours are Okabe and Ito's set ("Color Universal Design", 2008), told apart with any colour vision, without its yellow;
orange and sky are darkened until they stand out from white by 3 to 1, as figures must (WCAG 2.2, 1.4.11). Of every
colour there is a darker one for words, by 4.5 to 1. On dark paper both are the same light one. A page declares all of
them as variables; a figure that stands alone has the light ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = ("#0072b2", "#d55e00", "#009e73", "#c5699a", "#c27c00", "#2f93ce")
INK, MUTED, GRID, PAPER = "#222222", "#5c5c5c", "#e3e3e3", "#ffffff"
GRAPHICS = MappingProxyType(
    {
        "blue": (BLUE, "#5fb0e8"),
        "vermillion": (VERMILLION, "#f08c4a"),
        "green": (GREEN, "#3cc79c"),
        "purple": (PURPLE, "#df9cc1"),
        "orange": (ORANGE, "#e9b44c"),
        "sky": (SKY, "#8fcbf0"),
    }
)
"""Colours of lines, bars and marks: on light paper, on dark."""
PLAIN = MappingProxyType(
    {
        "ink": (INK, "#e6e6e6"),
        "muted": (MUTED, "#a8a8a8"),
        "line": (GRID, "#3a3a3a"),
        "paper": (PAPER, "#161616"),
        "code": ("#f6f6f6", "#222323"),
        "accent": ("#005f96", "#6cb6e8"),
    }
)
"""Colours of the page: words, lesser words, rules, paper, paper beneath code, what can be pressed."""


def darker(color: str) -> str:
    """The same hue, dark enough for small words on white."""
    return "#" + "".join(f"{round(0.72 * int(color[place : place + 2], 16)):02x}" for place in (1, 3, 5))


def variables() -> Mapping[str, tuple[str, str]]:
    """Return every colour by the name of its CSS variable: on light paper, on dark."""
    words = {f"{name}-text": (darker(light), dark) for name, (light, dark) in GRAPHICS.items()}
    words |= {"ink-text": (darker(INK), PLAIN["ink"][1]), "muted-text": (darker(MUTED), PLAIN["muted"][1])}
    return {**PLAIN, **GRAPHICS, **words}


def css(dark: bool) -> str:
    """The declarations of all variables."""
    return " ".join(f"--{name}: {tones[dark]};" for name, tones in variables().items())


def themed(svg: str) -> str:
    """A figure whose colours are the page's variables, and its own where the page has none."""
    names = {light: name for name, (light, _) in variables().items()}

    def named(match: re.Match[str]) -> str:
        name = names.get(match[0].lower())
        return match[0] if name is None else f"var(--{name}, {match[0]})"

    return re.sub(r"(?<=: )#[0-9a-fA-F]{6}\b", named, svg)
