"""What comparisons and ablations share: one seed's data, its stages with checkpoints, trials on one engine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fl_peel.config import Scenario
from fl_peel.devices import device_splits
from fl_peel.errors import BudgetError, ScenarioError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.interactions import Splits
from simulations.checkpoints import FEDERATED, Checkpoints, data_digest, decisive
from simulations.runner import run_folder, simulated
from strategies.server_app import Place, Prepared, Stages, prepare
from strategies.trials import Trial, serve_trials


@dataclass
class Study:
    """One seed of a study. seconds: of every stage, as it was when it was really done."""

    scenario: Scenario
    place: Place
    splits: Splits
    checkpoints: Checkpoints
    on_event: OnEvent = silent
    seconds: dict[str, float] = field(default_factory=dict)
    _prepared: list[Prepared] = field(default_factory=list)

    def prepared(self) -> Prepared:
        """Stage 1 of the study's scenario; done when it is first needed, its tables kept by content."""
        if not self._prepared:
            stages = Stages()
            evaluation = self.scenario.evaluation.model_copy(update={"budgets": (1.0,)})
            scenario = self.scenario.model_copy(update={"evaluation": evaluation})
            self._prepared.append(prepare(scenario, self.place, stages, self.on_event))
            self.seconds.setdefault("pretraining", stages.seconds["pretraining"])
        return self._prepared[0]

    def stage(self, name: str, decides: object, sources: Sequence[str], work: Any) -> Any:
        """The result of a stage, kept or done now. decides: everything that does, but for the data and the sources."""
        result, seconds = self.checkpoints.stage(name, decides, sources, work)
        if seconds is None:
            self.on_event(Event(name, 1, 1, "kept from an earlier run"))
        else:
            self.seconds[name] = seconds
        return result

    def trials(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Results of trials by name: kept ones, and the others from one start of the engine."""
        paths = {trial.name: self.checkpoints.path(trial.name, _content(trial), FEDERATED) for trial in trials}
        results = {name: self.checkpoints.read(path) for name, path in paths.items()}
        missing = [trial for trial in trials if results[trial.name] is None]
        for trial in trials:
            if trial not in missing:
                self.on_event(Event(trial.name, 1, 1, "kept from an earlier run"))
        if missing:
            self.prepared()  # pretraining is told here, and found there
            start = time.perf_counter()

            def done(trial: Trial, result: dict[str, Any]) -> None:
                nonlocal start
                seconds = time.perf_counter() - start
                self.checkpoints.write(paths[trial.name], result, seconds)
                self.seconds[trial.name] = seconds
                start = time.perf_counter()

            def server(grid: Grid, scenario: Scenario, place: Place, on_event: OnEvent) -> dict[str, Any]:
                return serve_trials(grid, missing, place, on_event, done)

            results |= simulated(self.scenario, self.place, self.on_event, server=server)
        return results


def _content(trial: Trial) -> list[Any]:
    what = [trial.shares, trial.precisions, trial.selectors, trial.full_tables]
    return [decisive(trial.scenario), *what, trial.scenario.evaluation.top_n]


@contextmanager
def open_study(
    scenario: Scenario, out: Path, *, data_dir: str | Path | None, cache_dir: str | Path | None, on_event: OnEvent
) -> Iterator[Study]:
    """One seed's study, in a folder of its own that is gone afterwards; what is kept lies in ``out``/checkpoints."""
    if scenario.evaluation.top_n != 20:
        raise ScenarioError(f"evaluation.top_n: {scenario.evaluation.top_n} is not 20, which studies report; leave it")
    folder = out / "checkpoints"
    with run_folder() as run_dir:
        data = os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")
        place = Place(data, str(run_dir), str(cache_dir or folder / "tables"))
        splits = device_splits(scenario, place.data_dir, place.run_dir)
        yield Study(scenario, place, splits, Checkpoints(folder, data_digest(splits)), on_event)


def read_budgets(text: str, option: str = "--budgets") -> tuple[float, ...]:
    """``0.1%,0.25%,0.01`` as ascending fractions.

    Raises:
        BudgetError: not a list of shares above 0 and at most 1.
    """
    shares = []
    for part in text.split(","):
        word = part.strip()
        try:
            share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
        except ValueError as error:
            raise BudgetError(f"{option}: {word!r} is not a share; write e.g. 0.5%,1%") from error
        if not 0 < share <= 1:
            raise BudgetError(f"{option}: {word} is not above 0 and at most 100%; write e.g. 0.5%,1%")
        shares.append(share)
    return tuple(sorted(set(shares)))
