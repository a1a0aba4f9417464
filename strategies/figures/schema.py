"""What a run measured: the types of `report.json`, filled where a figure is made and read where it is shown.

:func:`to_json` and :func:`from_json` turn a :class:`RunResult` into plain JSON types and back; the file's layout is
that of the fields below, in their order (:mod:`fl_peel.plain` has the rules). Recall and NDCG are of the first
``evaluation.top_n`` items: a type says ``recall``, the file ``recall@20`` for 20. What rounds measure on validation is
always of 20.

Units: bytes are whole bytes (shown as 1 KB = 1000 B), seconds are wall time unless the name says `virtual`, metrics are
in 0..1 and averaged over devices, a `share` is a fraction of the bytes of the fp32 full item table (0.01 is 1%).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import Field

from fl_peel.errors import ReportError
from fl_peel.plain import Inline, Key, from_plain, to_plain
from fl_peel.privacy.report import PrivacyReport

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Metric = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0)]
Mean = Annotated[float, Field(ge=0)]
Recall = Annotated[Metric, Key("recall@{top_n}")]
MaybeRecall = Annotated[Metric | None, Key("recall@{top_n}")]
Ndcg = Annotated[Metric, Key("ndcg@{top_n}")]
MaybeNdcg = Annotated[Metric | None, Key("ndcg@{top_n}")]
DeviceClass = Annotated[str, Key("class")]

PEEL = "peel"
"""Elastic tables, among the ways of serving devices that fairness compares."""
FULL_GLOBAL, FULL_REFINED = "full_table_global", "full_table_refined"
"""Full tables, among the same."""
FIXED_TIERS, EXCLUDING_SMALL, TRAINED_WITHOUT = "fixed_tiers", "excluding_small", "trained_without_small"
"""Tables that are not elastic, and elastic ones that were trained without small devices, among the same."""


@dataclass(frozen=True)
class Quality:
    """Recall and NDCG on the test split, full ranking, averaged over devices."""

    recall: Recall
    ndcg: Ndcg


@dataclass(frozen=True)
class Interval:
    """Ends of a 95 % interval over devices; docs/statistics.md says what that means."""

    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """Recall over that of another table, and the ends of its 95 % interval, paired device by device; None where
    ``evaluation.bootstrap`` is 0.
    """

    value: Mean
    low: Mean | None
    high: Mean | None


RecallInterval = Annotated[Interval | None, Key("recall@{top_n}_interval")]
NdcgInterval = Annotated[Interval | None, Key("ndcg@{top_n}_interval")]
RecallMargin = Annotated[Mean | None, Key("recall@{top_n}_margin")]
"""Half the width of a 95 % interval over devices, by Student's t; None where less than two devices count."""


@dataclass(frozen=True)
class TableQuality(Quality):
    """That of a full table, with intervals, and recall over that of the global one."""

    recall_interval: RecallInterval = None
    ndcg_interval: NdcgInterval = None
    to_global: Ratio | None = None


@dataclass(frozen=True)
class Gain:
    """Of each device's recall, second less first: mean over so many ``devices``, and its 95 % interval."""

    mean: float
    low: float
    high: float
    devices: Count


@dataclass(frozen=True, kw_only=True)
class FullTable:
    """The whole item table in fp32, and its bytes: as pretrained, as user groups start with it before any device has
    trained (start_validation: on validation items, by which settings are chosen; the rest is of the test), as refined
    by the federation, and what that adds; None where ``evaluation.full_tables`` is off. strongest: which of global,
    start and refined has the best recall on the test, a yardstick that is as hard as this run can make it.
    """

    bytes: Bytes
    globally: Annotated[TableQuality | None, Key("global")] = None
    start: TableQuality | None = None
    start_validation: Quality | None = None
    refined: TableQuality | None = None
    gain: Gain | None = None
    strongest: str | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """Elastic embeddings at one budget, every device held to the same bytes.

    precision: fp32, fp16, int8, int4; stored_bytes_max: largest artefact of any device, never above budget_bytes;
    to_global, to_strongest: recall over that of the full global table, and of the strongest full table of the run.
    """

    share: Share
    budget_bytes: Bytes
    precision: str
    selector: str
    recall: Recall
    ndcg: Ndcg
    stored_bytes_max: Bytes
    devices: Count
    recall_interval: RecallInterval = None
    ndcg_interval: NdcgInterval = None
    to_global: Ratio | None = None
    to_strongest: Ratio | None = None


@dataclass(frozen=True, kw_only=True)
class ClassCosts:
    """What refinement cost a device class: virtual seconds and joules of a device over the run, on average; devices by
    round whose update did not count, by why, and those that lost blocks while they trained.
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
    """Devices of one class under their own moving budgets; recall is None where none could be evaluated. Means are over
    devices and moments, bytes moved over devices. peak_bytes_mean: stored, and what choosing and training take besides,
    over devices and rounds; working_violations: device-rounds that took more besides than working memory allows.
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
    recall_margin: RecallMargin = None


@dataclass(frozen=True, kw_only=True)
class UserGroupRow:
    """One user group (K-means on user embeddings), its devices and what they reach."""

    group: int
    devices: Count
    recall: MaybeRecall
    ndcg: MaybeNdcg
    recall_margin: RecallMargin = None


@dataclass(frozen=True, kw_only=True)
class RoundClock:
    """A round on the virtual clock, and its devices: how many were sampled, and why some of them do not count: not
    available, excluded by ``refinement.min_budget_share``, past the deadline, without a block left. Those of
    ``memory_drops`` lost blocks, and count.
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
    """A step of stage 1, of which ``times`` were taken: devices whose sums count, and why others do not, added up over
    these; bytes over all devices.
    """

    step: str
    times: Count
    devices: Count
    unavailable: Count
    excluded: Count
    stragglers: Count
    download_bytes: Bytes
    upload_bytes: Bytes
    energy_j: Mean
    virtual_seconds: Mean


@dataclass(frozen=True, kw_only=True)
class Stage1Class:
    """A device class in stage 1: devices; share of their steps for which they had too little memory; what it took."""

    devices: Count
    excluded: Metric
    download_bytes: Mean
    upload_bytes: Mean
    energy_j: Mean
    virtual_seconds: Mean


@dataclass(frozen=True, kw_only=True)
class Stage1Filter:
    """The shape of scores: exponents of item counts and eigenvalues; recall: among drawn items, on validation items of
    the devices that chose them, None where the scenario names both.
    """

    count_exponent: Mean
    value_exponent: Mean
    recall: Annotated[Metric | None, Key("validation recall")]


@dataclass(frozen=True, kw_only=True)
class Stage1Result:
    """Stage 1 by federation. rounds: messages' worth of all devices, one for every step; devices: that are in the sums
    of passes, on average; bytes: of a device over all steps, on average over all devices, maps and centroids of joining
    included; seconds: of wall time; epsilon: of what devices say in it, at the run's delta, None where nothing is
    noised; items: that tables have a row for, with at least ``privacy.min_owners`` owners where nothing is noised.
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
    classes: dict[str, Stage1Class]


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """What devices said of a refinement: those that compared, and the mean difference of their recall on validation
    items with its standard error; accepted: user groups that keep it.
    """

    server_round: Count
    devices: Count
    difference: float
    standard_error: Mean
    accepted: Count
    download_bytes: Bytes


@dataclass(frozen=True, kw_only=True)
class RefinementResult:
    """What of the refinement was kept. groups_kept: user groups that kept any round; rounds_kept: how many groups, by
    the rounds they kept; bytes_down_mean: of comparisons, by device.
    """

    groups: Count
    groups_kept: Count
    rounds_kept: dict[str, Count]
    bytes_down_mean: Mean
    comparisons: tuple[ComparisonRow, ...]


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One federated round: bytes of all devices reached and of the messages to and from nodes, devices whose update
    counts, devices of nodes that failed.
    """

    server_round: Count
    download_bytes: Bytes
    upload_bytes: Bytes
    message_bytes: Bytes
    devices: Count
    failures: Count
    seconds: Seconds
    clock: Annotated[RoundClock, Inline()]


@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """What a round measured, at its time on the virtual clock; None where it was not measured."""

    server_round: Count
    virtual_seconds: Mean
    loss: float | None
    recall: Annotated[Metric | None, Key("validation recall@20")]
    ndcg: Annotated[Metric | None, Key("validation ndcg@20")]
    controller_loss: Annotated[float | None, Key("controller loss")]


@dataclass(frozen=True, kw_only=True)
class DeviceTrace:
    """One device through the rounds; the three lists are equally long, None where it was not observed."""

    device: int
    device_class: str
    budget_bytes: tuple[Bytes | None, ...]
    stored_bytes: tuple[Bytes | None, ...]
    kept_blocks: tuple[Count | None, ...]


@dataclass(frozen=True, kw_only=True)
class BytesPerDevice:
    """Bytes that a device moved over the whole run, averaged over devices."""

    download_mean: Mean
    upload_mean: Mean


@dataclass(frozen=True, kw_only=True)
class TimeToRecall:
    """When validation recall of a class, or of all, first reached a share of its best, and what that took a device."""

    device_class: DeviceClass
    target_share: Share
    recall: Annotated[Metric, Key("validation recall@20")]
    server_round: Count
    virtual_seconds: Mean
    download_bytes: Mean
    upload_bytes: Mean
    energy_j: Mean


@dataclass(frozen=True, kw_only=True)
class ClassFairness:
    """What a device class gets: recall by way of serving, elastic recall over that of full tables, by table, and half
    the width of the 95 % interval of each recall. None where no device of the class was evaluated, and where there is
    nothing to divide by.
    """

    device_class: DeviceClass
    devices: Count
    budget_bytes: Mean | None
    recall: Annotated[dict[str, Metric | None], Inline()]
    ratio: Annotated[dict[str, Mean | None], Inline("ratio_")] = field(default_factory=dict)
    margin: Annotated[dict[str, Mean | None], Inline("margin_")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How recall is spread over all devices under one way of serving; None without devices."""

    method: str
    recall: Recall
    worst_10_percent: Metric | None
    worst_25_percent: Metric | None
    worst_50_percent: Metric | None
    zero_share: Metric | None


@dataclass(frozen=True)
class WorstClass:
    """The class whose elastic recall is the smallest share of that of a full table."""

    against: str
    device_class: DeviceClass
    ratio: Mean


@dataclass(frozen=True)
class ClassGap:
    """Recall of the class with the largest budgets less that of the one with the smallest, under one way of serving."""

    method: str
    smallest: str
    largest: str
    gap: float


@dataclass(frozen=True)
class FixedTiers:
    """Sizes of fixed tables, and which each class was given, as shares."""

    tiers: tuple[Share, ...]
    chosen: dict[str, Share]


@dataclass(frozen=True)
class ExcludingSmall:
    """One size, with devices below it left out: the size as a share, and devices left out, by round."""

    below: Share
    device_rounds: Count


@dataclass(frozen=True, kw_only=True)
class FairnessResult:
    """What each device class gets, against systems whose tables are not elastic; metric: which recall this is."""

    metric: str
    worst_class: tuple[WorstClass, ...]
    gap: tuple[ClassGap, ...]
    by_class: tuple[ClassFairness, ...]
    over_devices: tuple[Spread, ...]
    fixed_tiers: FixedTiers | None = None
    excluding_small: ExcludingSmall | None = None


@dataclass(frozen=True, kw_only=True)
class Fall:
    """All budgets fall at once by a factor: recall of elastic devices, of rigid ones, of full tables, of tables trained
    for the fallen budgets (None where that was not asked for); margins: half the width of their 95 % intervals.
    """

    factor: Share
    budget_bytes_mean: Mean
    stored_bytes_mean: Mean
    elastic: Metric
    rigid: Metric
    full_table_global: Metric | None = None
    full_table_refined: Metric | None = None
    trained_for: Metric | None
    elastic_to_trained_for: Mean | None
    budget_violations: Count
    elastic_margin: Mean | None = None
    rigid_margin: Mean | None = None
    trained_for_margin: Mean | None = None


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Devices followed after training, over all times: how often they re-selected, bytes of the blocks they lacked and
    of those sent for them, recall before and after (None where nobody re-selected) and over all times; and for rigid
    devices recall, bytes sent, and the share of times at which they serve nothing.
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
    rigid_bytes_per_device_hour: Mean
    recall_before: Metric | None
    recall_after: Metric | None
    recall: Metric
    rigid_recall: Metric
    rigid_empty_share: Metric
    budget_violations: Count


@dataclass(frozen=True)
class ClassFollowed:
    """The same, of one device class."""

    device_class: DeviceClass
    figures: Annotated[Followed, Inline()]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Devices followed, at one time after training; growth_bytes: sent since the moment before; margins: half the width
    of the 95 % intervals of recalls.
    """

    hours: Mean
    budget_bytes_mean: Mean
    stored_bytes_mean: Mean
    kept_blocks_mean: Mean
    growth_bytes: Bytes
    recall: Metric
    rigid_recall: Metric
    rigid_empty_share: Metric
    recall_margin: Mean | None = None
    rigid_recall_margin: Mean | None = None


@dataclass(frozen=True, kw_only=True)
class OverTime:
    """Devices followed for so many hours: all of them, by class, and moment by moment."""

    hours: Mean
    figures: Annotated[Followed, Inline()]
    by_class: tuple[ClassFollowed, ...]
    moments: Annotated[tuple[Moment, ...], Key("over_time")]


@dataclass(frozen=True)
class ElasticityResult:
    """What happens to trained tables when budgets move; metric: which recall this is."""

    metric: str
    falls: tuple[Fall, ...]
    followed: Annotated[OverTime | None, Inline()] = None


@dataclass(frozen=True, kw_only=True)
class ElasticTrace:
    """A single device followed after training, in simulation only: one value a moment; recall where it re-selected."""

    device: int
    device_class: str
    hours: tuple[Mean, ...]
    budget_bytes: tuple[Bytes, ...]
    stored_bytes: tuple[Bytes, ...]
    kept_blocks: tuple[Count, ...]
    moved_bytes: tuple[Bytes, ...]
    recall_before: tuple[Metric | None, ...]
    recall_after: tuple[Metric | None, ...]


@dataclass(frozen=True, kw_only=True)
class PoisoningRow:
    """A share of malicious devices under a defence ("none"): recall, hits of targets, recall over the clean run's."""

    share: Metric
    robust: str
    recall: Recall
    target_hit_rate: Metric
    recall_ratio: Mean


@dataclass(frozen=True, kw_only=True)
class PoisoningResult:
    """What malicious devices do, at ``budget_share`` of the table; see docs/poisoning.md."""

    kind: str
    factor: float
    target_items: tuple[Count, ...]
    num_targets: Count
    budget_share: Share
    rows: tuple[PoisoningRow, ...]


@dataclass(frozen=True, kw_only=True)
class SecureSettings:
    """The keys of ``secure_aggregation`` in the scenario."""

    masked: bool
    devices_per_group: Count | None
    min_devices: Count
    neighbours: Count
    threshold: Share
    word_bits: int | str
    dropout_share: Metric


@dataclass(frozen=True, kw_only=True)
class SecureCounts:
    """User groups by round: of the rounds, that sat out for want of devices, that were void. Devices by round: that
    began, whose vector is in a sum, that dropped out, whose masks were recovered, that were in a void group.
    """

    groups: Count = 0
    sat_out_groups: Count = 0
    void_groups: Count = 0
    announced: Count = 0
    devices: Count = 0
    dropped: Count = 0
    recovered: Count = 0
    void_devices: Count = 0

    def __add__(self, other: Self) -> SecureCounts:
        """Those of both."""
        return SecureCounts(
            groups=self.groups + other.groups,
            sat_out_groups=self.sat_out_groups + other.sat_out_groups,
            void_groups=self.void_groups + other.void_groups,
            announced=self.announced + other.announced,
            devices=self.devices + other.devices,
            dropped=self.dropped + other.dropped,
            recovered=self.recovered + other.recovered,
            void_devices=self.void_devices + other.void_devices,
        )


@dataclass(frozen=True)
class VoidGroup:
    """A user group whose sum could not be had in a round."""

    group: int
    why: str


@dataclass(frozen=True, kw_only=True)
class SecureRound:
    """What the protocol did in one round."""

    server_round: Count
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
    """Processor seconds of the protocol alone, over the run: all devices, and the server."""

    devices: Seconds
    server: Seconds


@dataclass(frozen=True, kw_only=True)
class SecureAggregationResult:
    """What secure aggregation did and cost over all rounds; devices_per_second: that are in a sum, by these seconds."""

    settings: Annotated[SecureSettings, Inline()]
    counts: Annotated[SecureCounts, Inline()]
    bytes_per_device: SecureBytes
    seconds: SecureSeconds
    devices_per_second: Mean | None
    rounds: tuple[SecureRound, ...]


@dataclass(frozen=True, kw_only=True)
class EnvironmentResult:
    """How large the run was and, where it is known, on which machine."""

    nodes: Count
    user_groups: Count
    blocks: Count
    devices: Count
    items: Count
    cpus: Count | None = None
    machine: str | None = None
    system: str | None = None
    engine: str = "simulation"
    """Flower's; ``deployment``: nodes were SuperNodes."""


@dataclass(frozen=True, kw_only=True)
class FleetClassRow:
    """A class of the fleet: budgets as median and 10th and 90th percentile over devices and rounds, bytes and shares;
    other figures are medians over devices.
    """

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
    """What fleet a run was about: drawn from its first devices, over the rounds of training and of following."""

    source: str
    devices: Count
    rounds: Count
    classes: tuple[FleetClassRow, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything that one run measured: the content of `report.json`.

    scenario: resolved, every key with its value; stages: wall seconds by stage; command: what to type to get this
    report again. What the server alone cannot know is added where the run is started: versions, peak_rss_bytes, fleet,
    command, the machine.
    """

    scenario: dict[str, Any]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    budgets: tuple[BudgetRow, ...]
    device_classes: dict[str, DeviceClassRow]
    user_groups: tuple[UserGroupRow, ...] = ()
    full_table: FullTable
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
    stages: dict[str, Seconds]
    environment: EnvironmentResult | None = None
    peak_rss_bytes: Bytes | None = None
    fleet: FleetResult | None = None
    command: str | None = None

    @property
    def top_n(self) -> int:
        """Items that recall and NDCG look at."""
        return _top_n(self.scenario)


def _top_n(scenario: Any) -> int:
    evaluation = scenario.get("evaluation") if isinstance(scenario, dict) else None
    told = evaluation.get("top_n", 20) if isinstance(evaluation, dict) else 20
    return told if isinstance(told, int) else 20


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
