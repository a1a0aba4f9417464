"""Settings of a sweep and of a search: grids, ranges and choices of keys, as they are typed. Light, for the start.

In a search Optuna chooses one setting after the other, by what those before have reached on validation. A trial's
values follow from the seed and from what the trials before it have reached: the same search has the same trials, and
one that is typed again reads those that are done and goes on behind them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_peel.errors import ScenarioError, shortened
from fl_peel.packages import optional
from fl_peel.scenario.base import as_share

MAX_FOLDER = 100
"""Characters of a folder's name."""
MAX_SETTINGS = 1000
TRIALS = 20
"""Number of settings that a search evaluates unless another number is given."""
_OPEN, _CLOSE, _QUOTES = "[{", "]}", "'\""


@dataclass(frozen=True)
class Setting:
    """A setting. values: by key, as typed, of the keys that vary; fixed: overrides that all settings have."""

    values: tuple[tuple[str, str], ...]
    fixed: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """Return the setting as `fl-peel run --set` has it."""
        return [*self.fixed, *(f"{path}={text}" for path, text in self.values)]

    @property
    def label(self) -> str:
        names = short_names(path for path, _ in self.values)
        return ", ".join(f"{name}={text}" for name, (_, text) in zip(names, self.values, strict=True))

    @property
    def folder(self) -> str:
        """Return the folder's name, by the values alone: a larger sweep finds what a smaller one has left."""
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


_RANGE = re.compile(r"(?P<low>[^,(]+?)\.\.(?P<high>[^,(]+)(?:\((?P<kind>[^)]*)\))?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_STEP = re.compile(r"step\s+(\S+)")


def optuna() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional("optuna", "search", "--search")


@dataclass(frozen=True)
class Space:
    """The space of a search. varied: Optuna's distribution of each key that it chooses; fixed: overrides that all
    settings have.
    """

    varied: Mapping[str, Any]
    fixed: tuple[str, ...]

    def setting(self, values: Mapping[str, Any]) -> Setting:
        """Return the setting with a value for each key, as it is typed: floats with four digits, within the range."""
        texts = ((path, _text(one, values[path])) for path, one in self.varied.items())
        return Setting(tuple(texts), self.fixed)

    @property
    def edges(self) -> tuple[Setting, ...]:
        """Settings with every end and every choice in one of them: what is wrong with a value shows in these."""
        options = {path: getattr(one, "choices", None) or (one.low, one.high) for path, one in self.varied.items()}
        most = max(map(len, options.values()))
        return tuple(
            self.setting({path: values[min(place, len(values) - 1)] for path, values in options.items()})
            for place in range(most)
        )

    def as_parameters(self, own: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a scenario's own values as Optuna has them, None where a search cannot come to them."""
        values = {path: own.get(path) for path in self.varied}
        values |= {path: str(values[path]) for path, one in self.varied.items() if hasattr(one, "choices")}
        try:
            optuna().create_trial(value=0.0, params=values, distributions=dict(self.varied))
        except ValueError:
            return None
        return values


def _text(distribution: Any, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return repr(min(max(float(f"{value:.4g}"), distribution.low), distribution.high))


def space_of(searched: Iterable[str], asked: Iterable[str] = ()) -> Space:
    """searched: ``path=low..high``, ``path=low..high(log)``, ``path=low..high(step 8)`` or ``path=value,value``; whole
    numbers where both ends are. asked: ``path=value``, the same in all settings.

    Raises:
        ScenarioError: something of this makes no sense, or a key is given twice.
        MissingExtraError: Optuna is not installed.
    """
    several, fixed = values_of(asked)
    if several:
        raise ScenarioError(f"--set {next(iter(several))}: has several values; in a search, give them with --search")
    varied: dict[str, Any] = {}
    for text in searched:
        path, distribution = _varied(text)
        if path in varied or path in fixed:
            raise ScenarioError(f"--search {path}: is given twice; leave one out")
        varied[path] = distribution
    return Space(varied, as_overrides(fixed))


def _varied(text: str) -> tuple[str, Any]:
    path, equals, values = (part.strip() for part in text.partition("="))
    shown = f"--search {shortened(text, 100)}"
    if not equals or not path or not values:
        raise ScenarioError(f"{shown}: expected path=low..high, e.g. 'refinement.local.learning_rate=0.01..1(log)'")
    if path == "seed":
        raise ScenarioError(f"{shown}: seeds are not a setting; give --seed and --seeds")
    if match := _RANGE.fullmatch(values):
        return path, _range(shown, match)
    choices = tuple(dict.fromkeys(split_values(values)))
    if not all(choices) or len(choices) < 2:
        raise ScenarioError(f"{shown}: expected low..high, or values between commas; one value is for --set")
    return path, optuna().distributions.CategoricalDistribution(choices)


def _range(shown: str, match: re.Match[str]) -> Any:
    low_text, high_text, kind = match["low"].strip(), match["high"].strip(), (match["kind"] or "").strip()
    low, high = _number(shown, low_text), _number(shown, high_text)
    if not low < high:
        raise ScenarioError(f"{shown}: from {low_text} to {high_text} there is no value; give the lower end first")
    stepped = _STEP.fullmatch(kind)
    if not stepped and kind not in ("", "log"):
        raise ScenarioError(f"{shown}: ({kind}) is unknown; known: (log), (step 8)")
    step = _number(shown, stepped[1]) if stepped else None
    whole = all(_WHOLE.fullmatch(text) for text in (low_text, high_text))
    if whole and step is not None and step != int(step):
        raise ScenarioError(f"{shown}: a step must be a whole number where the ends are")
    more = {} if step is None else {"step": int(step) if whole else step}
    distributions = optuna().distributions
    try:
        if whole:
            return distributions.IntDistribution(int(low), int(high), log=kind == "log", **more)
        return distributions.FloatDistribution(low, high, log=kind == "log", **more)
    except ValueError as error:
        raise ScenarioError(f"{shown}: {error}") from None


def _number(shown: str, text: str) -> float:
    try:
        value = float(as_share(text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ScenarioError(f"{shown}: {shortened(text, 40)} is not a number; expected low..high, e.g. 0.01..1(log)")
    return value


OnTrial = Callable[[int, Setting, float], None]


def search(
    space: Space,
    own: Mapping[str, Any],
    validation_of: Callable[[Setting], float],
    *,
    trials: int,
    seed: int,
    on_trial: OnTrial,
) -> None:
    """Look so many times for the setting whose validation is the highest. own: the scenario's values of the keys, which
    are the first trial where the space has them; on_trial: the number of a trial, its setting, and what it reached.
    """
    library = optuna()
    library.logging.set_verbosity(library.logging.WARNING)
    from fl_peel.randomness import seed_for  # with NumPy, which the start of every command would wait for

    sampler = library.samplers.TPESampler(seed=seed_for(seed, "search") % 2**32)
    study = library.create_study(direction="maximize", sampler=sampler)
    first = space.as_parameters(own)
    if first is not None:
        study.enqueue_trial(first)
    for number in range(1, trials + 1):
        trial = study.ask(dict(space.varied))
        setting = space.setting(trial.params)
        reached = validation_of(setting)
        study.tell(trial, reached)
        on_trial(number, setting, reached)
