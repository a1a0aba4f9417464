"""Names and settings that a scenario's keys are read with: of data, pretraining, blocks, local training; and selectors,
mechanisms, statistics and contributions by name, those of installed packages too.

Imports no torch and no NumPy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.plugins import Registry, did_you_mean

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PretrainingConfig:
    """How the server trains the full table: what :class:`fl_peel.scenario.method.Pretraining` says under each key. See
    :class:`PretrainedEmbeddings` for what comes out.

    diversity_*: see :func:`fl_peel.pretraining.losses.slice_diversity`; num_slices is ``diversity_slices``.
    num_threads: torch threads, fixed since sums of more add up in another order (what else decides it:
        :mod:`fl_peel.cpu_dispatch`); 0: two from 300,000 interactions on, else one (threads on small tables wait for
        each other more than they work).
    """

    model: Literal["lightgcn", "matrix-factorization"]
    embedding_dim: int
    num_layers: int
    loss: Literal["sampled-softmax", "bpr"]
    epochs: int
    batch_size: int
    learning_rate: float
    l2: float
    l2_exponent: float
    num_negatives: int
    temperature: float
    user_weight_exponent: float
    initialization: Literal["spectral", "normal"]
    initial_norm: float
    diversity_form: DiversityForm
    diversity_weight: float
    num_slices: int
    num_threads: int = 0


DiversityForm = Literal["axes", "none", "cosine", "distance"]


COUNT_EXPONENTS = (0.3, 0.4, 0.5)
VALUE_EXPONENTS = (0.0, 0.1, 0.2, 0.35, 0.5)
COLUMNS = (128, 256, 512)
ITEMS_PER_NUMBER = 3
"""Items with a row, at least, for each number of a row that passes of a chosen number of columns open."""


@dataclass(frozen=True)
class SpectralConfig:
    """How tables are made of sums over devices (:mod:`fl_peel.pretraining.spectral`): what
    :class:`fl_peel.scenario.method.Pretraining` says under each key.

    None as an exponent: about ``filter_devices`` choose one of ``COUNT_EXPONENTS`` or ``VALUE_EXPONENTS``; fewer:
    numbers of leading columns, ascending, that they may choose in place of all ``columns``; oversampling: columns more
    in passes, which find the others better; num_threads: as in :class:`PretrainingConfig`.
    """

    columns: int
    filter_devices: int
    passes: int
    user_exponent: float
    item_exponent: float
    count_exponent: float | None
    value_exponent: float | None
    group_columns: int
    sum_bits: Literal[32, 64]
    fewer: tuple[int, ...] = ()
    oversampling: int = 32
    num_threads: int = 2

    @property
    def filters(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
        """Return the exponents of counts and of eigenvalues, and the numbers of columns, to choose from."""
        return (
            COUNT_EXPONENTS if self.count_exponent is None else (self.count_exponent,),
            VALUE_EXPONENTS if self.value_exponent is None else (self.value_exponent,),
            (*self.fewer, self.columns),
        )

    @property
    def num_filters(self) -> int:
        """Return how many filters there are to choose from."""
        return math.prod(map(len, self.filters))

    @property
    def chooses(self) -> bool:
        return self.num_filters > 1

    def limited(self, num_items: int) -> SpectralConfig:
        """Return these settings for so many items with a row, without numbers of columns to choose from whose passes
        open more than a number in ``ITEMS_PER_NUMBER`` items: sums would tell what devices have (docs/privacy.md).
        """
        most = num_items // (ITEMS_PER_NUMBER * self.passes) - self.oversampling
        columns = [one for one in (*self.fewer, self.columns) if one <= most]
        if not self.fewer:
            return self
        return replace(self, columns=max(columns, default=self.fewer[0]), fewer=tuple(columns[:-1]))


Precision = Literal["fp32", "fp16", "int8", "int4"]


PRECISIONS: tuple[Precision, ...] = get_args(Precision)


ItemGroupKind = Literal["contiguous", "popularity", "interest-popularity", "single"]


DataFormat = Literal["auto", "movielens-tab", "movielens-dat", "lightgcn", "recbole", "csv", "tsv", "parquet"]


HEADED: tuple[DataFormat, ...] = ("recbole", "csv", "tsv", "parquet")
"""Formats whose files name their columns."""


ZONE_UTC = "UTC"


@dataclass(frozen=True)
class Dialect:
    """How the files of a user are written. columns: their names by what they mean (user, item, rating, timestamp),
    where they are none of the usual ones; time_zone: of times that have no offset, None where it is not known.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    time_zone: str | None = None


SplitOrder = Literal["auto", "time", "random"]


CollectedMode = Literal["users", "oldest"]


Phase = Literal["choose", "earlier", "recent", "learn", "join"]
"""Phase of a period of a timeline, see :meth:`fl_peel.data.timeline.Timeline.splits`."""


TORCH_CPU = "torch-cpu"
"""Device name for GPU training computed by the processor: slow, for tests."""


def check_device_name(device: str) -> str:
    """Return the name of a device after checking it.

    Raises:
        ScenarioError: there is no such device.
    """
    if not re.fullmatch(rf"cpu|{TORCH_CPU}|cuda(:\d+)?", device):
        raise ScenarioError(f"device {device!r} is unknown; use cpu, cuda, cuda:N or {TORCH_CPU}")
    return device


def is_gpu(device: str) -> bool:
    """Return whether the device is a GPU."""
    return device.startswith("cuda")


LocalLoss = Literal["bpr", "sampled-softmax"]


@dataclass(frozen=True)
class LocalTraining:
    """Settings of a device's local training.

    max_norm: bound of one device's block update, infinite for none; clip_blocks: instead, each of the K blocks sent is
    bounded by max_norm / sqrt(K), so that all together are bounded as well; clip_l1: norms are L1 (then max_norm / K).
    """

    epochs: int = 1
    batch_size: int = 64
    num_negatives: int = 1
    learning_rate: float = 0.05
    user_learning_rate: float = 0.05
    l2: float = 0.0
    loss: LocalLoss = "bpr"
    temperature: float = 1.0
    max_norm: float = float("inf")
    clip_blocks: bool = False
    clip_l1: bool = False

    def bound(self, num_blocks: int) -> float:
        """Return the bound on what is clipped as one: the update, or each of the ``num_blocks`` blocks sent."""
        if not self.clip_blocks:
            return self.max_norm
        return self.max_norm / (num_blocks if self.clip_l1 else math.sqrt(num_blocks))


# ---- Where cohorts compute: compiled loops on the processor, or torch on a GPU. The values of ``engine.device``
# Torch is imported where it is needed: that a device is ``cpu`` is known without.


def require_device(device: str) -> str:
    """The device, if it is here.

    Raises:
        ScenarioError: no such device, or a GPU that torch does not find on this machine.
    """
    check_device_name(device)
    if is_gpu(device):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            here = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
            raise ScenarioError(f"engine.device: torch finds {here} for {device!r} on this machine; use cpu")
    return device


def torch_device(device: str) -> torch.device | None:
    """Where torch trains and ranks cohorts; None where the compiled loops do, on ``cpu``.

    Raises:
        ScenarioError: as for :func:`require_device`.
    """
    require_device(device)
    if device == "cpu":
        return None

    import torch

    return torch.device(pretraining_device(device))


def pretraining_device(device: str) -> str:
    """Torch's own name of the device, on which the server pretrains."""
    return "cpu" if device == TORCH_CPU else device


CONTROLLER = "controller"
"""The selector that is no fixed order: a network, learned during refinement."""

SELECTORS: Registry[Any] = Registry(
    "selector",
    "fl_peel.selectors",
    MappingProxyType(
        {
            "popularity": "fl_peel.weighting.selectors:popularity",
            "exposure": "fl_peel.weighting.selectors:exposure",
            "global-popularity": "fl_peel.weighting.selectors:global_popularity",
            "energy": "fl_peel.weighting.selectors:energy",
            "random": "fl_peel.weighting.selectors:random_blocks",
        }
    ),
    reserved=(CONTROLLER,),
)
"""Functions from statistics to weights: the values of ``selector`` and of ``evaluation.selectors``."""

FeatureName = Literal["exposure", "popularity", "global-popularity", "loss", "energy"]


@dataclass(frozen=True)
class ControllerConfig:
    """How the controller learns: what :class:`fl_peel.scenario.method.ControllerPart` says under each key."""

    features: tuple[FeatureName, ...]
    hidden: tuple[int, ...]
    steps: int
    learning_rate: float
    weight_decay: float
    signal_momentum: float


LARGEST_MULTIPLIER = 1e5
"""Noise beyond this leaves nothing: a target that asks for more cannot be met."""
NO_MECHANISM = "none"
"""The name that stands for no noise at all."""

MECHANISMS: Registry[Any] = Registry(
    "mechanism",
    "fl_peel.mechanisms",
    MappingProxyType(
        {
            "central-gaussian": "fl_peel.privacy.mechanisms:CentralGaussian",
            "local-gaussian": "fl_peel.privacy.mechanisms:LocalGaussian",
            "local-laplace": "fl_peel.privacy.mechanisms:LocalLaplace",
        }
    ),
    reserved=(NO_MECHANISM,),
)
"""Subclasses of :class:`fl_peel.privacy.mechanisms.Mechanism`: the values of ``privacy.mechanism``."""


DEVICE_CONTENTS: Registry[Any] = Registry("device contribution", "fl_peel.device_contents")
SERVER_CONTENTS: Registry[Any] = Registry("server contribution", "fl_peel.server_contents")
STATISTICS: Registry[Any] = Registry("statistic", "fl_peel.statistics")
STAGES: Registry[Any] = Registry("stage", "fl_peel.stages")
"""Subclasses of :class:`fl_peel.steps.base.Stage`: the values of ``stages``."""


def check_contents(name: str | None) -> str | None:
    """The name itself, or None.

    Raises:
        FieldError: neither device nor server contents have this name, or one of them is claimed twice.
    """
    if name is None:
        return None
    known = [registry for registry in (DEVICE_CONTENTS, SERVER_CONTENTS) if name in registry.added()]
    if not known:
        names = sorted({*DEVICE_CONTENTS.added(), *SERVER_CONTENTS.added()})
        raise FieldError(f"unknown contribution {name!r}; {did_you_mean(name, names)}")
    for registry in known:
        registry.check(name)
    return name


def contents_kind(
    scenario: Any,
    registry: Registry[Any],
    kind: type[Any],
    open_kind: type[Any],
    bounded_kind: type[Any],
    bucketed_kind: type[Any],
) -> type[Any]:
    """Return the class that a scenario's ``refinement.contribution`` names or, where this registry does not have it,
    that its other keys ask for. kind: the base class; bounded_kind: keeps what ``privacy.*`` releases, where sums alone
    are released; bucketed_kind: knows sub-cohorts, where ``refinement.aggregation.robust`` has any; open_kind: any
    other.

    Raises:
        ScenarioError: what is registered is none, or does not keep the privacy or know the sub-cohorts
            that the scenario asks for.
    """
    name, robust = scenario.refinement.contribution, scenario.refinement.aggregation.robust
    bounded = scenario.privacy.sums_only
    if name is None or name not in registry.added():
        if bounded:
            return bounded_kind
        return bucketed_kind if robust.in_buckets else open_kind
    try:
        contents = registry.get(name)
    except FieldError as error:
        raise ScenarioError(f"refinement.contribution: {error}") from None
    if not (isinstance(contents, type) and issubclass(contents, kind)):
        raise ScenarioError(f"refinement.contribution: {name!r} is no {kind.__name__}; subclass it")
    if bounded and not issubclass(contents, bounded_kind):
        raise ScenarioError(
            f"refinement.contribution: {name!r} is not held to what privacy.* releases; subclass "
            f"{bounded_kind.__name__}, or leave privacy.mechanism and privacy.rows as they are"
        )
    if robust.in_buckets and not issubclass(contents, bucketed_kind):
        raise ScenarioError(
            f"refinement.contribution: {name!r} does not support sub-cohorts, which "
            f"refinement.aggregation.robust.rule: {robust.rule} needs; subclass {bucketed_kind.__name__}, or set mean"
        )
    return contents
