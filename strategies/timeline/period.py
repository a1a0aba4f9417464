"""A timeline on the server: period after period, each the stages of a run on what devices had done by then.

By what devices did in the period that is over, they choose the filter, and how many rounds of refinement would have
helped before it: in a selection run from the last tables, on what they had done by then. Stage 1 goes on from the last
model, devices join, as many rounds are refined from the new tables, rows that changed most are published, and devices
read what they lack of them and rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks.layout import budget_bytes
from fl_peel.data.interactions import Splits
from fl_peel.data.timeline import Timeline
from fl_peel.device_storage import device_timeline
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.exchange.counters import ClassCounts, RefreshCounts
from fl_peel.pretraining.incremental import (
    Exponents,
    SpectralModel,
    exponents_of,
    filter_request,
    freshness_request,
    update_model,
)
from fl_peel.pretraining.spectral import CERTAIN_OVER_TIME, known
from fl_peel.pretraining.stage1 import PooledSums, SpectralStart
from fl_peel.privacy.report import report_of
from fl_peel.scenario.method import Robust, TimelinePart
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Phase
from fl_peel.steps.base import NUMBER_BYTES, Counts, Doubles, Ints, StepChannel, StepTerms
from fl_peel.steps.choice import ChoiceStep, FilterRequest, recent_uses
from fl_peel.steps.passes import CountsStep
from fl_peel.steps.user_groups import VectorsStep
from strategies.evaluation.evaluator import Evaluator
from strategies.evaluation.heterogeneity import FollowPlan, follow, over_time
from strategies.groups.state import FloatArray, UserGroupState
from strategies.nodes import EVALUATED_BYTES, Members, packed_batches
from strategies.rounds.federation import RoundRecord
from strategies.rounds.step_channels import ClearSteps, NoisedSteps, SumsRecord
from strategies.rounds.strategy import PeelStrategy
from strategies.run.prepare import FederatedStage1Outcome, asked_devices, channel_to, group_plan
from strategies.run.refinement import Refiner, join, put_together, try_rounds, with_rounds
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from strategies.timeline.timeline_figures import (
    Cohort,
    MetricTotals,
    PeriodResult,
    ServingMetrics,
    TimelineResult,
    by_kind,
    class_results,
    period_figures,
    reads_of,
    summaries,
)
from strategies.timeline.timeline_rivals import PeriodDevices, RecentUses, ScoredTables, StaticLists, metric_totals

FULL, WHOLE, OWN = "federation", "federation, all rows", "federation, own budgets"
"""Ways of serving: tables of which as many rows change as the allowance says; all that changed; own budgets."""


@dataclass(frozen=True)
class ServedDevices:
    """The devices of a period that were there before and those that join in it, (M,) each, and the tables that they
    have; began: the round of the clock in which the period's steps opened, asked: in which devices were asked.
    """

    known: Evaluator
    new: Evaluator
    devices: tuple[NDArray[np.int64], NDArray[np.int64]]
    began: int
    asked: int

    def at(self, paths: RunPaths) -> ServedDevices:
        """The same, of a run whose folder lies elsewhere."""

        def there(evaluator: Evaluator) -> Evaluator:
            federation = evaluator.federation
            setting = replace(federation.setting, data_dir=paths.data_dir, run_dir=paths.run_dir)
            return replace(evaluator, federation=replace(federation, setting=setting))

        return replace(self, known=there(self.known), new=there(self.new))


@dataclass(frozen=True)
class BlockWeights:
    """The weights (B,) of the blocks of every user group, by selector."""

    orders: dict[str, list[NDArray[np.float64]]]

    def __call__(self, selector: str) -> list[NDArray[np.float64]]:
        return self.orders[selector]


@dataclass(frozen=True)
class TimelineState:
    """What a period leaves to the next. clock: round of the fleet's clock in which the next step opens; asking: where
    the channel to devices is besides, as its ``position`` has it; basis: what stage 1 made last, for the selection run
    of the next refinement; lasted: rounds that the last period did; won: (C,) what devices have said of the exponents
    of freshness, older answers counting less; taken: how often devices were asked for each noised part, in all periods;
    first_lists, first: what rivals keep of the first period.
    """

    clock: int = 1
    asking: tuple[Any, ...] = ()
    exponents: Exponents = field(default_factory=lambda: Exponents(0.5, 0.5, 0.0))
    won: Ints | None = None
    taken: dict[str, int] = field(default_factory=dict)
    model: SpectralModel | None = None
    basis: tuple[FederatedStage1Outcome, SpectralModel] | None = None
    published: PublishedTables | None = None
    served: ServedDevices | None = None
    lasted: int = 0
    first_lists: dict[str, StaticLists] = field(default_factory=dict)
    first: ScoredTables | None = None
    lines: ServingMetrics = field(default_factory=ServingMetrics)
    periods: tuple[PeriodResult, ...] = ()
    layout_bytes: int = 0

    def at(self, paths: RunPaths) -> TimelineState:
        """The same, of a run whose folder lies elsewhere."""
        return replace(self, served=None if self.served is None else self.served.at(paths))


def followed(run: Run, state: TimelineState, rounds: int | None = None) -> TimelineState:
    """Follow devices from when they were asked in the last period until now, or for so many rounds."""
    last = state.served
    if last is None:
        return state
    lasted = rounds or state.clock - last.asked
    with run.stages("following"):
        nobody = np.zeros(0, np.int64)
        replies = [
            follow(one, FollowPlan(devices, last.asked, lasted, keeps=True), nobody)
            for one, devices in zip((last.known, last.new), last.devices, strict=True)
            if len(devices)
        ]
        over = over_time(reduce(add, replies), last.known.members.class_names)
    *before, latest = state.periods
    return replace(state, lasted=lasted, periods=(*before, replace(latest, followed=over)))


@dataclass(frozen=True)
class _Refinement:
    """The rounds that were refined, or tried. rounds: number kept; compared_bytes: sent to compare them."""

    rounds: int = 0
    records: tuple[RoundRecord, ...] = ()
    compared_bytes: int = 0

    @property
    def moved(self) -> list[ClassCounts]:
        """Return the bytes of devices, none where there was no round."""
        return [reduce(add, (record.classes for record in self.records)).total()] if self.records else []

    @property
    def virtual_seconds(self) -> float:
        """Return how long the rounds took, one after the other."""
        return sum(record.virtual_seconds for record in self.records)


@dataclass
class Period:
    """A period, by its number. state: what the last period left, which the stages of this one move on."""

    run: Run
    timeline: Timeline
    number: int
    state: TimelineState
    _splits: dict[Phase, Splits] = field(default_factory=dict, init=False)
    _taken: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self._taken = Counter(self.state.taken)

    @property
    def part(self) -> TimelinePart:
        assert self.run.scenario.data.timeline is not None
        return self.run.scenario.data.timeline

    @property
    def at_start(self) -> int:
        """Return how many users there were when the first period began."""
        return self.timeline.users_before(self.timeline.begin_of(0))

    def at(self, phase: Phase) -> Run:
        scenario, paths = self.run.scenario, replace(self.run.paths, checkpoint_dir="")
        timeline = self.part.model_copy(update={"period": self.number, "phase": phase})
        data = scenario.data.model_copy(update={"timeline": timeline})
        return replace(self.run.under(scenario.model_copy(update={"data": data}), silent), paths=paths)

    def splits(self, phase: Phase) -> Splits:
        if phase not in self._splits:
            self._splits[phase] = self.timeline.splits(self.number, phase)
        return self._splits[phase]

    def move_on(self, **changes: Any) -> None:
        """Change the state that the next stage starts from."""
        self.state = replace(self.state, **changes)

    def devices(self, phase: Phase) -> ClearSteps:
        """Return the devices that are there, to be asked steps from the present time of the clock, under numbers that
        no step had before, without those that spoiled one.
        """
        devices = asked_devices(self.at(phase), self.splits(phase), self.run.plan, begin=self.state.clock)
        time, *asking = devices.position
        devices.resume((time, *(self.state.asking or asking)), [])
        return devices

    def after(self, devices: ClearSteps) -> None:
        """Go on after the steps that these devices were asked."""
        _, *asking = devices.position
        self.move_on(clock=devices.now, asking=tuple(asking))

    def sums(self, devices: ClearSteps) -> StepChannel:
        """Return their sums: noised, each as one more of all periods, or none opened that is of too few of them."""
        channel = channel_to(devices, self.run.scenario, self.run.plan)
        if isinstance(channel, NoisedSteps):
            channel.taken = self._taken
        return channel

    def serve(self) -> TimelineState:
        """Serve the period: tables first, then devices that were there, then those that join."""
        learn, joining, stages = self.splits("learn"), self.splits("join"), self.run.stages
        before = self.state.model
        if self.state.served is not None:
            self.move_on(clock=max(self.state.clock, self.state.served.began + self.part.rounds))
        began = self.state.clock
        with stages("choice"):
            records = self.choose()
        selection = self.select_rounds(records)
        with stages("stage 1"):
            recent = self.recent(records)
            present = self.devices("learn")
            model, start = self.continued(self.sums(present), before, recent)
            self.move_on(model=model)
            self.after(present)
            records += present.records
        here, newcomers = self.at("learn"), self.at("join")
        prepared = FederatedStage1Outcome.from_start(here.scenario, start, learn.num_users)
        prepared = replace(prepared, pull=model.pull(prepared.layout.embedding_dim))
        with stages("joining"):
            members = join(here, replace(prepared, former=model.former))
            arriving = self.devices("join")
            VectorsStep.ask(arriving, model.own, model.middle, model.centroids.size)
            joined = join(newcomers, prepared)
        states, refined = prepared.states(here.scenario), _Refinement()
        if self.run.scenario.refinement.rounds:
            with stages("refinement"):
                states = [replace(state, table=state.table.copy()) for state in states]
                refined = self.refine(self.refiner(here, prepared), members, states, selection.rounds)
        self.state = followed(self.run, self.state)
        exact, published = self.publish(states, model, refined.rounds)
        served = [replace(state, table=published.scored(group)) for group, state in enumerate(states)]
        known, new = (
            self.evaluator(self.refiner(one, prepared), served, some)
            for one, some in ((here, members), (newcomers, joined))
        )
        with stages("reading"):
            groups = np.arange(len(states))
            reads = [self.read(one, which) for one, which in ((known, model.former), (new, groups))]
        with stages("evaluation"):
            replies = self.ask(known, new, exact)
        with stages("rivals"):
            self.rivals(model)
        newest = joined.devices[joined.devices >= learn.num_users]
        asked = ServedDevices(known, new, (members.devices, newest), began, self.state.clock)
        self.move_on(served=asked, basis=(prepared, model), layout_bytes=prepared.layout.full_table_bytes)
        # who joins comes at any time of the period: nobody waits
        spent = reduce(add, (record.counts.classes for record in [*records, *arriving.records])).total()
        moved = [*selection.moved, *refined.moved]
        devices = max(joining.num_users, 1)
        # of those who were there before; whoever joins is sent this vector anyway
        pull_bytes = NUMBER_BYTES * len(model.middle) if model.mean_weight else 0
        begin, end = int(self.timeline.edges[self.number]), int(self.timeline.edges[self.number + 1])
        result = PeriodResult(
            exponents=asdict(self.state.exponents),
            begins=int(self.timeline.times[begin]),
            ends=int(self.timeline.times[end - 1]),
            devices=learn.num_users,
            left=0 if learn.contributed is None else int((learn.contributed.counts() == 0).sum()),
            joining=joining.num_users - learn.num_users,
            items=learn.num_items,
            new_items=learn.num_items - (0 if before is None else before.num_items),
            user_groups=len(states),
            changed_rows=float((published.changed == wire.NEW).sum(axis=1).mean()),
            refinement_rounds=refined.rounds,
            stage1_down=(int(spent.download_bytes) + learn.num_users * pull_bytes) / devices,
            stage1_up=int(spent.upload_bytes) / devices,
            refinement_down=(sum(int(one.download_bytes) for one in moved) + selection.compared_bytes) / devices,
            refinement_up=sum(int(one.upload_bytes) for one in moved) / devices,
            virtual_seconds=sum(record.virtual_seconds for record in records)
            + selection.virtual_seconds
            + refined.virtual_seconds,
            lines={line: by_kind(self.state.lines, [self.number], line) for line in self.state.lines.names()},
            reads=reads_of(self.labels, *reads),
            classes=class_results(replies, members.class_names, self.labels.index(OWN)),
            followed=None,
        )
        self.move_on(periods=(*self.state.periods, result), taken=dict(self._taken))
        return self.state

    def refiner(self, run: Run, prepared: FederatedStage1Outcome) -> Refiner:
        """Return the refiner of these tables, from the present time of the clock."""
        return Refiner(run, prepared, begin=self.state.clock - 1)

    def select_rounds(self, records: list[SumsRecord]) -> _Refinement:
        """Try all rounds of refinement before the period that is over; return how many would have helped. records: get
        what vectors take, which devices make once more, as they had them then.
        """
        if not self.run.scenario.refinement.rounds or self.state.basis is None:
            return _Refinement()
        prepared, model = self.state.basis
        devices = self.devices("choose")
        VectorsStep.ask(devices, model.own, model.middle)
        records += devices.records
        strategy, keeping, rounds = try_rounds(self.refiner(self.at("choose"), prepared))
        self.move_on(clock=self.state.clock + self.run.scenario.refinement.rounds)
        compared = 0 if keeping is None else sum(one.download_bytes for one in keeping.comparisons)
        return _Refinement(rounds, tuple(strategy.rounds), compared)

    def refine(self, refiner: Refiner, members: Members, states: list[UserGroupState], rounds: int) -> _Refinement:
        """Refine tables for so many rounds; ``states`` have them then."""
        if not rounds:
            return _Refinement()
        run = refiner.run.under(with_rounds(refiner.run.scenario, rounds))
        refiner = replace(refiner, run=run)
        strategy = put_together(PeelStrategy, refiner.federation(members, states), None)
        refiner.refine(strategy)
        self.move_on(clock=self.state.clock + rounds)
        return _Refinement(rounds, tuple(strategy.rounds))

    def publish(
        self, states: Sequence[UserGroupState], model: SpectralModel, rounds: int
    ) -> tuple[list[FloatArray], PublishedTables]:
        """Publish tables after refinement; return them, and as published: one for all while none was refined."""
        last = self.state.published
        shared = not rounds and (last is None or len(last.tables) == 1)
        exact = [state.table for state in (states[:1] if shared else states)]
        published = PublishedTables.from_exact(exact, model.fresh, last, model.former, self.part.max_changed_rows)
        self.move_on(published=published)
        return exact, published

    def choose(self) -> list[SumsRecord]:
        """Devices choose the filter by what they did in the period that is over: all of it before the first period, how
        much freshness counts before every one, where what they said one period earlier counts half. What it takes of
        them.
        """
        splits, config = self.splits("choose"), self.run.scenario.pretraining.spectral()
        records: list[SumsRecord] = []
        earlier = self.recent(records, "earlier") if self.state.model is None else None
        devices = self.devices("choose")
        sums = self.sums(devices)
        model, fixed = self.state.model, self.state.exponents
        count: tuple[float, ...] = (fixed.count,)
        value: tuple[float, ...] = (fixed.value,)
        if model is None:  # of what was before the period that is over
            assert earlier is not None
            count, value, _ = config.filters
            model, start = self.continued(sums, None, earlier)
            prepared = FederatedStage1Outcome.from_start(self.at("choose").scenario, start, splits.num_users)
            self.move_on(basis=(prepared, model))
        part, seed, fading = self.part, self.run.scenario.seed, self.part.decay_interactions
        exponents, fresh, mean = fixed, part.recency_exponents, part.popularity_weights
        if self.state.model is None:
            exponents = Exponents(count[0], value[0], fresh[0], mean[0])
            first = filter_request(model, seed, count=count, value=value, fresh=fresh, fading=fading)
            if first is not None:
                best = exponents_of(first, *self.won(sums, first))
                exponents = replace(exponents, count=best.count, value=best.value)
        question = freshness_request(model, seed, exponents, fresh=fresh, mean=mean, fading=fading)
        if question is not None:
            won, answered = self.won(sums, question)
            if answered or self.state.model is None:  # later, what was chosen last stays where nobody says anything
                won = won if self.state.won is None else won + self.state.won // 2
                exponents = exponents_of(question, won, answered)
                self.move_on(won=won)
        self.move_on(exponents=exponents)
        self.after(devices)
        return [*records, *devices.records]

    def won(self, sums: StepChannel, question: FilterRequest) -> tuple[Ints, int]:
        """Return what everybody says of each filter (C,), and how many answered, which nobody tells within bounds."""
        won, answered = ChoiceStep.ask(sums, question, self.splits("choose").num_users)
        return won, answered or int(sums.terms.bounded)

    def lasting_weight(self) -> float:
        """Return the weight of everybody's mean vector that devices favour where least freshness counts."""
        fresh, weights = (np.array(one) for one in (self.part.recency_exponents, self.part.popularity_weights))
        if self.state.won is None:
            return float(weights[0])
        won = self.state.won.reshape(len(fresh), len(weights))
        return float(weights[won[fresh.argmin()].argmax()])

    def recent(self, records: list[SumsRecord], phase: Phase = "recent") -> Doubles:
        """Return recent uses of items (I,) when the period begins, or the one behind; records get what it takes."""
        devices = self.devices(phase)
        counts: Counts = np.zeros(devices.num_items)
        if self.part.counts_recent:
            sums = self.sums(devices)
            counts = CountsStep.ask(sums)
            if sums.terms.bounded:
                counts = known(counts, sums.std("counts"), CERTAIN_OVER_TIME)
            self.after(devices)
            records += devices.records
        basis = self.state.basis
        return recent_uses(counts, self.part.recency_half_life, None if basis is None else basis[1].recent)

    def continued(
        self, sums: StepChannel, before: SpectralModel | None, recent: Doubles
    ) -> tuple[SpectralModel, SpectralStart]:
        """Update the last model from these sums, or train it anew with as many passes as the first time."""
        config = self.run.scenario.pretraining.spectral()
        if before is not None:
            config = replace(config, passes=self.part.passes)
        plan = group_plan(self.run.scenario)
        return update_model(sums, config, plan, before, exponents=self.state.exponents, recent=recent)

    def evaluator(self, refiner: Refiner, states: list[UserGroupState], members: Members) -> Evaluator:
        orders = {
            "exposure": [state.statistics.shown.astype(np.float64) for state in states],
            "popularity": [state.statistics.popularity.astype(np.float64) for state in states],
        }
        return Evaluator(refiner.federation(members, states), BlockWeights(orders), server_round=self.state.clock)

    @property
    def labels(self) -> list[str]:
        """Ways of serving under budgets, in the order of :meth:`budgets`."""
        shares = [f"federation at {share * 100:g}%" for share in self.run.scenario.evaluation.budgets]
        return [*shares, OWN, FULL]

    def budgets(self, evaluator: Evaluator) -> list[int]:
        """Bytes of the scenario's budgets, then devices' own, then everything."""
        shares = [budget_bytes(evaluator.layout, share) for share in self.run.scenario.evaluation.budgets]
        return [*shares, wire.OWN_BUDGET, wire.UNLIMITED]

    def read(self, evaluator: Evaluator, former: Ints) -> RefreshCounts:
        """Devices read what they lack, under each budget (X, C). former: (G,) numbers of groups when they last did."""
        assert self.state.published is not None
        federation, precision = evaluator.federation, self.run.scenario.blocks.precision
        weights, budgets = evaluator.weights(self.run.scenario.selector), np.array(self.budgets(evaluator), np.int64)

        def pack(group: int) -> wire.Arrays:
            return federation.states[group].packed(evaluator.layout, precision, weights[group], None)

        groups: dict[int, wire.Arrays] = {}
        for batch in packed_batches(range(len(federation.states)), pack, EVALUATED_BYTES):
            groups |= batch
        changed = self.state.published.changed
        request = wire.RefreshRequest(federation.setting, self.state.clock, precision, budgets, changed, groups, former)
        replies = self.run.nodes.ask(wire.REFRESH, federation.to_all(request, X=len(budgets)))
        return reduce(add, replies).refreshed

    def ask(self, known: Evaluator, new: Evaluator, exact: list[FloatArray]) -> dict[Cohort, wire.EvaluateReply]:
        """Ask every device to rank under every budget, and with the whole tables in fp32."""
        num_known = self.splits("learn").num_users
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
                self.state.lines.put(self.number, label, cohort, MetricTotals.from_reply(reply, place))
            for label, (asks, table) in {FULL: (evaluator, None), WHOLE: exactly(evaluator, exact)}.items():
                whole = asks.evaluate([wire.UNLIMITED], precision="fp32", everybody=table, devices=devices)
                self.state.lines.put(self.number, label, cohort, MetricTotals.from_reply(whole))
        return replies

    def rivals(self, model: SpectralModel) -> None:
        learn = self.splits("learn")
        config, replicates = self.run.scenario.pretraining.spectral(), self.run.scenario.evaluation.bootstrap
        popularity, fading = learn.train.popularity(learn.num_items), self.part.decay_interactions
        uses = RecentUses.from_timeline(self.timeline, self.number, self.part.recency_half_life)
        fresh = ScoredTables.from_model(model, fading)
        if self.state.first is None:
            first = replace(fresh, table=model.scored, mean_weight=self.lasting_weight())  # freshness would not last
            lists = {"cached-list": first, "cached-list-fresh": fresh}
            made = {name: StaticLists.from_scored(one, popularity, learn.train) for name, one in lists.items()}
            self.move_on(first=first, first_lists=made)
        assert self.state.first is not None
        terms = StepTerms(learn.num_items, config.user_exponent, config.item_exponent, fading=fading)
        pooled = PooledSums(learn.train, terms)
        retrained = ScoredTables.from_model(self.continued(pooled, None, uses.faded)[0], fading)
        refreshed = StaticLists.from_scored(retrained, popularity, learn.train)
        scored = {
            "start-table": self.state.first,
            "retrained": retrained,
            "popularity": ScoredTables.from_popularity(popularity),
            "recent-popularity": uses.better(self.timeline, self.splits("choose")),
        }
        for asked in PeriodDevices.from_splits(learn, self.splits("join"), self.at_start):
            for name, cached in {**self.state.first_lists, "refreshed-list": refreshed}.items():
                metrics = cached.metrics(asked, int(self.timeline.items.max()) + 1)
                self.state.lines.put(self.number, name, asked.cohort, metric_totals(asked, metrics, replicates))
            for name, one in scored.items():
                metrics = one.metrics(asked)
                self.state.lines.put(self.number, name, asked.cohort, metric_totals(asked, metrics, replicates))


def exactly(evaluator: Evaluator, exact: list[FloatArray]) -> tuple[Evaluator, FloatArray | None]:
    """Return the evaluator for changed tables, and the table (I, d) of all devices; None: groups have own ones."""
    if len(exact) == 1:
        return evaluator, exact[0]
    federation = evaluator.federation
    states = [replace(state, table=table) for state, table in zip(federation.states, exact, strict=True)]
    return replace(evaluator, federation=replace(federation, states=states)), None


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
        run.plan  # noqa: B018, a target that cannot be met shows before anything is asked
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
    columns = pretraining.spectral().columns
    for key, wrong, remedy in (
        ("pretraining.collected.share", collects, "0, with model: spectral and source: devices"),
        ("pretraining.columns", columns > pretraining.embedding_dim, "at most pretraining.embedding_dim"),
        ("refinement.aggregation.robust.rule", scenario.refinement.aggregation.robust != Robust(), "mean"),
        ("refinement.rounds", scenario.privacy.noised and scenario.refinement.rounds > 0, "0 under a mechanism"),
        ("user_groups.count", scenario.privacy.noised and scenario.user_groups.count > 1, "1 under a mechanism"),
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
        privacy=None if run.plan is None else report_of(run.scenario, run.plan, []),
        replicates=state.lines.replicates(last),
    )


@dataclass(frozen=True)
class PublishedTables:
    """The published tables. tables: (I, d) each, without freshness: the one that all user groups share, or every
    group's own; fresh: (I,) what scores are multiplied with besides; changed: (T, I) which rows are NEW, which
    RESCALED, as :mod:`fl_peel.wire` has these words.
    """

    tables: tuple[FloatArray, ...]
    fresh: NDArray[np.float64]
    changed: NDArray[np.uint8]

    @staticmethod
    def from_exact(
        exact: Sequence[FloatArray],
        fresh: NDArray[np.float64],
        before: PublishedTables | None,
        former: Ints,
        allowance: float,
    ) -> PublishedTables:
        """Publish the rows that changed most of exact tables (I, d), whose values include freshness. before: tables of
        the previous period; former: (G,) numbers that groups had before, -1 for new ones; allowance: share of a table's
        rows that may change.
        """
        tables, changes = [], []
        for number, table in enumerate(exact):
            last = None if before is None else before.table_of(int(former[number]))
            plain = np.asarray(table / fresh[:, None].astype(np.float32), np.float32)
            now, changed = published(last, plain, allowance)
            if before is not None and last is not None:
                more = len(fresh) - len(before.fresh)
                changed[(changed == 0) & (fresh != np.append(before.fresh, np.ones(more)))] = wire.RESCALED
            tables.append(now)
            changes.append(changed)
        return PublishedTables(tuple(tables), fresh, np.stack(changes))

    def table_of(self, group: int) -> FloatArray | None:
        """Return the table of a user group, without freshness; None for a group that did not exist."""
        if len(self.tables) == 1:
            return self.tables[0]
        return self.tables[group] if group >= 0 else None

    def scored(self, group: int) -> FloatArray:
        """A group's table (I, d) as devices rank with it."""
        table = self.tables[0 if len(self.tables) == 1 else group]
        scored: FloatArray = table * self.fresh[:, None].astype(np.float32)
        return scored


def published(before: FloatArray | None, table: FloatArray, allowance: float) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Return the table (I, d) that devices have from now on, and which rows changed (I,): new ones, and of the others
    those that moved most, ``allowance`` times I rows in all, as the rest stays as it was.
    """
    if before is None:
        return table, np.full(len(table), wire.NEW, np.uint8)
    known = len(before)
    moved = np.linalg.norm(table[:known] - before, axis=1)
    room = max(0, int(allowance * len(table)) - (len(table) - known))
    changed = np.zeros(len(table), np.uint8)
    changed[known:] = wire.NEW
    most = np.argsort(-moved, kind="stable")[:room]
    changed[most[moved[most] > 0]] = wire.NEW
    now = table.copy()
    kept = np.flatnonzero(changed == 0)
    now[kept] = before[kept]
    return now, changed
