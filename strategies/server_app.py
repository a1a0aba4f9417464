"""The server's side of a run, from the scenario to its result: pretrain, group, federate, evaluate; and the model that
it leaves for new devices, which holds no data of any device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import ranking
from fl_peel.device_storage import device_splits, item_ids, item_titles
from fl_peel.errors import ReportError, ScenarioError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.model.model import ModelContent, save
from fl_peel.model.model_files import Catalogue
from fl_peel.privacy.report import report_of
from fl_peel.scenario.scenario import Scenario
from strategies.evaluation.evaluator import Evaluator
from strategies.evaluation.heterogeneity import fall_rows, measure_elasticity, measure_fairness, tier_rows
from strategies.evaluation.run_figures import (
    EvaluationReplies,
    StartReplies,
    budget_rows,
    bytes_per_device,
    device_class_rows,
    device_traces,
    evaluated,
    full_table,
    history_rows,
    measure_poisoning,
    per_device,
    refinement_result,
    round_rows,
    user_group_rows,
)
from strategies.figures.per_device import FILE
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, EnvironmentResult, RunResult
from strategies.figures.stage_figures import secure_report, time_to_recall
from strategies.groups.state import FloatArray, UserGroupState
from strategies.nodes import NUM_TRACED, some_devices
from strategies.rounds.federation import for_groups
from strategies.rounds.strategy import PeelStrategy
from strategies.run.prepare import AddedStages, prepare
from strategies.run.refinement import Refiner, select_settings
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from strategies.run.stage1_outcome import Stage1Outcome


def serve(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent = silent) -> RunResult:
    """Run a scenario on the nodes of ``grid``; returns what it measured, without what only the caller knows."""
    if scenario.data.timeline is not None:
        raise ScenarioError(
            "data.timeline: timelines are replayed by fl-peel run, flwr run and "
            "strategies.timeline.period.serve_timeline; leave it out"
        )
    return serve_run(Run.connect(grid, scenario, paths, on_event))


def serve_run(run: Run) -> RunResult:
    """As :func:`serve`, of a run whose nodes are connected."""
    requested, nodes, stages, on_event = run, run.nodes, run.stages, run.on_event
    on_event(Event("start", 1, 1, f"{len(nodes.ids)} nodes"))
    plan, checkpoints, rehearsal = run.plan, run.checkpoints, None
    if run.scenario.data.refit:
        rehearsal = checkpoints.stage("rehearsal", lambda: select_settings(requested), disks=True)
        run = run.under(rehearsal.scenario)
    scenario, paths = run.scenario, run.paths
    before = rehearsal.prepared if rehearsal else None
    prepared = checkpoints.stage("stage-1", lambda: prepare(run, before), disks=True)
    refiner = Refiner(run, prepared, rehearsal.controller if rehearsal else None)
    with stages("joining"):
        strategy = refiner.joined(NUM_TRACED)
    evaluator, members, states = Evaluator.from_strategy(strategy), strategy.members, strategy.states
    on_event(Event("joining", 1, 1, f"{len(members.devices):,} devices joined"))
    last = max((record.time for record in prepared.steps), default=0)
    added, tables_now = AddedStages(run, last + scenario.pretraining.open_rounds), _Tables(states)
    added.ask("joining", tables_now)
    start = checkpoints.stage("start-tables", lambda: _before_rounds(evaluator, prepared), timed="evaluation")
    with stages("refinement"):
        keeping = refiner.refine(strategy)
    added.ask("refinement", tables_now, scenario.refinement.rounds + 1)
    extra = tier_rows(evaluator) | fall_rows(evaluator)

    def on_test() -> EvaluationReplies:
        reused = None
        if start.groups is not None and keeping is not None:
            reused = start.groups.without(keeping.accepted_groups, nodes.excluded)
        return evaluated(evaluator, on_event, extra, reused)

    evaluation, excluded = checkpoints.stage(
        "evaluation", lambda: (nodes.settled(on_test), dict(nodes.excluded)), disks=True, timed="evaluation"
    )
    nodes.excluded.update(excluded)
    added.ask("evaluation", tables_now)
    if paths.model_dir:
        with stages("model"):
            num_bytes = save_model(strategy, prepared, paths)
        on_event(Event("model", 1, 1, f"{num_bytes / 1e6:,.1f} MB"))
    replies = start.replies(evaluation.refined, nodes.excluded)
    if scenario.evaluation.per_device:
        test = device_splits(scenario, paths.data_dir, paths.run_dir).test
        per_device(evaluator, evaluation, replies, test).write(Path(paths.run_dir) / FILE)
    methods = {"global": FULL_GLOBAL, "refined": FULL_REFINED}
    tables = {methods[name]: reply for name, reply in replies.on_test.items() if name in methods}
    traced, again = some_devices(scenario, members, "traced", NUM_TRACED), refiner.refine_again
    elasticity, elastic_traces = checkpoints.stage(
        "moving-budgets",
        lambda: measure_elasticity(evaluator, evaluation.extra, tables, again, traced),
        timed="heterogeneity",
    )
    fairness = checkpoints.stage(
        "fairness",
        lambda: measure_fairness(evaluator, evaluation.own, evaluation.extra, tables, again),
        timed="heterogeneity",
    )
    on_event(Event("heterogeneity", 1, 1))
    poisoning = None
    if scenario.poisoning.largest_share > 0:
        poisoning = checkpoints.stage("poisoning", lambda: measure_poisoning(strategy, again), timed="poisoning")
    steps = rehearsal.steps if rehearsal else ()
    records, num_devices = [*(rehearsal.records if rehearsal else ()), *strategy.rounds], len(members.devices)
    keeping = rehearsal.acceptance if rehearsal else keeping
    return RunResult(
        scenario=requested.scenario.model_dump(mode="json"),
        seed=scenario.seed,
        budgets=budget_rows(evaluator, evaluation, replies),
        device_classes=device_class_rows(members, records, evaluation.own),
        user_groups=user_group_rows(members, len(states), evaluation.own),
        full_table=full_table(evaluator, replies),
        stage1=prepared.figures(members, stages.seconds["pretraining"], steps),
        refinement=None if keeping is None else refinement_result(keeping, num_devices),
        rounds=round_rows(records),
        history=history_rows(records),
        traces=device_traces(members, records),
        bytes_per_device=bytes_per_device(records, num_devices),
        time_to_recall=tuple(time_to_recall(records, members.class_names, evaluation.own.owned.devices[0])),
        fairness=fairness,
        elasticity=elasticity,
        elastic_traces=elastic_traces,
        poisoning=poisoning,
        secure_aggregation=secure_report(scenario, strategy.channel.records)
        if scenario.secure_aggregation.enabled
        else None,
        privacy=report_of(scenario, plan, strategy.contents.clip_norms),
        added_stages=added.results or None,
        stages=stages.seconds,
        environment=EnvironmentResult(
            nodes=len(nodes.ids),
            user_groups=len(states),
            blocks=prepared.layout.num_blocks,
            devices=num_devices,
            items=prepared.layout.num_items,
            excluded_nodes={str(node): failure for node, failure in sorted(nodes.excluded.items())} or None,
        ),
    )


def _before_rounds(evaluator: Evaluator, prepared: Stage1Outcome) -> StartReplies:
    """Return the replies about full tables before any round, where the scenario wants to know."""
    scenario = evaluator.scenario
    if not scenario.evaluation.full_tables:
        return StartReplies()
    tables, validated = prepared.global_tables, bool(scenario.data.validation_share)
    globally = None if tables is None else evaluator.full_tables(with_validation=validated, everybody=tables)
    return StartReplies(globally, evaluator.full_tables(with_validation=validated))


AT_ONCE = 4
"""Tables that are in memory while they are saved; two are at work."""


def save_model(strategy: PeelStrategy, prepared: Stage1Outcome, paths: RunPaths) -> int:
    """Save tables, orders of blocks and how a device joins, into the folder of the run's paths; returns the bytes.

    Raises:
        ReportError: they cannot be written there.
    """
    scenario, layout = strategy.scenario, strategy.layout
    ids = item_ids(scenario, paths.data_dir, paths.run_dir)
    named = ids or tuple(map(str, range(layout.num_items)))
    catalogue = Catalogue(layout, ids, item_titles(scenario, named, paths.data_dir))
    weights = strategy.weights(scenario.selector)

    def order(group: int) -> NDArray[np.integer]:
        """Return a group's blocks, ranked by weight; its weights are released, as they are not needed again."""
        blocks = ranking(weights[group]).astype(layout.id_dtype)
        weights[group] = np.zeros(0)
        return blocks

    orders = for_groups(order, range(len(weights)))
    try:
        tables, precision = _Tables(strategy.states), scenario.blocks.precision
        content = ModelContent(catalogue, prepared.joining, precision, orders, tables, prepared.global_table)
        return save(Path(paths.model_dir), content, for_groups)
    except OSError as error:
        raise ReportError(
            f"{paths.model_dir}: the model cannot be written ({error}); free some space there, or give another --out"
        ) from error


class _Tables(Sequence[FloatArray]):
    """Tables (I, d) of user groups, to be looked at one after the other: those before them rest."""

    def __init__(self, states: Sequence[UserGroupState]) -> None:
        self._states = states
        self._looked_at = deque[UserGroupState]()

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, group: int) -> FloatArray:  # type: ignore[override]
        state = self._states[group]
        self._looked_at.append(state)
        if len(self._looked_at) > AT_ONCE:
            self._looked_at.popleft().drop_pages()
        return state.table
