"""A search: Optuna chooses one setting after the other, by what those before have reached on validation.

A trial's values follow from the seed and from what the trials before it have reached: the same search has the same
trials, and one that is typed again reads those that are done and goes on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fl_peel.packages import optional
from fl_peel.randomness import seed_for
from simulations.sweep.space import ListedValues, Setting, Space, Varied

OwnValues = Mapping[str, Any]
OnTrial = Callable[[int, Setting, float], None]


def optuna() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional("optuna", "search", "--search")


def search(
    space: Space,
    own: OwnValues,
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
    sampler = library.samplers.TPESampler(seed=seed_for(seed, "search") % 2**32)
    study = library.create_study(direction="maximize", sampler=sampler)
    first = {one.path: _as_suggested(one, own.get(one.path)) for one in space.varied}
    if None not in first.values():
        study.enqueue_trial(first)
    for number in range(1, trials + 1):
        trial = study.ask()
        setting = space.setting(_suggested(trial, one) for one in space.varied)
        reached = validation_of(setting)
        study.tell(trial, reached)
        on_trial(number, setting, reached)


def _as_suggested(one: Varied, value: Any) -> Any:
    """A scenario's own value as Optuna would have it, or None where a search cannot come to it."""
    if isinstance(one, ListedValues):
        return next((text for text in one.values if text == str(value)), None)
    return value if one.holds(value) else None


def _suggested(trial: Any, one: Varied) -> str:
    if isinstance(one, ListedValues):
        return str(trial.suggest_categorical(one.path, one.values))
    if one.whole:
        step = 1 if one.step is None else int(one.step)
        return one.text_of(trial.suggest_int(one.path, int(one.low), int(one.high), log=one.log, step=step))
    return one.text_of(trial.suggest_float(one.path, one.low, one.high, log=one.log, step=one.step))
