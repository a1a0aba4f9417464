"""Run a scenario under every combination of some settings, each with several seeds, and put them side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from fl_peel.errors import ReportError, ScenarioError
from fl_peel.events import Event, stages_under
from fl_peel.ranking.bootstrap import REPLICATES
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import Store
from simulations.engine.folders import data_folder, run_folder
from simulations.engine.inputs import SWEEP_RESULTS, check_out, checked, require_folders, splits_to_run
from simulations.engine.versions import versions
from simulations.report.result_files import write_results
from simulations.resumable import CHECKPOINTS, about_run, mark_finished, owned_store, read_finished
from simulations.run_options import RunArguments, RunOptions
from simulations.runner import run_seeds
from simulations.scenario_files import load_scenario
from simulations.sweep.report import SWEEP, MeasuredSetting, SweepResult, shared_tables, sweep_rows
from simulations.sweep.space import TRIALS, Setting, Space, optuna, search, settings_of, space_of


@dataclass(frozen=True)
class PlannedSetting:
    """A setting with its checked scenario, its folder, and what its runs are, by which they are known again."""

    setting: Setting
    scenario: Scenario
    folder: Path
    about: dict[str, Any]


@dataclass(frozen=True)
class SweepRunner:
    """The runner of settings with their seeds, each in a folder of its own below ``out``. seed: the first."""

    source: str | Path
    out: Path
    seeds: int
    seed: int | None
    options: RunOptions

    def planned(self, settings: Sequence[Setting]) -> list[PlannedSetting]:
        """Plan every setting's scenario, checked with its data; nothing is written.

        Raises:
            FlPeelError: the first mistake, in one line.
        """
        check_out(self.out, writes=SWEEP_RESULTS)
        scenarios = [load_scenario(self.source, setting.overrides, seed=self.seed) for setting in settings]
        if any(one.data.timeline is not None for one in scenarios):
            raise ScenarioError("data.timeline: sweeps do not support timelines; leave it out")
        if len({one.evaluation.top_n for one in scenarios}) > 1:
            raise ScenarioError(
                "evaluation.top_n: metrics of lists of different lengths cannot be compared; give it one value"
            )
        plans = []
        for setting, scenario in zip(settings, scenarios, strict=True):
            named = scenario.model_copy(update={"name": f"{scenario.name}: {setting.label}"})
            one = checked(named, None)
            folder = require_folders(self.out / setting.folder, one, self.seeds)
            with run_folder() as run_dir:
                splits = splits_to_run(one, data_folder(self.options.data_dir), str(run_dir))
                about = about_run(one, splits) | {"seeds": self.seeds}
            plans.append(PlannedSetting(setting, one, folder, about))
        return plans

    def measured(self, plan: PlannedSetting, store: Store) -> MeasuredSetting:
        """Run a setting, or read what an earlier sweep has left of it. store: which settings are done."""
        on_setting_event = stages_under(plan.setting.label, self.options.on_event)
        if not self.options.fresh and read_finished(store, plan.folder, plan.about):
            on_setting_event(Event("report", 1, 1, "resumed from an earlier sweep"))
            return MeasuredSetting.read(plan.folder, plan.setting)
        run_seeds(plan.scenario, self.seeds, replace(self.options, out=plan.folder, on_event=on_setting_event))
        mark_finished(store, plan.folder, plan.about)
        return MeasuredSetting.read(plan.folder, plan.setting)


def sweep(
    scenario: str | Path = "ml-100k",
    asked: Iterable[str] = (),
    *,
    seeds: int = 1,
    seed: int | None = None,
    searched: Iterable[str] = (),
    trials: int = TRIALS,
    **arguments: Unpack[RunArguments],
) -> SweepResult:
    """Run every combination of ``path=value,value,...`` with so many seeds, each into a folder of its own below
    ``out``, and write sweep.json, .csv, .html and .svg there. What is done is read: of a sweep that was stopped, and of
    a smaller one; fresh: all is run anew. searched: in place of combinations, Optuna looks so many times for the values
    of ``path=low..high`` that are the best on validation; ``asked`` then has one value a key.

    Raises:
        FlPeelError: a mistake in any of the scenarios, before anything runs; or as :func:`simulations.runner.run`.
        MissingExtraError: a search, and Optuna is not installed.
    """
    options = RunOptions(**arguments)
    if options.out is None:
        raise ReportError("out: a sweep needs a folder for its results")
    how = SweepRunner(scenario, Path(options.out), seeds, seed, options)
    looked_for = tuple(searched)
    space = space_of(looked_for, asked) if looked_for else None
    if space is not None:
        optuna()
    plans = how.planned(settings_of(asked) if space is None else space.edges)
    first = plans[0].scenario
    if space is not None and not (first.refinement.rounds and first.data.validation_share):
        raise ScenarioError(
            "--search: needs validation recall after the last round, which is not measured; raise "
            "refinement.rounds and data.validation_share above 0"
        )
    with owned_store(how.out / CHECKPOINTS) as store:
        if space is None:
            settings = []
            for number, plan in enumerate(plans, start=1):
                settings.append((plan, how.measured(plan, store)))
                options.on_event(Event("sweep", number, len(plans), plan.setting.label))
        else:
            settings = _searched(how, store, space, trials)
        result = _result([plan for plan, _ in settings], [measured for _, measured in settings], options.command)
        if looked_for:
            result = replace(result, search=looked_for, trials=trials)
        write_results(how.out, SWEEP.contents(result), out_of_date=lambda name: name == "sweep.svg")
    return result


def _searched(
    how: SweepRunner, store: Store, space: Space, trials: int
) -> list[tuple[PlannedSetting, MeasuredSetting]]:
    """The settings of a search, each once, in the order of trials."""
    own = load_scenario(how.source, space.fixed, seed=how.seed)
    tried: dict[Setting, tuple[PlannedSetting, MeasuredSetting]] = {}

    def validation_of(setting: Setting) -> float:
        if setting not in tried:
            (plan,) = how.planned([setting])
            tried[setting] = plan, how.measured(plan, store)
        reached = tried[setting][1].validation
        if reached is None:
            raise ScenarioError(f"--search: {setting.label} has no validation recall; give another --search")
        return reached

    def on_trial(number: int, setting: Setting, reached: float) -> None:
        how.options.on_event(Event("search", number, trials, f"{setting.label}: validation {reached:.4f}"))

    search(space, values_at(own, space), validation_of, trials=trials, seed=own.seed, on_trial=on_trial)
    return list(tried.values())


def values_at(scenario: Scenario, space: Space) -> dict[str, Any]:
    """Return the scenario's values at the keys of a search; nothing where it has none."""
    values: dict[str, Any] = {}
    for one in space.varied:
        value: Any = scenario.model_dump(mode="json")
        for name in one.path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        values[one.path] = value
    return values


def _result(plans: Sequence[PlannedSetting], measured: Sequence[MeasuredSetting], command: str | None) -> SweepResult:
    first = plans[0].scenario
    replicates = first.evaluation.bootstrap or REPLICATES
    known = {one.setting.label: one.validation for one in measured if one.validation is not None}
    return SweepResult(
        scenario=first.model_dump(mode="json"),
        seeds=measured[0].runs.seeds,
        devices=min(one.runs.num_devices for one in measured),
        top_n=measured[0].runs.top_n,
        replicates=replicates,
        fixed=plans[0].setting.fixed,
        chosen=max(known, key=known.__getitem__) if len(known) == len(measured) else None,
        rows=sweep_rows(measured, shared_tables(measured), replicates),
        versions=versions(),
        command=command,
    )
