"""Types of `report.json`: what a run measured, filled where a figure is computed and read where it is shown.

:func:`to_json` and :func:`from_json` turn a :class:`RunResult` into plain JSON types and back; the file's layout is
that of the fields below, in their order (:mod:`fl_peel.json_codec` has the rules). Recall and NDCG are of the first
``evaluation.top_n`` items: a type has ``recall``, the file ``recall@20`` for 20. Validation metrics of rounds are
always of the first 20.

A number with an interval is an :class:`fl_peel.figures.Estimate`. :class:`fl_peel.figures.Column` marks what says where
figures belong: by these marks every number of a result becomes a row of its table (:attr:`RunResult.figures`).

Units: bytes are whole bytes (displayed as 1 KB = 1000 B), seconds are wall time unless the name says `virtual`, metrics
are in 0..1 and averaged over devices, a `share` is a fraction of the bytes of the fp32 full item table (0.01 is 1%).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

from pydantic import Field

from fl_peel.errors import ReportError
from fl_peel.figures import Beside, Column, Estimate, Figure, Figures
from fl_peel.json_codec import Inline, JsonKey, from_plain, to_plain
from fl_peel.privacy.report import PrivacyReport

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Metric = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0)]
Mean = Annotated[float, Field(ge=0)]
Recall = Annotated[Estimate, JsonKey("recall@{top_n}"), Beside(Metric)]
Ndcg = Annotated[Estimate, JsonKey("ndcg@{top_n}"), Beside(Metric)]
MaybeNdcg = Annotated[Metric | None, JsonKey("ndcg@{top_n}")]
MARGIN = Beside(Metric | None, "{key}_margin", "margin")
"""Layout of a metric with half the width of its interval, by Student's t; unknown where less than two devices count."""
MaybeRecall = Annotated[Estimate | None, JsonKey("recall@{top_n}"), MARGIN]
DeviceClass = Annotated[str, JsonKey("class"), Column("device_class")]
Method = Annotated[str, Column("method")]
Round = Annotated[Count, Column("round")]

PEEL = "peel"
"""Elastic tables, among the ways of serving devices that fairness compares."""
FULL_GLOBAL, FULL_REFINED = "full_table_global", "full_table_refined"
"""Full tables, among the same."""
FIXED_TIERS, EXCLUDING_SMALL, TRAINED_WITHOUT = "fixed_tiers", "excluding_small", "trained_without_small"
"""Tables that are not elastic, and elastic ones that were trained without small devices, among the same."""


Lists = Annotated[dict[str, Estimate], Inline(holding="@"), MARGIN]
"""Further metrics by name and length of the list, ``mrr@20``: of ``evaluation.top_n`` and ``evaluation.cutoffs``. All
but coverage, which is no mean over devices, have a margin where two devices count."""


@dataclass(frozen=True)
class Quality:
    """Recall and NDCG, full ranking, averaged over devices; to_global: recall relative to the global table, paired;
    lists: recall@k and ndcg@k of other lists, mrr@k, hit_rate@k, precision@k; coverage@k: share of all items that are
    in the list of any device.
    """

    recall: Recall
    ndcg: Ndcg
    to_global: Estimate | None = None
    lists: Lists = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Gain:
    """Paired gain in recall of the second table over the first: mean over ``devices``."""

    recall: Annotated[Estimate, JsonKey("mean"), Beside(float, "{end}", "end")]
    devices: Count


@dataclass(frozen=True, kw_only=True)
class FullTableResult:
    """Full item table in fp32. bytes: its size; global: the global table, as pretrained; start: the group tables before
    federated refinement; refined: the group tables after it, all on test items; ``..._validation``: the same on
    validation items, by which settings are chosen; gain: the paired gain of refinement; strongest: which of global,
    start and refined has the best recall on validation, so that ratios to it were not chosen on the test. The tables
    are None where ``evaluation.full_tables`` is off.
    """

    bytes: Bytes
    globally: Annotated[Quality | None, JsonKey("global"), Column("table", "global")] = None
    global_validation: Annotated[Quality | None, Column("table", "global")] = None
    start: Annotated[Quality | None, Column("table", "start")] = None
    start_validation: Annotated[Quality | None, Column("table", "start")] = None
    refined: Annotated[Quality | None, Column("table", "refined")] = None
    refined_validation: Annotated[Quality | None, Column("table", "refined")] = None
    gain: Annotated[Gain | None, Column("table", "refined")] = None
    strongest: str | None = None

    @property
    def tables(self) -> dict[str, Quality]:
        """Return the tables that were measured on the test, by name."""
        tables = {"global": self.globally, "start": self.start, "refined": self.refined}
        return {name: quality for name, quality in tables.items() if quality is not None}

    @property
    def on_validation(self) -> dict[str, Quality]:
        tables = {"global": self.global_validation, "start": self.start_validation, "refined": self.refined_validation}
        return {name: quality for name, quality in tables.items() if quality is not None}


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """Elastic embeddings at one memory budget, the same for every device.

    precision: fp32, fp16, int8, int4; stored_bytes_max: size of the largest artefact of any device, never above
    budget_bytes; to_global, to_strongest: recall relative to the full global table, and to the best full table of the
    run; lists: as in :class:`Quality`.
    """

    share: Annotated[Share, Column("budget_share")]
    budget_bytes: Annotated[Bytes, Column("budget_bytes")]
    precision: Annotated[str, Column("precision")]
    selector: Annotated[str, Column("selector")]
    recall: Recall
    ndcg: Ndcg
    stored_bytes_max: Bytes
    devices: Count
    to_global: Estimate | None = None
    to_strongest: Estimate | None = None
    lists: Lists = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class ClassCosts:
    """Cost of refinement for a device class. virtual_seconds, energy_j: virtual seconds and joules per device over the
    run, mean; dropped: device-rounds whose update was not counted, for any of the following reasons; stragglers:
    past the deadline; memory_dropouts: no block left in memory; memory_drops: device-rounds that lost blocks during
    training and were still counted; unavailable: offline; excluded: below ``refinement.min_budget_share``.
    """

    virtual_seconds: Mean
    energy_j: Mean
    dropped: Count
    stragglers: Count
    memory_dropouts: Count
    memory_drops: Count
    unavailable: Count
    excluded: Count


@dataclass(frozen=True, kw_only=True)
class DeviceClassRow:
    """Devices of one class under their own, changing budgets. recall, ndcg: None where no device could be evaluated;
    budget_bytes_mean, stored_bytes_mean: means over devices and moments; download_bytes, upload_bytes: means over
    devices; peak_bytes_mean: stored bytes plus the memory of block selection and training, mean over devices and
    rounds; budget_violations, working_violations: device-rounds above the budget, and above the working memory.
    """

    devices: Count
    recall: MaybeRecall
    ndcg: MaybeNdcg
    budget_bytes_mean: Mean
    stored_bytes_mean: Mean
    reselections: Count
    budget_violations: Count
    peak_bytes_mean: Mean
    working_violations: Count
    download_bytes: Mean
    upload_bytes: Mean
    costs: Annotated[ClassCosts, Inline()]


@dataclass(frozen=True, kw_only=True)
class UserGroupRow:
    """User group (a cluster of users) with its number of devices and their quality."""

    group: Annotated[int, Column("user_group")]
    devices: Count
    recall: MaybeRecall
    ndcg: MaybeNdcg


@dataclass(frozen=True, kw_only=True)
class RoundClock:
    """Round on the virtual clock, and its sampled devices by outcome. unavailable: offline; excluded: below
    ``refinement.min_budget_share``; stragglers: past the deadline; memory_dropouts: no block left in memory; none of
    these are counted in the update. memory_drops: devices that lost blocks and are counted.
    """

    virtual_seconds: Mean
    sampled: Count
    unavailable: Count
    excluded: Count
    stragglers: Count
    memory_dropouts: Count
    memory_drops: Count


@dataclass(frozen=True, kw_only=True)
class Stage1Step:
    """Step of stage 1, with totals over its ``times`` repetitions. devices: device answers included in the sums;
    unavailable, excluded, stragglers: devices that were offline, had insufficient memory, or answered past the
    deadline; bytes and energy: totals over all devices; void: repetitions of which nothing was taken, since somebody
    spoiled the sum, None where there are none.
    """

    step: Annotated[str, Column("step")]
    times: Count
    devices: Count
    unavailable: Count
    excluded: Count
    stragglers: Count
    download_bytes: Bytes
    upload_bytes: Bytes
    energy_j: Mean
    virtual_seconds: Mean
    void: Count | None = None


@dataclass(frozen=True, kw_only=True)
class AddedStage:
    """Stage of an installed package. after: stage of the run after which it stood; step: what it took of devices;
    figures: its own.
    """

    after: str
    step: Stage1Step
    figures: tuple[Figure, ...]


@dataclass(frozen=True, kw_only=True)
class Stage1Class:
    """Device class in stage 1. excluded: share of the steps that took too much memory; others: means per device."""

    devices: Count
    excluded: Metric
    download_bytes: Mean
    upload_bytes: Mean
    energy_j: Mean
    virtual_seconds: Mean


@dataclass(frozen=True, kw_only=True)
class Stage1Filter:
    """Spectral filter. columns: its number of columns; count_exponent, value_exponent: exponents of the item counts and
    of the eigenvalues; validation recall: recall among sampled items on the validation items of the devices that chose
    them, None where the scenario gives all.
    """

    columns: Count
    count_exponent: Mean
    value_exponent: Mean
    recall: Annotated[Metric | None, JsonKey("validation recall")]


@dataclass(frozen=True, kw_only=True)
class Stage1Result:
    """Stage 1 by federation. rounds: rounds in which all devices exchange messages, one per step; devices: devices
    included in the sums of passes, mean; bytes_down_mean, bytes_up_mean: bytes per device over all steps, mean over
    all devices, including the maps and centroids of joining; seconds: wall time; epsilon: privacy loss of everything
    that devices send in stage 1 at the run's delta, None without noise; items: items that tables have a row for,
    without noise those with at least ``privacy.min_owners`` owners.
    """

    rounds: Count
    devices: Mean
    items: Count
    bytes_down_mean: Mean
    bytes_up_mean: Mean
    seconds: Seconds
    virtual_seconds: Mean
    epsilon: Mean | None = None
    filter: Stage1Filter
    steps: tuple[Stage1Step, ...]
    classes: Annotated[dict[str, Stage1Class], Column("device_class")]


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """Comparison of the refined tables with the last accepted ones. devices: devices that compared; difference,
    standard_error: mean difference of their validation recall, with its standard error; accepted: user groups that
    accepted the refined table.
    """

    server_round: Round
    devices: Count
    difference: float
    standard_error: Mean
    accepted: Count
    download_bytes: Bytes


@dataclass(frozen=True, kw_only=True)
class RefinementResult:
    """Acceptance of refinement. groups_kept: user groups that accepted any round; rounds_kept: number of groups by
    accepted rounds; bytes_down_mean: bytes of the comparisons per device."""

    groups: Count
    groups_kept: Count
    rounds_kept: Annotated[dict[str, Count], Column("rounds", whole=True)]
    bytes_down_mean: Mean
    comparisons: tuple[ComparisonRow, ...]


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """Federated round. download_bytes, upload_bytes: bytes of all devices; message_bytes: bytes of the messages to and
    from nodes; devices: devices whose update was counted; failures: devices of failed nodes."""

    server_round: Round
    download_bytes: Bytes
    upload_bytes: Bytes
    message_bytes: Bytes
    devices: Count
    failures: Count
    seconds: Seconds
    clock: Annotated[RoundClock, Inline()]


@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """Metrics of a round, at its time on the virtual clock; None where a metric was not measured."""

    server_round: Round
    virtual_seconds: Mean
    loss: float | None
    recall: Annotated[Metric | None, JsonKey("validation recall@20")]
    ndcg: Annotated[Metric | None, JsonKey("validation ndcg@20")]
    controller_loss: Annotated[float | None, JsonKey("controller loss")]


@dataclass(frozen=True, kw_only=True)
class DeviceTrace:
    """Trace of one device, a value a round in each list; None for rounds in which it was not observed."""

    device: Annotated[int, Column("device")]
    device_class: Annotated[str, Column("device_class")]
    budget_bytes: Annotated[tuple[Bytes | None, ...], Column("round")]
    stored_bytes: Annotated[tuple[Bytes | None, ...], Column("round")]
    kept_blocks: Annotated[tuple[Count | None, ...], Column("round")]


@dataclass(frozen=True, kw_only=True)
class BytesPerDevice:
    """Bytes per device over the whole run, mean over devices."""

    download_mean: Mean
    upload_mean: Mean


@dataclass(frozen=True, kw_only=True)
class TimeToRecall:
    """First round in which a class's validation recall reached ``target_share`` of its best, and cost until then."""

    device_class: DeviceClass
    target_share: Annotated[Share, Column("target_share")]
    recall: Annotated[Metric, JsonKey("validation recall@20")]
    server_round: Count
    virtual_seconds: Mean
    download_bytes: Mean
    upload_bytes: Mean
    energy_j: Mean


@dataclass(frozen=True, kw_only=True)
class ClassFairness:
    """Quality of a device class. recall: by serving method; ratio: elastic recall relative to a full table. None where
    no device of the class was evaluated, or the denominator is 0.
    """

    device_class: DeviceClass
    devices: Count
    budget_bytes: Mean | None
    recall: Annotated[
        dict[str, Estimate | None],
        *(Inline(), Column("method"), Beside(Metric | None, "margin_{key}", "margin", null=True)),
    ]
    ratio: Annotated[dict[str, Mean | None], Inline("ratio_"), Column("method")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Distribution of recall over all devices under one serving method; None without devices."""

    method: Method
    recall: Annotated[Metric, JsonKey("recall@{top_n}")]
    worst_10_percent: Metric | None
    worst_25_percent: Metric | None
    worst_50_percent: Metric | None
    zero_share: Metric | None


@dataclass(frozen=True)
class WorstClass:
    """Device class with the smallest ratio of elastic recall to that of a full table."""

    against: Method
    device_class: DeviceClass
    ratio: Mean


@dataclass(frozen=True)
class ClassGap:
    """Recall of the class with the largest budgets minus that of the one with the smallest, under one method."""

    method: Method
    smallest: str
    largest: str
    gap: float


@dataclass(frozen=True)
class FixedTiersResult:
    """Fixed table sizes, and the size that each class was given, as shares."""

    tiers: tuple[Share, ...]
    chosen: Annotated[dict[str, Share], Column("device_class")]


@dataclass(frozen=True)
class ExcludingSmall:
    """Refinement without devices of a budget share ``below``; device_rounds: device-rounds left out."""

    below: Share
    device_rounds: Count


@dataclass(frozen=True, kw_only=True)
class FairnessResult:
    """Quality per device class, compared with systems whose tables are not elastic; metric: name of the recall."""

    metric: str
    worst_class: tuple[WorstClass, ...]
    gap: tuple[ClassGap, ...]
    by_class: tuple[ClassFairness, ...]
    over_devices: tuple[Spread, ...]
    fixed_tiers: FixedTiersResult | None = None
    excluding_small: ExcludingSmall | None = None


@dataclass(frozen=True, kw_only=True)
class Fall:
    """Drop of all budgets at once by a factor: recall of elastic devices, of rigid devices, with full tables, and with
    tables trained for the reduced budgets (None where they were not requested).
    """

    factor: Annotated[Share, Column("factor")]
    budget_bytes_mean: Mean
    stored_bytes_mean: Mean
    elastic: Annotated[Estimate, MARGIN]
    rigid: Annotated[Estimate, MARGIN]
    full_table_global: Metric | None = None
    full_table_refined: Metric | None = None
    trained_for: Annotated[Estimate | None, MARGIN]
    elastic_to_trained_for: Mean | None
    budget_violations: Count


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Devices followed after training, over all times. reselections: number of re-selections of blocks; grew, shrank:
    of these, how many grew or shrank; missing_block_bytes, growth_bytes: bytes of the missing blocks, and bytes sent
    for them; recall_before, recall_after: recall before and after re-selections, None without any; recall: over all
    times; floor_*: of devices that always hold what their smallest budget holds, for which nothing is sent.
    """

    devices: Count
    reselections: Count
    reselections_per_device_hour: Mean
    grew: Count
    shrank: Count
    missing_block_bytes: Bytes
    growth_bytes: Bytes
    growth_to_missing: Mean | None
    growth_bytes_per_device_hour: Mean
    shrink_bytes: Bytes
    recall_before: Metric | None
    recall_after: Metric | None
    recall: Metric
    stored_bytes_mean: Mean
    floor_recall: Metric
    floor_bytes_mean: Mean
    budget_violations: Count


@dataclass(frozen=True)
class ClassFollowed:
    """Followed devices of one device class."""

    device_class: DeviceClass
    figures: Annotated[Followed, Inline()]


@dataclass(frozen=True, kw_only=True)
class FollowedMoment:
    """Followed devices at one time after training. growth_bytes: bytes sent since the previous moment."""

    hours: Annotated[Mean, Column("hours")]
    budget_bytes_mean: Mean
    stored_bytes_mean: Mean
    kept_blocks_mean: Mean
    growth_bytes: Bytes
    recall: Annotated[Estimate, MARGIN]
    floor_recall: Annotated[Estimate, MARGIN]


@dataclass(frozen=True, kw_only=True)
class OverTime:
    """Devices followed for ``hours`` hours: all of them, by class, and moment by moment. to_floor: recall relative to
    that of devices that always hold what their smallest budget holds, paired.
    """

    hours: Mean
    figures: Annotated[Followed, Inline()]
    to_floor: Estimate | None
    by_class: tuple[ClassFollowed, ...]
    moments: Annotated[tuple[FollowedMoment, ...], JsonKey("over_time")]


@dataclass(frozen=True)
class ElasticityResult:
    """Behaviour of trained tables when budgets change; metric: name of the recall."""

    metric: str
    falls: tuple[Fall, ...]
    followed: Annotated[OverTime | None, Inline()] = None


@dataclass(frozen=True, kw_only=True)
class ElasticTrace:
    """Trace of a device followed after training (simulation only), by moment; recall where it re-selected blocks."""

    device: Annotated[int, Column("device")]
    device_class: Annotated[str, Column("device_class")]
    hours: Annotated[tuple[Mean, ...], Column("moment")]
    budget_bytes: Annotated[tuple[Bytes, ...], Column("moment")]
    stored_bytes: Annotated[tuple[Bytes, ...], Column("moment")]
    kept_blocks: Annotated[tuple[Count, ...], Column("moment")]
    moved_bytes: Annotated[tuple[Bytes, ...], Column("moment")]
    recall_before: Annotated[tuple[Metric | None, ...], Column("moment")]
    recall_after: Annotated[tuple[Metric | None, ...], Column("moment")]


@dataclass(frozen=True, kw_only=True)
class PoisoningRow:
    """Malicious share under a defence ("none"): recall, hit rate of targets, recall relative to the clean run."""

    share: Annotated[Metric, Column("malicious_share")]
    robust: Annotated[str, Column("defence")]
    recall: Annotated[Metric, JsonKey("recall@{top_n}")]
    target_hit_rate: Metric
    recall_ratio: Mean


@dataclass(frozen=True, kw_only=True)
class PoisoningResult:
    """Effect of malicious devices, at ``budget_share`` of the table; see docs/poisoning.md."""

    kind: str
    factor: float
    target_items: tuple[Count, ...]
    num_targets: Count
    budget_share: Share
    rows: tuple[PoisoningRow, ...]


@dataclass(frozen=True, kw_only=True)
class SecureSettings:
    """Keys of ``secure_aggregation`` in the scenario."""

    masked: bool
    devices_per_group: Count | None
    min_devices: Count
    neighbours: Count
    threshold: Share
    word_bits: int | str
    dropout_share: Metric


@dataclass(frozen=True, kw_only=True)
class SecureCounts:
    """Counts of secure aggregation. groups: group-rounds; sat_out_groups, void_groups: group-rounds skipped for lack of
    devices, and void ones; announced: device-rounds that started; devices: whose vector is in a sum; dropped: that
    dropped out; recovered: whose masks were recovered; void_devices: in void groups; owned_rows: rows, each in each
    sum, that some device learns from, where owners are counted first; few_owner_rows: those that stay closed, as fewer
    than ``privacy.min_owners`` may do in the end.
    """

    groups: Count = 0
    sat_out_groups: Count = 0
    void_groups: Count = 0
    announced: Count = 0
    devices: Count = 0
    dropped: Count = 0
    recovered: Count = 0
    void_devices: Count = 0
    owned_rows: Count = 0
    few_owner_rows: Count = 0

    def __add__(self, other: Self) -> SecureCounts:
        names = [one.name for one in fields(self)]
        return SecureCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class VoidGroup:
    """User group whose sum could not be recovered in a round."""

    group: int
    why: str


@dataclass(frozen=True, kw_only=True)
class SecureRound:
    """Outcome of the protocol in one round."""

    server_round: Round
    counts: Annotated[SecureCounts, Inline()]
    void: tuple[VoidGroup, ...]


@dataclass(frozen=True)
class SecureBytes:
    """Bytes that one device moved for secure aggregation in one round; ``vector`` is part of ``upload``."""

    download: Mean
    upload: Mean
    vector: Mean


@dataclass(frozen=True)
class SecureSeconds:
    """Processor seconds of the protocol alone over the run: all devices, and the server."""

    devices: Seconds
    server: Seconds


@dataclass(frozen=True, kw_only=True)
class SecureAggregationResult:
    """Outcome and cost of secure aggregation; devices_per_second: in a sum, per processor second."""

    settings: Annotated[SecureSettings, Inline()]
    counts: Annotated[SecureCounts, Inline()]
    bytes_per_device: SecureBytes
    seconds: SecureSeconds
    devices_per_second: Mean | None
    rounds: tuple[SecureRound, ...]


@dataclass(frozen=True, kw_only=True)
class EnvironmentResult:
    """Size of the run and, where it is known, its machine. excluded_nodes: failures of the nodes that the run went on
    without, by partition; where some failed when figures had been taken, these are still of their devices, too.
    """

    nodes: Count
    user_groups: Count
    blocks: Count
    devices: Count
    items: Count
    cpus: Count | None = None
    machine: str | None = None
    system: str | None = None
    engine: str = "simulation"
    """Flower engine; ``deployment``: nodes were SuperNodes."""
    excluded_nodes: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class FleetClassRow:
    """Class of the fleet. budget_median, share_low, share_median, share_high: median, 10th and 90th percentile of the
    budgets over devices and rounds, in bytes and as shares of the full table; others: medians over devices."""

    device_class: DeviceClass
    population_share: Metric
    budget_median: Mean
    share_low: Mean
    share_median: Mean
    share_high: Mean
    changes_per_round: Metric
    samples_per_s: Mean
    uplink_mbps: Mean
    downlink_mbps: Mean
    latency_ms: Mean
    train_watts: Mean
    radio_joules_per_mb: Mean
    available: Metric


@dataclass(frozen=True, kw_only=True)
class FleetResult:
    """Fleet of the run: a sample of its first devices, over the rounds of training and of following."""

    source: str
    devices: Count
    rounds: Count
    classes: tuple[FleetClassRow, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Content of `report.json`: everything that one run measured.

    scenario: resolved scenario with the value of every key; stages: wall seconds by stage; command: command that
    produces this report again. versions, peak_rss_bytes, fleet, command and the machine are added where the run is
    started.
    """

    scenario: dict[str, Any]
    seed: Annotated[int, Column("seed")]
    versions: dict[str, str] = field(default_factory=dict)
    budgets: tuple[BudgetRow, ...]
    device_classes: Annotated[dict[str, DeviceClassRow], Column("device_class")]
    user_groups: tuple[UserGroupRow, ...] = ()
    full_table: FullTableResult
    stage1: Stage1Result | None = None
    refinement: RefinementResult | None = None
    rounds: tuple[RoundRow, ...]
    history: tuple[HistoryRow, ...] = ()
    traces: tuple[DeviceTrace, ...] = ()
    bytes_per_device: BytesPerDevice | None = None
    time_to_recall: tuple[TimeToRecall, ...] = ()
    fairness: FairnessResult | None = None
    elasticity: ElasticityResult | None = None
    elastic_traces: tuple[ElasticTrace, ...] = ()
    poisoning: PoisoningResult | None = None
    secure_aggregation: SecureAggregationResult | None = None
    privacy: PrivacyReport | None = None
    added_stages: Annotated[dict[str, AddedStage] | None, Column("stage")] = None
    stages: Annotated[dict[str, Seconds], Column("stage")]
    environment: EnvironmentResult | None = None
    peak_rss_bytes: Bytes | None = None
    fleet: FleetResult | None = None
    command: str | None = None

    @property
    def top_n(self) -> int:
        """Length N of the list in Recall@N and NDCG@N."""
        return _top_n(self.scenario)

    @property
    def figures(self) -> Figures:
        """Return every number of the run, as the rows of a tidy table."""
        return Figures.from_result(self, top_n=self.top_n)


def _top_n(scenario: Any) -> int:
    evaluation = scenario.get("evaluation") if isinstance(scenario, dict) else None
    given = evaluation.get("top_n", 20) if isinstance(evaluation, dict) else 20
    return given if isinstance(given, int) else 20


def to_json(result: RunResult) -> dict[str, Any]:
    """The content of report.json: dictionaries, lists, numbers and text."""
    plain: dict[str, Any] = to_plain(result, top_n=result.top_n)
    return plain


def from_json(plain: object, what: str = "result") -> RunResult:
    """The inverse of :func:`to_json`; ``what`` is read, for messages.

    Raises:
        ReportError: this is no report; the path of the first mistake is named.
    """
    top_n = _top_n(plain.get("scenario")) if isinstance(plain, dict) else 20
    result = from_plain(RunResult, plain, what, top_n=top_n)
    for index, trace in enumerate(result.traces):
        lengths = {name: len(getattr(trace, name)) for name in ("budget_bytes", "stored_bytes", "kept_blocks")}
        if len(set(lengths.values())) > 1:
            raise ReportError(f"{what}: traces.{index}: lists of unequal length {lengths}; give one value a round")
    return result
