"""Settings of a sweep: every combination of the values that are given for keys."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fl_peel.errors import ScenarioError, shortened

MAX_FOLDER = 100
"""Characters of a folder's name."""
MAX_SETTINGS = 1000
TRIALS = 20
"""Number of settings that a search evaluates unless another number is given."""
_OPEN, _CLOSE, _QUOTES = "[{", "]}", "'\""


@dataclass(frozen=True)
class Setting:
    """A setting of a sweep. values: values by key, as they are typed, of the keys that vary; fixed: overrides that all
    settings have.
    """

    values: tuple[tuple[str, str], ...]
    fixed: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """Return the setting as `fl-peel run --set` has it."""
        return [*self.fixed, *(f"{path}={text}" for path, text in self.values)]

    @property
    def label(self) -> str:
        """Return a label for people."""
        names = short_names(path for path, _ in self.values)
        return ", ".join(f"{name}={text}" for name, (_, text) in zip(names, self.values, strict=True))

    @property
    def folder(self) -> str:
        """Return the name of the folder, which follows from the values alone, so that a larger sweep finds what a
        smaller one has left.
        """
        whole = ",".join(f"{path}={text}" for path, text in self.values)
        plain = re.sub(r"[^\w.=,%+-]+", "_", whole, flags=re.ASCII)[:MAX_FOLDER]
        return plain if plain == whole else f"{plain}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"


def short_names(paths: Iterable[str]) -> list[str]:
    """The last names of keys, where these differ."""
    whole = list(paths)
    last = [path.rpartition(".")[2] for path in whole]
    return last if len(set(last)) == len(last) else whole


def settings_of(asked: Iterable[str]) -> tuple[Setting, ...]:
    """Return every combination, the last key fastest. asked: ``path=value,value,...``; one value is the same in all of
    them.

    Raises:
        ScenarioError: no values, a key that is given twice or is the seed, nothing that varies, or too many settings.
    """
    varying, fixed = values_of(asked)
    if not varying:
        raise ScenarioError("--set: nothing varies; give a key several values, e.g. --set refinement.rounds=1,5")
    combinations = list(itertools.islice(itertools.product(*varying.values()), MAX_SETTINGS + 1))
    if len(combinations) > MAX_SETTINGS:
        raise ScenarioError(f"--set: more than {MAX_SETTINGS} combinations; give fewer values")
    same = as_overrides(fixed)
    return tuple(Setting(tuple(zip(varying, values, strict=True)), same) for values in combinations)


def values_of(asked: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Keys with several values, and keys with one.

    Raises:
        ScenarioError: no values, or a key that is given twice or is the seed.
    """
    varying: dict[str, list[str]] = {}
    fixed: dict[str, str] = {}
    for text in asked:
        path, equals, values = text.partition("=")
        path, choices = path.strip(), list(dict.fromkeys(split_values(values)))
        shown = f"--set {shortened(text, 100)}"
        if not equals or not path or not all(choices):
            raise ScenarioError(f"{shown}: expected path=value,value, e.g. refinement.rounds=1,5")
        if path in varying or path in fixed:
            raise ScenarioError(f"{shown}: {path} is given twice; write all its values in one --set, with commas")
        if path == "seed":
            raise ScenarioError(f"{shown}: seeds are not a setting; give --seed and --seeds")
        if len(choices) > 1:
            varying[path] = choices
        else:
            fixed[path] = choices[0]
    return varying, fixed


def as_overrides(fixed: dict[str, str]) -> tuple[str, ...]:
    """Return overrides as ``--set`` has them."""
    return tuple(f"{path}={text}" for path, text in fixed.items())


def split_values(text: str) -> list[str]:
    """Values between commas; those within brackets or quotes part nothing: ``[1, 2],[3]`` is ``[1, 2]`` and ``[3]``."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif char == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]
