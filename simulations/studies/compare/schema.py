"""The content of compare.json."""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fl_peel.errors import ReportError
from strategies.figures.schema import Bytes, Count, Mean, Metric, Seconds, Share

Quality = TypedDict("Quality", {"recall@20": "Metric", "ndcg@20": "Metric"})
_Spread = TypedDict("_Spread", {"recall@20_std": NotRequired["Mean"], "ndcg@20_std": NotRequired["Mean"]})


_Validation = TypedDict("_Validation", {"validation_recall@20": "Metric"})
_Intervals = TypedDict(
    "_Intervals", {"recall@20_interval": NotRequired[list[float]], "ndcg@20_interval": NotRequired[list[float]]}
)


class FullQuality(Quality, _Spread, _Intervals):
    """Quality of a full table."""


class CompareFullTable(FullQuality):
    """Full global fp32 table, the reference of every ratio."""

    bytes: Bytes


class PairedRatio(TypedDict):
    """Recall of one method relative to another, with its paired 95 % interval."""

    value: float
    low: float | None
    high: float | None


class CompareRow(Quality, _Spread, _Intervals, _Validation):
    """One method at one budget; `*_std` is the standard deviation over seeds."""

    method: str
    group_aware: bool  # whether it may serve each user group differently
    ceiling: NotRequired[bool]  # an upper bound, computed by a server that has the data
    precision: str
    share: Share
    stored_bytes_max: Bytes
    seconds: Seconds  # spent to serve this budget
    trials: NotRequired[Count]  # settings of this precision evaluated on validation
    seeds: NotRequired[Count]
    peel_over: NotRequired[PairedRatio]  # of rows chosen on validation, except those of peel
    chosen: bool  # whether this precision is the best on validation, of this method at this budget


class Ceiling(Quality, _Spread, _Intervals, _Validation):
    """Upper bound: a method on a server that has all data and no budget."""

    method: str
    ceiling: bool
    server_bytes: Bytes  # of its model
    seconds: Seconds
    trials: Count
    note: str
    seeds: NotRequired[Count]


class RefinementComparison(TypedDict):
    """Full table by refinement: the global table (none), the group tables before federated refinement (start), after it
    (federated), and after refinement on the server (central; None: not run)."""

    none: FullQuality
    start: NotRequired[FullQuality]
    federated: FullQuality | None
    central: FullQuality | None


class CompareSummary(TypedDict):
    """Summary of the comparison; see :func:`simulations.studies.compare.compare_rows.summary`."""

    budgets: list[dict[str, Any]]
    federated_to_none: NotRequired[Mean | None]
    federated_to_start: NotRequired[Mean | None]
    federated_to_central: NotRequired[Mean | None]
    federated_to_none_interval: NotRequired[list[float]]
    federated_to_start_interval: NotRequired[list[float]]
    federated_to_central_interval: NotRequired[list[float]]


class CompareResult(TypedDict):
    """Content of `compare.json`: every method at every budget."""

    full_table: CompareFullTable
    rows: list[CompareRow]
    ceilings: NotRequired[list[Ceiling]]
    refinement: RefinementComparison
    summary: CompareSummary
    scenario: NotRequired[dict[str, Any] | str]
    seed: NotRequired[int]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[str]


_COMPARE: TypeAdapter[CompareResult] = TypeAdapter(CompareResult)


def check_of(adapter: TypeAdapter[Any], value: object, what: str) -> None:
    """Raise `ReportError`, naming the key's path, unless `value` is what the adapter reads."""
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        count = error.error_count()
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise ReportError(f"{what}: {where}: {first['msg']}{more}; see simulations/studies/compare/schema.py") from None


def check_compare(result: object, what: str = "comparison") -> None:
    """Raise `ReportError`, naming the key's path, unless `result` is a `CompareResult`."""
    check_of(_COMPARE, result, what)
