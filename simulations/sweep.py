"""`fl-peel sweep`: a scenario under every combination of some settings, or under those of a search, each with several
seeds: `sweep.json`, with intervals over devices and seeds, its tables, its figure and its page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, Unpack

import numpy as np

from fl_peel.errors import ReportError, ScenarioError
from fl_peel.events import Event, stages_under
from fl_peel.figures import SETTING, Column, Estimate, SeedsEstimate
from fl_peel.json_codec import from_plain
from fl_peel.ranking.bootstrap import REPLICATES
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import Store
from simulations.engine.inputs import (
    SWEEP_RESULTS,
    check_out,
    checked,
    data_folder,
    require_folders,
    run_folder,
    splits_to_run,
)
from simulations.report import drawing
from simulations.report.diff import Difference, corrected, rows_of
from simulations.report.drawing import Plot
from simulations.report.render import Chart, Page, ResultKind, Section, scenario_name
from simulations.report.result_files import write_results
from simulations.report.run_files import read_report
from simulations.report.seeds import FULL_TABLES, METHOD, OverSeeds, SeedRuns, require_same
from simulations.report.table_view import TableView, format_estimate, format_metric
from simulations.resumable import CHECKPOINTS, about_run, mark_finished, owned_store, read_finished, versions
from simulations.runner import run_seeds
from simulations.scenario_files import RunArguments, RunOptions, load_scenario
from simulations.sweep_space import TRIALS, Setting, Space, search, settings_of, short_names, space_of
from strategies.figures.per_device import METRICS, OWN_BUDGET


@dataclass(frozen=True, kw_only=True)
class SweepFigure:
    """Recall and NDCG of a setting with one table. less: paired difference of its recall to that of the first setting;
    p_holm: p-value of no difference, corrected for all differences of the sweep. Both are None for the first
    setting, and where test items differ.
    """

    table: Annotated[str, Column("table")]
    recall: SeedsEstimate
    ndcg: SeedsEstimate
    less: Estimate | None
    p_holm: float | None


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """Setting of a sweep: values by key, the folder of its runs within that of the sweep, and its figures by table.
    validation: recall@20 on validation items in the last round, mean over seeds; None without rounds or validation
    items.
    """

    setting: Annotated[str, Column("setting")]
    values: dict[str, str]
    folder: str
    validation: float | None
    tables: tuple[SweepFigure, ...]


@dataclass(frozen=True, kw_only=True)
class SweepResult(OverSeeds):
    """Content of `sweep.json`. chosen: best setting on validation, None where that was not measured; tables: shares of
    the full table under the setting's own precision and selector, own budgets, and full tables; scenario: that of
    the first setting; search: keys that were searched; trials: their number of trials; both empty for a sweep over
    all combinations.
    """

    top_n: Annotated[int, SETTING]
    replicates: Annotated[int, SETTING]
    fixed: tuple[str, ...]
    chosen: str | None
    rows: tuple[SweepRow, ...]
    search: tuple[str, ...] = ()
    trials: Annotated[int | None, SETTING] = None


@dataclass(frozen=True)
class MeasuredSetting:
    """A setting's runs, one a seed, tables by names that settings share; validation: as in a sweep's row."""

    setting: Setting
    runs: SeedRuns
    validation: float | None

    @staticmethod
    def read(folder: Path, setting: Setting) -> MeasuredSetting:
        """Read the folder that the setting's runs have left.

        Raises:
            ReportError: something is missing or damaged.
        """
        runs = SeedRuns.read(folder)
        reports = [read_report(folder / f"seed-{seed}") for seed in runs.seeds]
        last = [report.history[-1].recall if report.history else None for report in reports]
        known = [recall for recall in last if recall is not None]
        validation = float(np.mean(known)) if len(known) == len(last) else None
        return MeasuredSetting(setting, runs.with_own_budgets(), validation)


def shared_tables(settings: Sequence[MeasuredSetting]) -> tuple[str, ...]:
    """Tables that all settings have: shares of the full table, own budgets, full tables."""
    tables = [table for table in settings[0].runs.tables if all(table in other.runs.tables for other in settings[1:])]
    shares = [table for table in tables if table.endswith("%")]
    return (*shares, *(table for table in (OWN_BUDGET, *FULL_TABLES) if table in tables))


def sweep_rows(settings: Sequence[MeasuredSetting], tables: Sequence[str], replicates: int) -> tuple[SweepRow, ...]:
    """Return every setting's figures, and recall less that of the first."""
    less = _less(settings, tables, replicates)
    rows = []
    for one in settings:
        recalls, ndcgs = (one.runs.samples(tables, replicates)[metric] for metric in METRICS)
        differences = less.get(one.setting.label, {})
        rows.append(
            SweepRow(
                setting=one.setting.label,
                values=dict(one.setting.values),
                folder=one.setting.folder,
                validation=one.validation,
                tables=tuple(
                    SweepFigure(
                        table=table,
                        recall=recalls[table].estimate(),
                        ndcg=ndcgs[table].estimate(),
                        less=differences[table].difference if table in differences else None,
                        p_holm=differences[table].p_holm if table in differences else None,
                    )
                    for table in tables
                ),
            )
        )
    return tuple(rows)


def _less(
    settings: Sequence[MeasuredSetting], tables: Sequence[str], replicates: int
) -> dict[str, dict[str, Difference]]:
    """Return, by setting and table, recall less that of the first setting; those with other test items are left out."""
    same = [one for one in settings if _comparable(settings[0].runs, one.runs)]
    if len(same) < 2:
        return {}
    names = [one.setting.label for one in same]
    rows = [
        row for row in rows_of([one.runs for one in same], tables, names, replicates) if row.metric.startswith("recall")
    ]
    less: dict[str, dict[str, Difference]] = {}
    for row in corrected(rows):
        for other in row.others:
            less.setdefault(other.run, {})[row.table] = other
    return less


def _comparable(first: SeedRuns, other: SeedRuns) -> bool:
    try:
        require_same(first, other)
    except ReportError:
        return False
    return True


def sweep_view(result: SweepResult) -> TableView:
    """Return every setting's recall, by table; the setting that validation chooses is emphasized."""
    keys, tables = _columns(result)
    rows = tuple(
        (
            *row.values.values(),
            format_metric(row.validation),
            *(format_estimate(figure.recall) for figure in row.tables),
        )
        for row in result.rows
    )
    best = {(place, len(keys)) for place, row in enumerate(result.rows) if row.setting == result.chosen}
    note = (
        f"Recall@{result.top_n} on the test, means over {len(result.seeds)} seed(s); in brackets 95 % intervals over "
        "devices" + (" and seeds" if len(result.seeds) > 1 else "") + ". Shares: budgets as shares of the fp32 full "
        "table, with the setting's own precision and selector. Validation: validation Recall@20 in the last round, by "
        "which settings are chosen; the test part is for reporting the chosen one."
    )
    columns = (*keys, "validation", *tables)
    return TableView("Settings", columns, rows, len(keys), note, frozenset(best), terminal=True)


def _columns(result: SweepResult) -> tuple[list[str], list[str]]:
    first = result.rows[0]
    return short_names(first.values), [figure.table for figure in first.tables]


def differences_view(result: SweepResult) -> TableView | None:
    """Recall less that of the first setting, each device compared with itself; None where nothing can be compared."""
    rows = tuple(
        (
            *row.values.values(),
            *(format_estimate(one.less, signed=True) for one in row.tables),
        )
        for row in result.rows[1:]
    )
    if all(one.less is None for row in result.rows for one in row.tables):
        return None
    keys, tables = _columns(result)
    note = (
        "Paired 95 % intervals over devices. sweep.json has p-values, corrected for all of these differences (Holm). A "
        "dash: a setting with other test items."
    )
    others = result.rows[1].setting if len(result.rows) == 2 else "other settings"
    title = f"Recall@{result.top_n}: {others} − {result.rows[0].setting}"
    return TableView(title, (*keys, *tables), rows, len(keys), note, terminal=True)


@drawing.in_both_forms
def sweep_plot(result: SweepResult) -> Plot | None:
    """Draw recall at every share of the full table less that of the first setting, paired, a line a setting; where test
    items differ, recall itself. Of many settings the first eight, of a search the best eight on validation.
    """
    paired = all(one.less is not None for row in result.rows[1:] for one in row.tables)
    lines = [(row, _by_share(row, paired=paired)) for row in _drawn(result)]
    if not lines[0][1]:
        return None
    labels, words = [], []
    figure, (axes,) = drawing.new_figure(3.9)
    drawing.share_axis(axes, list(lines[0][1]), None)
    for index, (row, by_share) in enumerate(lines):
        recalls, style = list(by_share.values()), drawing.line_kwargs(index)
        aside, bold = drawing.line_aside(index, len(lines)), row.setting == result.chosen
        label = drawing.draw_line(
            axes, drawing.Line(row.setting, list(by_share), recalls, bold=bold, aside=aside), style
        )
        labels.append(label)
        words.append(f"{row.setting} goes from {recalls[0].value:.4f} to {recalls[-1].value:.4f}")
    less = f" − that of {result.rows[0].setting}" if paired else ""
    axes.set_ylabel(fill(f"Recall@{result.top_n}{less} (test)", 40))
    axes.margins(y=0.08)
    drawing.label_ends(axes, labels)
    kind = "Difference in recall" if paired else "Recall"
    return drawing.finish(figure, "sweep", f"{kind} against the budget", f"{kind}, by setting: {'; '.join(words)}.")


def _drawn(result: SweepResult) -> tuple[SweepRow, ...]:
    if result.search:
        best = sorted(result.rows, key=lambda row: row.validation or 0.0, reverse=True)[: len(drawing.PALETTE)]
        return tuple(row for row in result.rows if row in best)
    return result.rows[: len(drawing.PALETTE)]


def _by_share(row: SweepRow, *, paired: bool) -> dict[float, Estimate]:
    """Return recall by share, or what it is less that of the first setting, whose own line is at 0."""
    shares = [one for one in row.tables if one.table.endswith("%")]
    return {
        float(one.table.removesuffix("%")) / 100: (one.less or Estimate(0.0)) if paired else one.recall
        for one in shares
    }


def sweep_page(result: SweepResult) -> Page:
    """Return the page of a sweep; paired differences come first."""
    keys = list(result.rows[0].values)
    chosen = "" if result.chosen is None else f" Best on validation: {result.chosen}."
    more = len(result.rows) - len(drawing.PALETTE)
    kind = "search" if result.search else "sweep"
    which = " (the best eight on validation)" if result.search and more > 0 else ""
    origin = f", found in {result.trials} trials of a search on validation" if result.search else ""
    caption = f"By setting{which}, with paired 95 % intervals where it is compared with the first, at 0."
    caption += f" {more} more are in the table." if more > 0 else ""
    parts = (Chart(lambda: sweep_plot(result), caption), differences_view(result), sweep_view(result), METHOD)
    return Page(
        f"{scenario_name(result.scenario).partition(':')[0]}: a {kind} over {', '.join(keys)}",
        [Section("settings", "", parts)],
        [f"One scenario under {len(result.rows)} settings{origin}.{chosen}"],
        [
            ("settings", f"{len(result.rows):,}"),
            ("seeds", f"{len(result.seeds)}"),
            ("devices", f"{result.devices:,}"),
        ],
    )


SWEEP = ResultKind("sweep", partial(from_plain, SweepResult), sweep_page)


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
    for path in space.varied:
        value: Any = scenario.model_dump(mode="json")
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        values[path] = value
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
