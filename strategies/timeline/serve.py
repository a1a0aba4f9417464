"""The server's side of a timeline: before each period it updates tables, in the period it measures what devices find
with them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

import fl_peel
from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.blocks.layout import budget_bytes
from fl_peel.data.interactions import Splits
from fl_peel.data.settings import Phase
from fl_peel.data.timeline import Timeline
from fl_peel.device_storage import device_timeline
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.exchange.counters import ClassCounts, RefreshCounts
from fl_peel.pretraining.incremental import Exponents, SpectralModel, exponents_of, filter_request, update_model
from fl_peel.pretraining.stage1 import PooledSums, SpectralStart
from fl_peel.privacy.stage1_noise import contribution_bounds
from fl_peel.scenario.method import TimelinePart
from fl_peel.scenario.pretraining_settings import COUNT_EXPONENTS, VALUE_EXPONENTS
from fl_peel.scenario.refinement import Robust
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import StepChannel, StepTerms
from fl_peel.steps.choice import ChoiceStep
from fl_peel.steps.counts import CountsStep
from fl_peel.steps.device_vectors import VectorsStep
from fl_peel.steps.units import Ints
from strategies.evaluation.evaluator import Evaluator
from strategies.evaluation.moving_budgets import FollowPlan, follow, over_time
from strategies.groups.spectral import TEMPERATURE
from strategies.groups.start import make_layout
from strategies.groups.state import FloatArray, UserGroupState
from strategies.nodes.batches import EVALUATED_BYTES, packed_batches
from strategies.nodes.members import Members
from strategies.nodes.nodes import NodeRequest, Nodes
from strategies.run.checkpoints import RunCheckpoints
from strategies.run.federated_stage1 import FederatedStage1Outcome
from strategies.run.joining import join
from strategies.run.refinement import Refiner
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import check_budgets
from strategies.steps.clear_steps import ClearSteps, SumsRecord
from strategies.steps.counted_steps import CountedSteps
from strategies.timeline.period_refinement import PeriodRefinement, refined, select_rounds
from strategies.timeline.published_tables import PublishedTables
from strategies.timeline.schema import PeriodResult, TimelineResult
from strategies.timeline.serving_metrics import Cohort, MetricTotals, ServingMetrics
from strategies.timeline.timeline_figures import class_results, period_figures, period_lines, reads_of, summaries
from strategies.timeline.timeline_rivals import PeriodDevices, ScoredTables, StaticLists, metric_totals

REPLICATES = "timeline-replicates.npz"
"""Name of the file of replicates that a run leaves in its folder for a summary over several runs, by way of serving:
:meth:`ServingMetrics.replicates`.
"""
LAST = 3
"""Periods that the summary of the end is over."""
FULL, WHOLE, OWN = "federation", "federation, all rows", "federation, own budgets"
"""Ways of serving: tables of which as many rows change as the allowance says; all that changed; own budgets."""


def serve_timeline(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent = silent) -> TimelineResult:
    """Replay a scenario's timeline on the nodes of ``grid``.

    Raises:
        ScenarioError: keys that a timeline knows nothing of.
        FlPeelError: whatever stopped a node.
    """
    check_timeline(scenario)
    stages = StageTimes()
    root = os.fspath(Path(fl_peel.__file__).resolve().parent.parent)
    with stages("start"):
        nodes = Nodes.connect(grid, scenario.to_json(), root=root, timeout_s=scenario.engine.reply_timeout_s)
        timeline = device_timeline(scenario, paths.data_dir, paths.run_dir)
    run, kept = (
        _TimelineRun(grid, scenario, paths, nodes, timeline, stages),
        RunCheckpoints.from_paths(paths, stages, on_event),
    )
    done = run.resume(kept)
    if done:
        on_event(Event("timeline", done, timeline.periods, "resumed from a checkpoint"))
    for period in range(done, timeline.periods):
        run.period(period)
        run.keep(kept)
        on_event(
            Event(
                "timeline", period + 1, timeline.periods, run.summary_line(period), period_figures(run.periods[period])
            )
        )
    run.end()
    drawn = run.lines.replicates(run.last)
    np.savez(Path(paths.run_dir) / REPLICATES, lines=np.array(list(drawn)), recalls=np.stack(list(drawn.values())))
    return run.result()


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


@dataclass(frozen=True)
class _ServedPeriod:
    """The devices of a period that were there before and those that join in it, (M,) each, and the tables that they
    have; began: the round of the clock in which the period's steps opened, asked: in which devices were asked.
    """

    known: Evaluator
    new: Evaluator
    devices: tuple[NDArray[np.int64], NDArray[np.int64]]
    began: int
    asked: int

    def at(self, paths: RunPaths) -> _ServedPeriod:
        """The same, of a run whose folder lies elsewhere."""

        def there(evaluator: Evaluator) -> Evaluator:
            federation = evaluator.federation
            setting = replace(federation.setting, data_dir=paths.data_dir, run_dir=paths.run_dir)
            return replace(evaluator, federation=replace(federation, setting=setting))

        return replace(self, known=there(self.known), new=there(self.new))


@dataclass(frozen=True)
class _Weights:
    """The weights (B,) of the blocks of every user group, by selector."""

    orders: dict[str, list[NDArray[np.float64]]]

    def __call__(self, selector: str) -> list[NDArray[np.float64]]:
        """Return the weights of a selector, as an :class:`Evaluator` asks for them."""
        return self.orders[selector]


RESUMED = (
    *("clock", "exponents", "model", "basis", "published", "served", "lasted", "first_lists", "first", "lines"),
    *("periods", "layout_bytes"),
)
"""Fields of a run that one period leaves to the next."""


@dataclass
class _TimelineRun:
    """A timeline on its way. clock: round of the fleet's clock in which the next step opens; basis: what stage 1 made
    last, for the selection run of the next refinement.
    """

    grid: Grid
    scenario: Scenario
    paths: RunPaths
    nodes: Nodes
    timeline: Timeline
    stages: StageTimes
    clock: int = 1
    exponents: Exponents = field(default_factory=lambda: Exponents(0.5, 0.5, 0.0))
    model: SpectralModel | None = None
    basis: tuple[FederatedStage1Outcome, SpectralModel] | None = None
    published: PublishedTables | None = None
    served: _ServedPeriod | None = None
    lasted: int = 0
    first_lists: dict[str, StaticLists] = field(default_factory=dict)
    first: ScoredTables | None = None
    lines: ServingMetrics = field(default_factory=ServingMetrics)
    periods: list[PeriodResult] = field(default_factory=list)
    layout_bytes: int = 0

    def keep(self, checkpoints: RunCheckpoints) -> None:
        """Keep what there is after a period, in place of what was after the one before."""
        content = {name: getattr(self, name) for name in RESUMED}
        checkpoints.write("timeline", content, disks=True, live={"nodes": self.nodes})

    def resume(self, checkpoints: RunCheckpoints) -> int:
        """Take up what was kept; returns how many periods are done."""
        kept = checkpoints.read("timeline", live={"nodes": self.nodes})
        if kept is None:
            return 0
        for name in RESUMED:
            setattr(self, name, kept.value[name])
        assert self.served is not None, "somebody is served in every period"
        self.served = self.served.at(self.paths)
        return len(self.periods)

    @property
    def part(self) -> TimelinePart:
        assert self.scenario.data.timeline is not None
        return self.scenario.data.timeline

    @property
    def at_start(self) -> int:
        """Return how many users there were when the first period began."""
        return self.timeline.users_before(self.timeline.begin_of(0))

    def at(self, period: int, phase: Phase) -> Scenario:
        """The scenario of a part of a period."""
        timeline = self.part.model_copy(update={"period": period, "phase": phase})
        return self.scenario.model_copy(update={"data": self.scenario.data.model_copy(update={"timeline": timeline})})

    def devices(self, period: int, phase: Phase, splits: Splits) -> ClearSteps:
        """Return the devices that are there, to be asked steps from the present time of the clock."""
        scenario = self.at(period, phase)
        terms = StepTerms.from_scenario(scenario, splits.num_items, splits.num_users, contribution_bounds(scenario))
        setting, windows = self.paths.setting(scenario), scenario.pretraining.open_rounds
        return ClearSteps(self.nodes, setting, terms, windows, splits.num_users, begin=self.clock)

    def counted(self, devices: ClearSteps) -> CountedSteps:
        """Return their sums, of which none is opened that is of too few of them."""
        return CountedSteps(devices, self.scenario.privacy.min_owners)

    def period(self, period: int) -> None:
        """Serve a period: tables first, then devices that were there, then those that join."""
        learn, joining = self.timeline.splits(period, "learn"), self.timeline.splits(period, "join")
        before = self.model
        if self.served is not None:
            self.clock = max(self.clock, self.served.began + self.part.rounds)
        began = self.clock
        with self.stages("choice"):
            records = self.choose(period)
        with self.stages("refinement"):
            rehearsal = self.select_rounds(period)
        with self.stages("stage 1"):
            recent = self.recent(period, records)
            present = self.devices(period, "learn", learn)
            self.model, start = self.continued(self.counted(present), before, recent)
            self.clock = present.now
            records += present.records
        here, newcomers = self.at(period, "learn"), self.at(period, "join")
        prepared = self.prepared(here, learn, start)
        with self.stages("joining"):
            members = join(here, self.paths, replace(prepared, former=self.model.former), self.nodes)
            fresh = self.devices(period, "join", joining)
            VectorsStep.ask(fresh, self.model.own, self.model.middle)
            joined = join(newcomers, self.paths, prepared, self.nodes)
        states = prepared.states(here)
        refining = PeriodRefinement(0, self.clock)
        if self.scenario.refinement.rounds:
            with self.stages("refinement"):
                states = [replace(state, table=state.table.copy()) for state in states]
                refining = refined(self.refiner(prepared), here, members, states, rehearsal.rounds)
                self.clock = refining.ends
        self.follow()
        shared = not refining.rounds and (self.published is None or len(self.published.tables) == 1)
        exact = [state.table for state in (states[:1] if shared else states)]
        self.published = PublishedTables.from_exact(
            exact, self.model.fresh, self.published, self.model.former, self.part.max_changed_rows
        )
        served = [replace(state, table=self.published.scored(group)) for group, state in enumerate(states)]
        known, new = (
            self.evaluator(one, prepared, served, some) for one, some in ((here, members), (newcomers, joined))
        )
        with self.stages("reading"):
            groups = np.arange(len(states))
            reads = [self.read(one, which) for one, which in ((known, self.model.former), (new, groups))]
        with self.stages("evaluation"):
            replies = self.ask(period, known, new, exact, learn.num_users)
        with self.stages("rivals"):
            self.rivals(period, learn, joining)
        newest = joined.devices[joined.devices >= learn.num_users]
        self.served = _ServedPeriod(known, new, (members.devices, newest), began, self.clock)
        self.basis = prepared, self.model
        taken = [record.counts.classes for record in records]
        spent = reduce(add, taken, ClassCounts.zeros(len(members.class_names))).total()
        refinement = [moved.total() for one in (rehearsal, refining) if (moved := one.moved()) is not None]
        devices = max(learn.num_users, 1)
        self.layout_bytes = prepared.layout.full_table_bytes
        begin, end = int(self.timeline.edges[period]), int(self.timeline.edges[period + 1])
        self.periods.append(
            PeriodResult(
                exponents=asdict(self.exponents),
                begins=int(self.timeline.times[begin]),
                ends=int(self.timeline.times[end - 1]),
                devices=learn.num_users,
                left=0 if learn.contributed is None else int((learn.contributed.counts() == 0).sum()),
                joining=joining.num_users - learn.num_users,
                items=learn.num_items,
                new_items=learn.num_items - (0 if before is None else before.num_items),
                user_groups=len(states),
                changed_rows=float((self.published.changed == wire.NEW).sum(axis=1).mean()),
                refinement_rounds=refining.rounds,
                stage1_down=int(spent.download_bytes) / devices,
                stage1_up=int(spent.upload_bytes) / devices,
                refinement_down=(sum(int(one.download_bytes) for one in refinement) + rehearsal.compared_bytes)
                / devices,
                refinement_up=sum(int(one.upload_bytes) for one in refinement) / devices,
                virtual_seconds=sum(record.virtual_seconds for record in records)
                + rehearsal.virtual_seconds
                + refining.virtual_seconds,
                lines=period_lines(self.lines, period),
                reads=reads_of(self.labels, *reads),
                classes=class_results(replies, members.class_names, self.labels.index(OWN)),
                followed=None,
            )
        )

    def refiner(self, prepared: FederatedStage1Outcome) -> Refiner:
        """Return the refiner of these tables, on the nodes of the run, from the present time of the clock."""
        return Refiner(self.grid, self.paths, prepared, self.nodes, begin=self.clock - 1)

    def select_rounds(self, period: int) -> PeriodRefinement:
        """Return how many rounds of refinement would have helped before the period that is over."""
        if not self.scenario.refinement.rounds or self.basis is None:
            return PeriodRefinement(0, self.clock)
        scenario, (prepared, model) = self.at(period, "choose"), self.basis
        devices = self.devices(period, "choose", self.timeline.splits(period, "choose"))
        VectorsStep.ask(devices, model.own, model.middle)  # as they had them then
        selection = select_rounds(self.refiner(prepared), scenario)
        self.clock = selection.ends
        return selection

    def follow(self, rounds: int | None = None) -> None:
        """Follow what became of what devices held in the last period while their own budgets moved, from when they were
        asked until now, or for so many rounds.
        """
        last = self.served
        if last is None:
            return
        self.lasted = rounds or self.clock - last.asked
        with self.stages("following"):
            nobody = np.zeros(0, np.int64)
            replies = [
                follow(one, FollowPlan(devices, last.asked, self.lasted, keeps=True), nobody)
                for one, devices in zip((last.known, last.new), last.devices, strict=True)
                if len(devices)
            ]
            followed = over_time(reduce(add, replies), last.known.members.class_names)
        self.periods[-1] = replace(self.periods[-1], followed=followed)

    def end(self) -> None:
        """The last period is as long as the one before; where there was none, as its own steps took."""
        assert self.served is not None
        steps = self.served.asked - self.served.began
        self.follow(self.lasted or max(self.part.rounds - steps, steps))

    def choose(self, period: int) -> list[SumsRecord]:
        """Devices choose the filter by what they did in the period that is over: all of it before the first period, how
        much freshness counts before every one. What it takes of them.
        """
        splits, config = self.timeline.splits(period, "choose"), self.scenario.pretraining.spectral()
        records: list[SumsRecord] = []
        earlier = self.recent(period, records, "earlier")[: splits.num_items] if self.model is None else None
        devices = self.devices(period, "choose", splits)
        sums = self.counted(devices)
        model, fixed = self.model, self.exponents
        count: tuple[float, ...] = (fixed.count,)
        value: tuple[float, ...] = (fixed.value,)
        if model is None:  # of what was before the period that is over
            assert earlier is not None
            count = COUNT_EXPONENTS if config.count_exponent is None else (config.count_exponent,)
            value = VALUE_EXPONENTS if config.value_exponent is None else (config.value_exponent,)
            model, start = self.continued(sums, None, earlier)
            self.basis = self.prepared(self.at(period, "choose"), splits, start), model
        part = self.part
        question = filter_request(
            model,
            self.scenario.seed,
            count=count,
            value=value,
            fresh=part.recency_exponents,
            fading=part.decay_interactions,
        )
        fresh = part.recency_exponents[0] if self.model is None else fixed.fresh
        self.exponents = Exponents(count[0], value[0], fresh)
        if question is not None:
            won, answered = ChoiceStep.ask(sums, question, config.filter_devices)
            if answered or self.model is None:  # later, what was chosen last stays where nobody says anything
                self.exponents = exponents_of(question, won, answered)
        self.clock = devices.now
        return [*records, *devices.records]

    def recent(self, period: int, records: list[SumsRecord], phase: Phase = "recent") -> Ints:
        """Return how many devices used each item (I,) in the period that is over, or earlier; records get what it
        takes.
        """
        splits = self.timeline.splits(period, phase)
        devices = self.devices(period, phase, splits)
        counts = CountsStep.ask(self.counted(devices))
        self.clock = devices.now
        records += devices.records
        return counts

    def groups(self) -> dict[str, int]:
        """Arguments of stage 1 that are the same in every period."""
        groups, pretraining = self.scenario.user_groups, self.scenario.pretraining
        return {
            "dim": pretraining.embedding_dim,
            "num_groups": groups.count,
            "min_size": groups.min_size,
            "seed": self.scenario.seed,
        }

    def continued(
        self, sums: StepChannel, before: SpectralModel | None, recent: Ints
    ) -> tuple[SpectralModel, SpectralStart]:
        """Update the last model from these sums, or train it anew with as many passes as the first time."""
        config = self.scenario.pretraining.spectral()
        first = before is None
        return update_model(
            sums,
            config,
            before,
            exponents=self.exponents,
            recent=recent,
            passes=config.passes if first else self.part.passes,
            group_rounds=config.group_rounds if first else self.part.group_rounds,
            **self.groups(),
        )

    def prepared(self, scenario: Scenario, splits: Splits, start: SpectralStart) -> FederatedStage1Outcome:
        """Return the outcome of stage 1 that joining and user groups start from."""
        layout = make_layout(
            scenario, splits.num_items, start.counts, start.scored[:, : scenario.pretraining.embedding_dim]
        )
        check_budgets(scenario, layout)
        return FederatedStage1Outcome(layout, TEMPERATURE, start, splits.num_users, ())

    def evaluator(
        self, scenario: Scenario, prepared: FederatedStage1Outcome, states: list[UserGroupState], members: Members
    ) -> Evaluator:
        """Return the evaluator of these tables."""
        federation = self.refiner(prepared).federation(scenario, members, states)
        orders = {
            "exposure": [state.statistics.shown.astype(np.float64) for state in states],
            "popularity": [state.statistics.popularity.astype(np.float64) for state in states],
        }
        return Evaluator(federation, _Weights(orders), server_round=self.clock)

    @property
    def labels(self) -> list[str]:
        """Ways of serving under budgets, in the order of :meth:`budgets`."""
        shares = [f"federation at {share * 100:g}%" for share in self.scenario.evaluation.budgets]
        return [*shares, OWN, FULL]

    def budgets(self, evaluator: Evaluator) -> list[int]:
        """Bytes of the scenario's budgets, then devices' own, then everything."""
        shares = [budget_bytes(evaluator.layout, share) for share in self.scenario.evaluation.budgets]
        return [*shares, wire.OWN_BUDGET, wire.UNLIMITED]

    def read(self, evaluator: Evaluator, former: Ints) -> RefreshCounts:
        """Devices read what they lack, under each budget (X, C). former: (G,) numbers that groups had when they last
        did.
        """
        assert self.published is not None
        federation, precision = evaluator.federation, self.scenario.blocks.precision
        weights, budgets = evaluator.weights(self.scenario.selector), np.array(self.budgets(evaluator), np.int64)

        def pack(group: int) -> wire.Arrays:
            return federation.states[group].packed(evaluator.layout, precision, weights[group], None)

        groups: dict[int, wire.Arrays] = {}
        for batch in packed_batches(range(len(federation.states)), pack, EVALUATED_BYTES):
            groups |= batch
        changed = self.published.changed
        request = wire.RefreshRequest(federation.setting, self.clock, precision, budgets, changed, groups, former)
        sizes = {"X": len(budgets), "C": len(evaluator.members.class_names)}
        replies = self.nodes.ask(
            wire.REFRESH,
            wire.RefreshReply,
            lambda partition: NodeRequest(request, MessageContext(sizes | federation.bounds(partition))),
        )
        return reduce(add, replies).refreshed

    def ask(
        self, period: int, known: Evaluator, new: Evaluator, exact: list[FloatArray], num_known: int
    ) -> dict[Cohort, wire.EvaluateReply]:
        """Ask every device to rank under every budget, and with the whole tables in fp32."""
        kinds: list[tuple[Cohort, Evaluator, tuple[int, int]]] = [
            ("start", known, (0, self.at_start)),
            ("since", known, (self.at_start, num_known)),
            ("first", new, (num_known, -1)),
        ]
        replies: dict[Cohort, wire.EvaluateReply] = {}
        for cohort, evaluator, devices in kinds:
            if devices[0] == devices[1]:
                continue
            budgets = self.budgets(evaluator)
            reply = evaluator.evaluate(budgets[:-1], devices=devices)
            replies[cohort] = reply
            for place, label in enumerate(self.labels[:-1]):
                self.lines.put(period, label, cohort, MetricTotals.from_reply(reply, place))
            for label, (asks, table) in {FULL: (evaluator, None), WHOLE: exactly(evaluator, exact)}.items():
                whole = asks.evaluate([wire.UNLIMITED], precision="fp32", everybody=table, devices=devices)
                self.lines.put(period, label, cohort, MetricTotals.from_reply(whole))
        return replies

    def rivals(self, period: int, learn: Splits, joining: Splits) -> None:
        """Measure the rivals on the same devices."""
        assert self.model is not None
        config, replicates = self.scenario.pretraining.spectral(), self.scenario.evaluation.bootstrap
        popularity, fading = learn.train.popularity(learn.num_items), self.part.decay_interactions
        behind, begin = self.timeline.begin_of(period - 1), self.timeline.begin_of(period)
        recent = np.bincount(self.timeline.items[behind:begin], minlength=learn.num_items)
        if self.first is None:
            self.first = replace(
                ScoredTables.from_model(self.model, fading), table=self.model.scored
            )  # freshness would not last
            self.first_lists = {
                "cached-list": StaticLists.from_scored(self.first, popularity, learn.train),
                "cached-list-fresh": StaticLists.from_scored(
                    ScoredTables.from_model(self.model, fading), popularity, learn.train
                ),
            }
        terms = StepTerms(learn.num_items, config.user_exponent, config.item_exponent, fading=fading)
        pooled = PooledSums(learn.train, terms)
        retrained = ScoredTables.from_model(self.continued(pooled, None, recent)[0], fading)
        lists = StaticLists.from_scored(retrained, popularity, learn.train)
        scored = {
            "start-table": self.first,
            "retrained": retrained,
            "popularity": ScoredTables.from_popularity(popularity),
            "recent-popularity": ScoredTables.from_popularity(recent * (len(self.timeline.items) + 1) + popularity),
        }
        for asked in PeriodDevices.from_splits(learn, joining, self.at_start):
            for name, cached in {**self.first_lists, "refreshed-list": lists}.items():
                metrics = cached.metrics(asked, int(self.timeline.items.max()) + 1)
                self.lines.put(period, name, asked.cohort, metric_totals(asked, metrics, replicates))
            for name, one in scored.items():
                self.lines.put(period, name, asked.cohort, metric_totals(asked, one.metrics(asked), replicates))

    def summary_line(self, period: int) -> str:
        """Return a summary in one line."""
        one = self.periods[period]
        recall = {name: one.lines[name]["all"].recall.value for name in (FULL, "cached-list") if name in one.lines}
        words = ", ".join(f"{name} {value:.4f}" for name, value in recall.items())
        return f"{one.devices:,} devices, {one.joining} joining, {one.items:,} items; recall@20: {words}"

    @property
    def last(self) -> range:
        """Periods that the summary of the end is over."""
        return range(max(0, self.timeline.periods - LAST), self.timeline.periods)

    def result(self) -> TimelineResult:
        """Return the result of all periods."""
        return TimelineResult(
            scenario=self.scenario.model_dump(mode="json"),
            seed=self.scenario.seed,
            full_table_bytes=self.layout_bytes,
            periods=tuple(self.periods),
            last=summaries(self.lines, self.last),
            whole=summaries(self.lines, range(len(self.periods))),
            stages=self.stages.seconds,
            nodes=len(self.nodes.ids),
        )


def exactly(evaluator: Evaluator, exact: list[FloatArray]) -> tuple[Evaluator, FloatArray | None]:
    """Return the evaluator for tables all of whose rows changed, and the one table (I, d) for all devices, or None
    where each group has its own.
    """
    if len(exact) == 1:
        return evaluator, exact[0]
    federation = evaluator.federation
    states = [replace(state, table=table) for state, table in zip(federation.states, exact, strict=True)]
    return replace(evaluator, federation=replace(federation, states=states)), None


__all__ = ["FULL", "OWN", "WHOLE", "check_timeline", "serve_timeline"]
