"""Types of compare.json, ablate.json and audit.json: read where a study's page and table of figures are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from fl_peel.attacks.decoder import Differencing, Reconstruction
from fl_peel.figures import SETTING, Beside, Column, Estimate, Figures
from fl_peel.json_codec import Inline, JsonKey
from simulations.report.render import scenario_name
from strategies.figures.schema import Bytes, Count, Mean, Metric, Seconds, Share

ENDS = Beside(Metric, form="list")
RATIOS = Beside(float | None, form="list")
"""Layout of ratios, each with its paired interval beside it."""


@dataclass(frozen=True, kw_only=True)
class StudyQuality:
    """Recall and NDCG on the test; of several seeds also their standard deviation over seeds, and values by seed."""

    recall: Annotated[Estimate, JsonKey("recall@20"), ENDS]
    ndcg: Annotated[Estimate, JsonKey("ndcg@20"), ENDS]
    recall_std: Annotated[Mean | None, JsonKey("recall@20_std")] = None
    ndcg_std: Annotated[Mean | None, JsonKey("ndcg@20_std")] = None
    recall_by_seed: Annotated[tuple[float, ...], JsonKey("recall@20_by_seed")] = ()
    ndcg_by_seed: Annotated[tuple[float, ...], JsonKey("ndcg@20_by_seed")] = ()
    seeds: Annotated[Count | None, SETTING] = None

    def metric(self, name: str) -> Estimate:
        """Return a metric with its interval or, where that is not known, with its standard deviation over seeds."""
        figure = self.recall if name == "recall@20" else self.ndcg
        return figure if figure.ends is not None else self.spread(name)

    def spread(self, name: str) -> Estimate:
        """Return a metric with its standard deviation over seeds."""
        figure, std = (self.recall, self.recall_std) if name == "recall@20" else (self.ndcg, self.ndcg_std)
        return Estimate.from_margin(figure.value, std)


@dataclass(frozen=True, kw_only=True)
class StudyFullTable(StudyQuality):
    """Full fp32 table, the reference of ratios."""

    bytes: Bytes


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What every study says of itself."""

    scenario: Any = None
    seed: Annotated[int | None, Column("seed")] = None
    seeds: Annotated[Count | None, SETTING] = None
    stages: Annotated[dict[str, Annotated[dict[str, Seconds], Column("stage")]], Column("seed", whole=True)] = field(
        default_factory=dict
    )
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None

    @property
    def name(self) -> str:
        return "" if self.scenario is None else scenario_name(self.scenario)

    @property
    def figures(self) -> Figures:
        """Return every number, as the rows of a tidy table."""
        return Figures.from_result(self)


@dataclass(frozen=True, kw_only=True)
class CompareRow(StudyQuality):
    """One method at one budget.

    group_aware: whether it may serve each user group differently; ceiling: an upper bound, from a server that has the
    data; seconds: spent to serve this budget; trials: settings of this precision evaluated on validation; chosen:
    whether this precision is the best on validation, of this method at this budget; peel_over: PEEL's recall relative
    to it; p_holm: p-value of no difference from PEEL, corrected for all such comparisons of the study (Holm).
    """

    method: Annotated[str, Column("method")]
    group_aware: bool
    ceiling: bool = False
    precision: Annotated[str, Column("precision")]
    share: Annotated[Share, Column("budget_share")]
    budget_bytes: Annotated[Bytes | None, Column("budget_bytes")] = None
    stored_bytes_max: Bytes
    seconds: Seconds
    validation_recall: Annotated[Metric, JsonKey("validation_recall@20")]
    trials: Count | None = None
    peel_over: Estimate | None = None
    p_holm: float | None = None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Ceiling(StudyQuality):
    """Upper bound: a method on a server that has all data and no budget. server_bytes: of its model."""

    method: Annotated[str, Column("method")]
    server_bytes: Bytes
    seconds: Seconds
    trials: Count
    note: str
    validation_recall: Annotated[Metric, JsonKey("validation_recall@20")]


@dataclass(frozen=True, kw_only=True)
class RefinementComparison:
    """Full table by refinement: the global table (none), the group tables before federated refinement (start), after it
    (federated), and after refinement on the server (central; None: not run)."""

    none: Annotated[StudyQuality, Column("table", "global")]
    start: Annotated[StudyQuality | None, Column("table", "start")] = None
    federated: Annotated[StudyQuality | None, Column("table", "refined")]
    central: Annotated[StudyQuality | None, Column("table", "central")]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """PEEL at a budget: its recall relative to others', see
    :func:`simulations.studies.compare.summary`."""

    share: Annotated[Share, Column("budget_share")]
    precision: Annotated[str, Column("precision")]
    recall: Annotated[Metric, JsonKey("recall@20")]
    rival: str | None = None
    rival_with_groups: str | None = None
    ratios: Annotated[dict[str, Estimate | None], Inline(), RATIOS]


@dataclass(frozen=True, kw_only=True)
class CompareSummary:
    """Summary of the comparison."""

    budgets: tuple[Verdict, ...]
    ratios: Annotated[dict[str, Estimate | None], Inline(), RATIOS]


@dataclass(frozen=True, kw_only=True)
class CompareResult(StudyResult):
    """Content of `compare.json`: every method at every budget."""

    full_table: Annotated[StudyFullTable, Column("table", "global")]
    rows: tuple[CompareRow, ...]
    ceilings: tuple[Ceiling, ...] = ()
    refinement: RefinementComparison
    summary: CompareSummary


@dataclass(frozen=True, kw_only=True)
class TriedSetting:
    """A setting, and its figures on validation at its best round. last: number of rounds that were run."""

    setting: dict[str, Any]
    round: Count
    last: Count
    validation: Metric


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The setting that was chosen, and all that were tried. own_rows: devices rank with rows of their own."""

    setting: dict[str, Any]
    own_rows: bool
    tried: tuple[TriedSetting, ...]


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow(CompareRow):
    """One method at one budget, or with its full table (share 1). Bytes down, up: per device over the run, down with
    what it holds in the end; stored: bytes needed for ranking; rounds: of training; to_peel: recall relative to PEEL's
    full tables, whose p-value ``p_holm`` is.
    """

    stored_bytes_mean: Mean
    bytes_down_mean: Mean
    bytes_up_mean: Mean
    rounds: Mean
    to_peel: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Leaderboard(StudyResult):
    """Content of `compare.json` where nothing is collected. tuning: by seed, then by method."""

    full_table: Annotated[StudyFullTable, Column("table", "refined")]
    rows: tuple[LeaderboardRow, ...]
    tuning: Annotated[dict[str, Annotated[dict[str, Tuning], Column("method")]], Column("seed", whole=True)]


@dataclass(frozen=True, kw_only=True)
class AblateRow(StudyQuality):
    """A variation at a budget, with full tables before (start) and after refinement, relative to no change; p_holm:
    p-values of no difference from no change, corrected for all such comparisons of the study (Holm).
    """

    component: Annotated[str, JsonKey("part"), Column("component")]
    setting: Annotated[str, Column("setting")]
    share: Annotated[Share, Column("budget_share")]
    precision: Annotated[str | None, Column("precision")] = None
    user_groups: Count
    smallest_group: Count
    blocks: Count
    start: Annotated[StudyQuality, Inline("start_full_"), Column("table", "start")]
    refined: Annotated[StudyQuality, Inline("refined_full_"), Column("table", "refined")]
    to_scenario: Estimate | None = None
    start_full_to_scenario: Estimate | None = None
    refined_full_to_scenario: Estimate | None = None
    p_holm: float | None = None
    start_full_p_holm: float | None = None
    refined_full_p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class AblateResult(StudyResult):
    """Content of `ablate.json`."""

    full_table: Annotated[StudyFullTable, Column("table", "global")]
    rows: tuple[AblateRow, ...]


@dataclass(frozen=True, kw_only=True)
class AttackFigures:
    """Success of an attack: advantage over guessing and AUC; of items also precision, recall, F1, F1 of guessing."""

    secret: str
    advantage: Annotated[Estimate, Beside(float, "{key}_{end}", "end")]
    auc: float | None = None
    devices: Count
    candidates: Count
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    random_f1: float | None = None


@dataclass(frozen=True, kw_only=True)
class AuditedRow(StudyQuality):
    """A mechanism: attacks, epsilon with the canaries' lower bound, recall, also relative to no protection. canary:
    ``epsilon_low``, and ``epsilon_accounted`` for what devices release, None where nothing is noised.
    """

    mechanism: Annotated[str, Column("mechanism")]
    view: str
    epsilon: float | None
    delta: float | None = None
    share: Annotated[Share, Column("budget_share")]
    attacks: Annotated[dict[str, AttackFigures], Column("attack")]
    to_none: Estimate | None = None
    canary: dict[str, float | None] | None = None
    reconstruction: Reconstruction | None = None
    differencing: Differencing | None = None
    absences: Annotated[dict[str, Differencing], Column("between")] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AuditResult(StudyResult):
    """Content of `audit.json`."""

    rows: tuple[AuditedRow, ...]
    settings: dict[str, Any]
    collected_share: Metric
