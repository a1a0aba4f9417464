"""Parts that comparisons and ablations share: one seed's data, its stages with checkpoints, trials on one engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fl_peel.data.interactions import Splits
from fl_peel.device_storage import device_splits
from fl_peel.errors import BudgetError, ScenarioError
from fl_peel.events import OnEvent, silent
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import simulated
from simulations.engine.folders import data_folder, run_folder
from simulations.engine.inputs import check_data, check_devices, require_items
from simulations.resumable import CHECKPOINTS, data_digest, owned_store
from simulations.run_options import RunOptions
from simulations.studies.checkpoints import Checkpoints, decisive, stage_key
from strategies.evaluation.trials import Trial, serve_trials
from strategies.run.central_stage1 import CentralStage1Outcome, prepare_collected
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import privacy_plan


@dataclass
class Study:
    """One seed of a study. data: digest of the devices' data; seconds: of every stage, as it was when it was really
    done.
    """

    scenario: Scenario
    paths: RunPaths
    splits: Splits
    data: str
    checkpoints: Checkpoints
    on_event: OnEvent = silent
    seconds: dict[str, float] = field(default_factory=dict)
    _prepared: list[CentralStage1Outcome] = field(default_factory=list)

    @property
    def tested_devices(self) -> int:
        """Return how many devices have test items: figures are means over these."""
        return int((self.splits.test.counts() > 0).sum())

    def prepared(self) -> CentralStage1Outcome:
        """Stage 1 of the study's scenario; done when it is first needed, its tables kept by content."""
        if not self._prepared:
            stages = StageTimes()
            evaluation = self.scenario.evaluation.model_copy(update={"budgets": (1.0,)})
            scenario = self.scenario.model_copy(update={"evaluation": evaluation})
            self._prepared.append(prepare_collected(scenario, self.paths, stages, self.on_event))
            self.seconds.setdefault("pretraining", stages.seconds["pretraining"])
        return self._prepared[0]

    def stage(self, name: str, decides: object, work: Callable[[], Any], modules: Sequence[str] = ()) -> Any:
        """The result of a stage, kept or done now.

        decides: everything that does, but for the data and the code; modules: as in :func:`stage_key`.
        """
        key = stage_key(self.data, decides, modules)
        kept = self.checkpoints.read({name: key})
        if name in kept:
            return kept[name]
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        self.checkpoints.write(name, key, result, self.seconds[name])
        return result

    def trials(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Results of trials by name: kept ones, and the others from one start of the engine.

        The first is what all others are compared with: where its devices can take no part, there is no study.

        Raises:
            ScenarioError: a trial whose privacy cannot be had, before anything is trained.
            BudgetError: some device can hold no block of the first trial.
            FlPeelError: whatever stopped the server's side, or the engine.
        """
        keys = {trial.name: stage_key(self.data, _content(trial)) for trial in trials}
        results = self.checkpoints.read(keys)
        missing = [trial for trial in trials if trial.name not in results]
        if missing:
            self._require_plans(missing)
            if self.scenario.pretraining.model != "spectral":
                self.prepared()  # pretraining is told here, and found there
            start = time.perf_counter()

            def done(trial: Trial, result: dict[str, Any]) -> None:
                nonlocal start
                if trial is trials[0] and "note" in result:
                    raise BudgetError(result["note"])
                seconds = time.perf_counter() - start
                self.checkpoints.write(trial.name, keys[trial.name], result, seconds)
                self.seconds[trial.name] = seconds
                start = time.perf_counter()

            def server(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent) -> dict[str, Any]:
                return serve_trials(grid, missing, paths, on_event, done)

            results |= simulated(self.scenario, self.paths, self.on_event, server=server)
        return results

    def _require_plans(self, trials: Sequence[Trial]) -> None:
        """Make sure that every trial's epsilon can be had, once for those that differ in nothing that decides it."""
        seen = []
        for trial in trials:
            others = {"blocks", "fleet", "budget_factor"}
            if not trial.scenario.pretraining.by_devices:  # what devices say there decides it, too
                others |= {"user_groups", "pretraining"}
            content = trial.scenario.model_dump(mode="json", exclude=others)
            content["collected"] = trial.scenario.pretraining.collected.model_dump(mode="json")
            if content not in seen:
                privacy_plan(trial.scenario, self.paths)
                seen.append(content)


def _content(trial: Trial) -> list[Any]:
    what = [trial.shares, trial.precisions, trial.selectors, trial.full_tables]
    return [decisive(trial.scenario), *what, trial.scenario.evaluation.top_n]


def study_splits(scenario: Scenario, paths: RunPaths) -> Splits:
    """The devices' data.

    Raises:
        DataError: it cannot be had.
        ScenarioError: nothing in it to choose on, or to report on, or keys that ask for more than it has.
        BudgetError: some device can never hold a block.
    """
    if scenario.data.refit:
        raise ScenarioError(
            "data.refit: studies choose settings on validation items, which refit trains on; leave it out"
        )
    splits = device_splits(scenario, paths.data_dir, paths.run_dir)
    require_items(splits, "validation", "studies choose settings on them; raise it")
    require_items(splits, "test", "studies report metrics on them; raise it")
    check_data(scenario, splits)
    check_devices(scenario, splits)
    return splits


@contextmanager
def open_study(scenario: Scenario, out: Path, options: RunOptions) -> Iterator[Study]:
    """One seed's study, in a folder of its own that is gone afterwards; what is kept lies in ``out``/checkpoints."""
    folder, on_event = out / CHECKPOINTS, options.on_event
    with run_folder() as run_dir:
        paths = RunPaths(data_folder(options.data_dir), str(run_dir), str(options.cache_dir or folder / "tables"))
        splits = study_splits(scenario, paths)
        with owned_store(folder) as store:
            checkpoints = Checkpoints(store, on_event, fresh=options.fresh)
            yield Study(scenario, paths, splits, data_digest(splits), checkpoints, on_event)
