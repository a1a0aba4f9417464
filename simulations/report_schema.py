"""What is in a report: the shape and the units of `report.json` and `compare.json`.

The dictionaries are plain (JSON types only). Their types are written once, here, and serve three ends: mypy
checks the code that fills them, `check_run` and `check_compare` refuse what does not fit before a file is
written, and a reader learns here what each key means.

Units: bytes are whole bytes (shown as 1 KB = 1000 B), seconds are wall time unless the key says `virtual`,
metrics are in 0..1 and averaged over devices, a `share` is a fraction of the bytes of the fp32 full item
table (0.01 is 1%). Keys that are not listed are kept: `recall@50` beside `recall@20` is in report.json and
metrics.csv too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from fl_peel.errors import FlPeelError

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Metric = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0)]
Mean = Annotated[float, Field(ge=0)]


class ReportError(FlPeelError):
    """A result is incomplete or not finite, or its files cannot be written or read."""


_Recall = TypedDict("_Recall", {"recall@20": "Metric"})
_MaybeRecall = TypedDict("_MaybeRecall", {"recall@20": "Metric | None"})
_Ndcg = TypedDict("_Ndcg", {"ndcg@20": "Metric"})
_MaybeNdcg = TypedDict("_MaybeNdcg", {"ndcg@20": NotRequired["Metric | None"]})
_Spread = TypedDict("_Spread", {"recall@20_std": NotRequired["Mean"], "ndcg@20_std": NotRequired["Mean"]})


class Quality(_Recall, _Ndcg):
    """Recall@20 and NDCG@20 on the test split, full ranking, averaged over devices."""


# `global` is a Python keyword, hence the functional form.
FullTable = TypedDict(
    "FullTable", {"global": Quality, "start": NotRequired[Quality], "refined": Quality, "bytes": Bytes}
)
FullTable.__doc__ = """The whole item table in fp32: as pretrained, as user groups start with it before any device has
trained, as refined by the federation, and its bytes."""


class BudgetRow(Quality):
    """Elastic embeddings at one budget, every device held to the same bytes."""

    share: Share
    budget_bytes: Bytes
    precision: str  # fp32, fp16, int8, int4
    selector: str
    stored_bytes_max: Bytes  # largest artefact of any device; never above budget_bytes
    devices: Count


class DeviceClassRow(_MaybeRecall, _MaybeNdcg):
    """Devices of one class under their own moving budgets; recall is None where none could be evaluated."""

    devices: Count
    budget_bytes_mean: Mean
    reselections: Count
    budget_violations: Count
    virtual_seconds: NotRequired[Mean]
    energy_j: NotRequired[Mean]
    download_bytes: NotRequired[Mean]
    upload_bytes: NotRequired[Mean]
    dropped: NotRequired[Count]


class RoundRow(TypedDict):
    """One federated round: bytes of all devices reached, devices whose update counts, devices of nodes that failed.

    The others that were sampled are counted by why they do not count: not available, excluded by
    ``refinement.min_budget_share``, past the deadline, without a block left; ``memory_drops`` lost blocks, and count.
    """

    download_bytes: Bytes
    upload_bytes: Bytes
    devices: Count
    failures: Count
    seconds: Seconds
    virtual_seconds: NotRequired[Mean]
    sampled: NotRequired[Count]
    unavailable: NotRequired[Count]
    excluded: NotRequired[Count]
    stragglers: NotRequired[Count]
    memory_dropouts: NotRequired[Count]
    memory_drops: NotRequired[Count]


class UserGroupRow(_MaybeRecall, _MaybeNdcg):
    """One user group (K-means on user embeddings), its devices and what they reach."""

    group: int | str
    devices: Count


class BytesPerDevice(TypedDict):
    """Bytes that a device moved over the whole run, averaged over devices."""

    download_mean: Mean
    upload_mean: Mean


class HistoryRow(TypedDict):
    """Metrics after a round. Any `*loss*`, `*recall*` or `*ndcg*` key is plotted; None where not measured."""

    server_round: Count
    virtual_seconds: NotRequired[Mean]  # on the virtual clock, since the start of the run


class DeviceTrace(TypedDict):
    """One device through the rounds; the three lists are equally long, None where it was not observed."""

    device: int | str
    device_class: str
    budget_bytes: list[Bytes | None]
    stored_bytes: list[Bytes | None]
    kept_blocks: list[Count | None]


class SecureBytes(TypedDict):
    """Bytes that one device moved for secure aggregation in one round; ``vector`` is part of ``upload``."""

    download: Mean
    upload: Mean
    vector: Mean


class SecureSeconds(TypedDict):
    """Processor seconds of the protocol alone, over the run: all devices, and the server."""

    devices: Seconds
    server: Seconds


class SecureAggregationResult(TypedDict):
    """Devices by round: that began, whose vector is in a sum, that dropped out, whose masks were recovered, that were
    in a void group; user groups by round: that were void, that sat out for want of devices.
    """

    announced: Count
    devices: Count
    dropped: Count
    recovered: Count
    void_devices: Count
    void_groups: Count
    sat_out_groups: Count
    bytes_per_device: SecureBytes
    seconds: SecureSeconds
    devices_per_second: Mean | None
    rounds: list[dict[str, Any]]


class RunResult(TypedDict):
    """Everything that one run measured: the content of `report.json`."""

    scenario: dict[str, Any] | str  # resolved: every key, defaults included
    seed: int
    versions: dict[str, str]
    stages: dict[str, Seconds]
    full_table: FullTable
    budgets: list[BudgetRow]
    device_classes: dict[str, DeviceClassRow]
    rounds: list[RoundRow]
    user_groups: NotRequired[list[UserGroupRow]]
    bytes_per_device: NotRequired[BytesPerDevice]
    history: NotRequired[list[HistoryRow]]
    traces: NotRequired[list[DeviceTrace]]
    peak_rss_bytes: NotRequired[Bytes]
    fairness: NotRequired[dict[str, Any]]
    elasticity: NotRequired[dict[str, Any]]
    privacy: NotRequired[dict[str, Any]]  # epsilon, delta, accountant, releases, covers: fl_peel/privacy/plan.py
    fleet: NotRequired[dict[str, Any]]  # simulations/fleet_summary.py
    time_to_recall: NotRequired[list[dict[str, Any]]]
    poisoning: NotRequired[dict[str, Any]]  # strategies/poisoning.py
    elastic_traces: NotRequired[list[dict[str, Any]]]  # single devices after training, in simulation only
    secure_aggregation: NotRequired[SecureAggregationResult]
    environment: NotRequired[dict[str, Any]]
    command: NotRequired[str]  # what to type to get this report again


class CompareFullTable(Quality):
    """The full global fp32 table: the yardstick of every ratio."""

    bytes: Bytes


class CompareRow(Quality, _Spread):
    """One method at one budget; `*_std` is the standard deviation over seeds."""

    method: str
    group_aware: bool  # whether it may serve each user group differently
    precision: str
    share: Share
    stored_bytes_max: Bytes
    seconds: Seconds  # spent to serve this budget
    seeds: NotRequired[Count]
    chosen: NotRequired[bool]  # the precision that validation likes best, of this method at this budget


class Refinement(TypedDict):
    """The full table: the global one (none), those that user groups start with, refined by the federation, and refined
    centrally (None: not run).
    """

    none: Quality
    start: NotRequired[Quality]
    federated: Quality | None
    central: Quality | None


class CompareResult(TypedDict):
    """Every method at every budget: the content of `compare.json`."""

    full_table: CompareFullTable
    rows: list[CompareRow]
    refinement: Refinement
    scenario: NotRequired[dict[str, Any] | str]
    seed: NotRequired[int]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[str]


_RUN: TypeAdapter[RunResult] = TypeAdapter(RunResult)
_COMPARE: TypeAdapter[CompareResult] = TypeAdapter(CompareResult)


def _check(adapter: TypeAdapter[Any], value: object, what: str) -> None:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        count = error.error_count()
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise ReportError(f"{what}: {where}: {first['msg']}{more}; see simulations/report_schema.py") from None


def check_run(result: object, what: str = "result") -> None:
    """Raise `ReportError`, naming the key's path, unless `result` is a `RunResult`."""
    _check(_RUN, result, what)
    assert isinstance(result, Mapping)
    for index, trace in enumerate(result.get("traces", [])):
        lengths = {key: len(trace[key]) for key in ("budget_bytes", "stored_bytes", "kept_blocks")}
        if len(set(lengths.values())) > 1:
            raise ReportError(f"{what}: traces.{index}: lists of unequal length {lengths}; give one value a round")


def check_compare(result: object, what: str = "comparison") -> None:
    """Raise `ReportError`, naming the key's path, unless `result` is a `CompareResult`."""
    _check(_COMPARE, result, what)
