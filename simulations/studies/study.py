"""Parts that studies share: the frame, one seed's data and stages with checkpoints, rows over several seeds.

A stage's key is everything that decides its result: what the stage says of itself, the devices' data, and the code.
Change any, and the stage is done anew.

A study loads its scenario and refuses what it cannot measure (:meth:`Frame.from_scenario`) before it does any work,
does its own work with :meth:`Frame.by_seed`, and adds to its figures where they are from (:meth:`Frame.written`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.serverapp import Grid

from fl_peel.data.interactions import Splits
from fl_peel.device_storage import device_splits
from fl_peel.errors import BudgetError, ReportError, ScenarioError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.figures import Estimate
from fl_peel.json_codec import to_plain
from fl_peel.packages import PACKAGES, code_digest, own_root
from fl_peel.plugins import all_added
from fl_peel.ranking.bootstrap import Sample, holm
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import Store
from fl_peel.training.workers import threads_for
from simulations.engine.embedded_engine import called, helpers_ahead, processors
from simulations.engine.engine import on_remaining_machines, simulated, starting
from simulations.engine.inputs import (
    STUDY_RESULTS,
    check_data,
    check_devices,
    checked,
    data_folder,
    given_folder,
    require_items,
    run_folder,
)
from simulations.report.render import ResultKind
from simulations.report.result_files import write_results
from simulations.resumable import CHECKPOINTS, data_digest, fleet_digests, owned_store, versions
from simulations.scenario_files import RunOptions, StudyArguments, load_scenario
from strategies.evaluation.trials import Trial, serve_trials
from strategies.run.prepare import CentralStage1Outcome, prepare_collected
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import privacy_plan

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study. fresh: what was there before is not read."""

    store: Store
    on_event: OnEvent = silent
    fresh: bool = False
    _written: list[tuple[str, Any]] = field(default_factory=list, repr=False, compare=False)

    def read(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Return kept results by name. keys: what decides each; an event says so where something else was kept."""
        results = {}
        for name, key in keys.items():
            if self.fresh and (name, key) not in self._written:
                continue
            entry = self.store.read(name, key)
            if entry is not None:
                results[name] = entry.value["result"]
                self.on_event(Event(name, 1, 1, "resumed from an earlier run"))
            elif self.store.others(name, key):
                self.on_event(
                    Event(name, 0, 1, "checkpoint of another scenario, data, fleet, options or version: computed again")
                )
        return results

    def write(self, name: str, key: Any, result: Any, seconds: float) -> Any:
        """Keep a result, whole or not at all; returns it as it will be read.

        Raises:
            ReportError: the folder cannot be written.
        """
        value = to_plain({"seconds": seconds, "result": result}, name)
        try:
            self.store.write(name, key, value)
        except OSError as error:
            raise ReportError(f"{self.store.folder}: cannot write ({error}); the same command goes on later") from error
        self._written.append((name, key))
        return value["result"]


def stage_key(data: str, content: object, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything that decides the result of a stage. data: digest of the devices' data; content: what the stage
    says of itself; modules: modules that it enters besides our own and those of installed packages.
    """
    return {"data": data, "decides": content, "code": code_behind(tuple(modules))}


@cache
def code_behind(modules: tuple[str, ...] = ()) -> str:
    """Return a digest of our packages' code, and of that of the packages of other modules and of all that packages add.

    It is read once: what runs in this process is what was there when it started.
    """
    digest = hashlib.blake2b(code_digest(own_root()).encode(), digest_size=10)
    names = {name.partition(".")[0] for name in (*modules, *(point.module for point in all_added()))}
    for name in sorted(names - set(PACKAGES)):
        for path in _source_files(name):
            # what was typed into an interpreter has no file: who knows whether it is the same next time
            digest.update(uuid.uuid4().bytes if path is None else path.read_bytes())
    return digest.hexdigest()


def _source_files(name: str) -> list[Path] | list[None]:
    """Return the files of a package or module, without importing it; None stands for one that has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:  # it is named, and not installed
            return []
        file = spec.origin
    if file is None:
        return [None]
    path = Path(file)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def decisive(scenario: Scenario) -> dict[str, Any]:
    """Return what of a scenario decides a study's figures: not its name, the machine or the report's own parts."""
    content = scenario.model_dump(mode="json")
    for key in ("name", "question", "engine", "evaluation", "fairness", "elasticity"):
        content.pop(key, None)
    return content | {"device": scenario.engine.device, "fleet files": fleet_digests(scenario)}


def decisive_of_tables(scenario: Scenario) -> dict[str, Any]:
    """Return what of a scenario decides figures that start from pretrained tables and know no device."""
    content = scenario.model_dump(mode="json")
    return {key: content[key] for key in ("seed", "data", "pretraining")} | {"device": scenario.engine.device}


def decisive_of_starts(scenario: Scenario) -> dict[str, Any]:
    """The same, of those who may also start from the tables of the user groups."""
    return decisive_of_tables(scenario) | {"user_groups": scenario.model_dump(mode="json")["user_groups"]}


@dataclass(frozen=True)
class StudyStage:
    """A stage that needs no other one. decides: everything that decides its result, but for the data and the code;
    work: makes it; modules: as in :func:`stage_key`; cost: about how long it takes, relative to others; here: it starts
    nodes, so that only this process can do it.
    """

    name: str
    decides: object
    work: Callable[[Study], Any]
    modules: Sequence[str] = ()
    cost: float = 1
    here: bool = False

    @property
    def movable(self) -> bool:
        """Return whether a process that helps can do it: it finds our code alone."""
        return not self.here and all(name.partition(".")[0] in PACKAGES for name in self.modules)


@dataclass
class Study:
    """One seed of a study. data: digest of the devices' data; seconds: of every stage when it was really done."""

    scenario: Scenario
    paths: RunPaths
    splits: Splits
    data: str
    checkpoints: Checkpoints
    on_event: OnEvent = silent
    seconds: dict[str, float] = field(default_factory=dict)
    _made: dict[object, Any] = field(default_factory=dict)

    @property
    def tested_devices(self) -> int:
        """Return how many devices have test items: figures are means over these."""
        return int((self.splits.test.counts() > 0).sum())

    def once(self, make: Callable[[Study], T]) -> T:
        """Return what a function makes of the study, when it is first asked for."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def prepared(self) -> CentralStage1Outcome:
        """Stage 1 of the study's scenario; done when it is first needed, its tables kept by content."""
        return self.once(_prepared)

    def stages(self, stages: Sequence[StudyStage]) -> list[Any]:
        """Results of stages: kept ones, and others done now, several at a time in processes that help, as many as there
        are processors for; the rest in this process.
        """
        keys = {one.name: stage_key(self.data, one.decides, one.modules) for one in stages}
        results = self.checkpoints.read(keys)
        missing = {one.name: one for one in stages if one.name not in results}
        costs = {name: one.cost for name, one in missing.items()}
        start, everything = time.perf_counter(), sum(costs.values())

        def keep(name: str, result: Any, seconds: float) -> None:
            self.seconds[name] = seconds
            results[name] = self.checkpoints.write(name, keys[name], result, seconds)
            del costs[name]
            left_s = (time.perf_counter() - start) * sum(costs.values()) / (everything - sum(costs.values()))
            text = f"{name}: {seconds:.0f} s; about {left_s / 60:.0f} min left" if costs else ""
            self.on_event(Event("study", len(stages) - len(costs), len(stages), text))

        together = processors() // threads_for(self.splits.train.num_interactions)
        longest_first = sorted(missing.items(), key=lambda pair: -pair[1].cost)  # so that none is left alone at the end
        elsewhere = {name: one for name, one in longest_first if one.movable}
        if min(together, len(elsewhere)) > 1:
            with starting(self.scenario), helpers_ahead(min(together, len(elsewhere))) as helpers:
                quiet = replace(self, on_event=silent, checkpoints=replace(self.checkpoints, on_event=silent), _made={})
                for helper in helpers:
                    helper.send(partial(_help, quiet))
                for helper in helpers:
                    helper.recv()
                calls = ((name, partial(_done, one.work)) for name, one in elsewhere.items())
                for name, (result, seconds) in called(helpers, calls) if helpers else ():
                    missing.pop(name)
                    keep(name, result, seconds)
        for name, one in missing.items():
            keep(name, *_done(one.work, self))
        return [results[one.name] for one in stages]

    def trials(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Results of trials by name: kept ones, and the others from one start of the engine, or from one more for each
        machine of a cluster that leaves.

        The first is what all others are compared with: where its devices can take no part, there is no study.

        Raises:
            ScenarioError: a trial whose privacy cannot be had, before anything is trained.
            BudgetError: some device can hold no block of the first trial.
            FlPeelError: whatever stopped the server's side, or the engine.
        """
        return on_remaining_machines(lambda _: self._trials(trials))

    def _trials(self, trials: Sequence[Trial]) -> dict[str, Any]:
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


def _prepared(study: Study) -> CentralStage1Outcome:
    stages = StageTimes()
    evaluation = study.scenario.evaluation.model_copy(update={"budgets": (1.0,)})
    scenario = study.scenario.model_copy(update={"evaluation": evaluation})
    outcome = prepare_collected(scenario, study.paths, stages, study.on_event)
    study.seconds.setdefault("pretraining", stages.seconds["pretraining"])
    return outcome


_helped: list[Study] = []
"""The study that this process helps with, where it does."""


def _help(study: Study) -> None:
    _helped.append(study)


def _done(work: Callable[[Study], Any], study: Study | None = None) -> tuple[Any, float]:
    """Return the result of a stage, and its seconds. study: None for the one that this process helps with."""
    start = time.perf_counter()
    result = work(study or _helped[0])
    return result, time.perf_counter() - start


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


Key = TypeVar("Key")


@dataclass(frozen=True)
class Frame:
    """A study's checked scenario, the folder of its results, and its options."""

    scenario: Scenario
    out: Path
    options: RunOptions

    @staticmethod
    def from_scenario(scenario: str | Path | Scenario, arguments: StudyArguments) -> Frame:
        """Load the scenario, where it is named, and check it and the folder of the results.

        Raises:
            FlPeelError: a mistake in the scenario, its files or ``out``, or what no study can measure; one line each.
        """
        if not isinstance(scenario, Scenario):
            scenario = load_scenario(scenario)
        _check(scenario)
        folder = given_folder(arguments["out"])
        assert folder is not None, "a study has a folder"
        scenario = checked(scenario, folder, writes=STUDY_RESULTS)
        return Frame(scenario, folder, RunOptions(**arguments))

    def by_seed(self, seeds: int, work: Callable[[Study], T]) -> dict[int, T]:
        """The study's work with each of so many seeds, from the scenario's on; each in a folder that is gone then."""
        done = {}
        for seed in range(self.scenario.seed, self.scenario.seed + seeds):
            one = self.scenario.model_copy(update={"seed": seed})
            with open_study(one, self.out, self.options) as study:
                done[seed] = work(study)
        return done

    def written(self, figures: dict[str, Any], kind: ResultKind[Any]) -> dict[str, Any]:
        """Return the figures, and where they are from, as the study's JSON has them; write its files.

        Raises:
            ReportError: as for :meth:`simulations.report.render.ResultKind.contents`; or the folder cannot be written.
        """
        content = {
            **figures,
            "scenario": self.scenario.model_dump(mode="json"),
            "seed": self.scenario.seed,
            "versions": versions(),
        }
        content |= {"command": self.options.command} if self.options.command else {}
        plain: dict[str, Any] = to_plain(content, kind.name)
        write_results(self.out, kind.contents(plain))
        return plain


def _check(scenario: Scenario) -> None:
    """Refuse what no study can measure, while nothing has been done yet.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    if scenario.data.timeline is not None:
        raise ScenarioError("data.timeline: studies do not support timelines; leave it out")
    if scenario.evaluation.top_n != 20:
        raise ScenarioError(
            f"evaluation.top_n: {scenario.evaluation.top_n} is not 20, the list length of studies; leave it out"
        )


METRICS = ("recall@20", "ndcg@20")
REPLICATES = "replicates"
"""Key of a row before its intervals are known: metric -> its mean in every replicate."""

Row = dict[str, Any]


def aggregated(by_seed: Sequence[Sequence[Row]]) -> list[Row]:
    """The first seed's rows with means over seeds, and ``*_std`` (sample standard deviation) where there are several.

    Rows of all seeds are in the same order. For each method and budget, ``chosen`` marks the precision with the best
    recall on validation. Replicates are averaged as well: a device has the same weight in all seeds.
    """
    rows: list[Row] = []
    for same in zip(*by_seed, strict=True):
        row = dict(same[0])
        for key in (*METRICS, "validation_recall@20", "seconds"):
            if key in row:
                row[key] = statistics.fmean(other[key] for other in same)
        if "trials" in row:
            row["trials"] = max(other["trials"] for other in same)
        if "stored_bytes_max" in row:
            row["stored_bytes_max"] = max(other["stored_bytes_max"] for other in same)
        if len(same) > 1:
            row |= {f"{metric}_std": statistics.stdev(other[metric] for other in same) for metric in METRICS}
            row["seeds"] = len(same)
            row |= {f"{metric}_by_seed": [other[metric] for other in same] for metric in METRICS}
        if all("replicates" in other for other in same):
            drawn = {m: np.array([other["replicates"][m] for other in same], np.float64).mean(axis=0) for m in METRICS}
            row["replicates"] = {metric: values.tolist() for metric, values in drawn.items()}
        rows.append(row)
    best: dict[tuple[str, float], Row] = {}
    for row in filter(_competes, rows):
        place = (row["method"], row["share"])
        if place not in best or row["validation_recall@20"] > best[place]["validation_recall@20"]:
            best[place] = row
    return [row | {"chosen": row is best[row["method"], row["share"]]} if _competes(row) else row for row in rows]


def _competes(row: Row) -> bool:
    """Whether it is a method at a budget, one precision of several."""
    return "method" in row and "share" in row


def with_interval(row: Mapping[str, Any], num_devices: int) -> Row:
    """A row with the ends of each metric's interval in place of its replicates. Of several seeds intervals are over
    devices and seeds (docs/statistics.md). num_devices: that have test items.
    """
    more: Row = {}
    for metric in METRICS if REPLICATES in row else ():
        ends = _sample(row, metric, num_devices).estimate().ends
        if ends is not None:
            more[f"{metric}_interval"] = list(ends)
    return {key: value for key, value in row.items() if key != REPLICATES} | more


def ratio_of(one: Mapping[str, Any], other: Mapping[str, Any], num_devices: int) -> Estimate | None:
    """Recall of one row over another's, paired, with the p-value of no difference; None: it is not known."""
    if REPLICATES not in one or REPLICATES not in other or other["recall@20"] <= 0:
        return None
    samples = [_sample(row, "recall@20", num_devices) for row in (one, other)]
    p_value = samples[0].less(samples[1]).p_value
    if not all(samples[1].by_seed):
        samples = [Sample(sample.value, sample.drawn, sample.devices) for sample in samples]
    ratio = samples[0].over(samples[1])
    return None if ratio is None else replace(ratio.bare(), p_value=p_value)


def corrected(ratios: Mapping[Key, Estimate | None]) -> dict[Key, float]:
    """Return the p-values of no difference of the ratios that have one, corrected for all of them (Holm)."""
    known = {key: ratio.p_value for key, ratio in ratios.items() if ratio is not None and ratio.p_value is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def ratios_in_json(name: str, ratio: Estimate | None) -> Row:
    """Return a ratio as rows of a study's JSON have it; nothing where there is none."""
    return {} if ratio is None else {name: to_plain(ratio)}


def _sample(row: Mapping[str, Any], metric: str, num_devices: int) -> Sample:
    drawn = np.array(row[REPLICATES][metric], np.float64)  # None: NaN
    return Sample(row[metric], drawn, num_devices, tuple(row.get(f"{metric}_by_seed", ())))
