"""The server's side of a timeline: period after period, each from what the last one left."""

from __future__ import annotations

from flwr.serverapp import Grid

from fl_peel.device_storage import device_timeline
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.scenario.method import TimelinePart
from fl_peel.scenario.refinement import Robust
from fl_peel.scenario.scenario import Scenario
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from strategies.timeline.period import FULL, Period, TimelineState, followed
from strategies.timeline.timeline_figures import PeriodResult, TimelineResult, period_figures, summaries

LAST = 3
"""Periods that the summary of the end is over."""


def serve_timeline(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent = silent) -> TimelineResult:
    """Replay a scenario's timeline on the nodes of ``grid``.

    Raises:
        ScenarioError: keys that a timeline knows nothing of.
        FlPeelError: whatever stopped a node.
    """
    check_timeline(scenario)
    return replay(Run.connect(grid, scenario, paths, on_event))


def replay(run: Run) -> TimelineResult:
    """As :func:`serve_timeline`, of a run whose nodes are connected."""
    with run.stages("start"):
        timeline = device_timeline(run.scenario, run.paths.data_dir, run.paths.run_dir)
    live: dict[str, object] = {"nodes": run.nodes}
    kept = run.checkpoints.read("timeline", live=live)
    state: TimelineState = TimelineState() if kept is None else kept.value.at(run.paths)
    done = len(state.periods)
    if done:
        run.on_event(Event("timeline", done, timeline.periods, "resumed from a checkpoint"))
    for number in range(done, timeline.periods):
        state = Period(run, timeline, number, state).serve()
        run.checkpoints.write("timeline", state, disks=True, live=live)
        latest = state.periods[-1]
        run.on_event(Event("timeline", number + 1, timeline.periods, summary_line(latest), period_figures(latest)))
    return _result(run, _ended(run, state))


def check_timeline(scenario: Scenario) -> TimelinePart:
    """The scenario's timeline, if its other keys fit.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    timeline, pretraining = scenario.data.timeline, scenario.pretraining
    assert timeline is not None, "the scenario has a timeline"
    collects = not (pretraining.by_devices and pretraining.collected.share == 0)
    for key, wrong, remedy in (
        ("pretraining.collected.share", collects, "0, with model: spectral and source: devices"),
        ("pretraining.columns", pretraining.columns > pretraining.embedding_dim, "at most pretraining.embedding_dim"),
        ("refinement.aggregation.robust.rule", scenario.refinement.aggregation.robust != Robust(), "mean"),
        ("privacy.mechanism", scenario.privacy.noised, "none"),
        ("secure_aggregation.enabled", scenario.secure_aggregation.enabled, "false"),
        ("poisoning.share", scenario.poisoning.largest_share > 0, "0"),
        ("selector", scenario.selector not in ("exposure", "popularity"), "exposure or popularity"),
        ("evaluation.top_n", scenario.evaluation.top_n != 20, "20"),
    ):
        if wrong:
            raise ScenarioError(f"{key}: timelines do not support it yet; set it to {remedy}")
    return timeline


def _ended(run: Run, state: TimelineState) -> TimelineState:
    """The last period is as long as the one before; where there was none, as its own steps took."""
    last, part = state.served, run.scenario.data.timeline
    assert last is not None, "somebody is served in every period"
    assert part is not None, "the scenario has a timeline"
    steps = last.asked - last.began
    return followed(run, state, state.lasted or max(part.rounds - steps, steps))


def summary_line(period: PeriodResult) -> str:
    """Return a summary in one line."""
    lines = period.lines
    recall = {name: lines[name]["all"].recall.value for name in (FULL, "cached-list") if name in lines}
    words = ", ".join(f"{name} {value:.4f}" for name, value in recall.items())
    return f"{period.devices:,} devices, {period.joining} joining, {period.items:,} items; recall@20: {words}"


def _result(run: Run, state: TimelineState) -> TimelineResult:
    """Return the result of all periods."""
    periods = range(len(state.periods))
    last = periods[-LAST:]
    return TimelineResult(
        scenario=run.scenario.model_dump(mode="json"),
        seed=run.scenario.seed,
        full_table_bytes=state.layout_bytes,
        periods=state.periods,
        last=summaries(state.lines, last),
        whole=summaries(state.lines, periods),
        stages=run.stages.seconds,
        nodes=len(run.nodes.ids),
        replicates=state.lines.replicates(last),
    )
