"""How the server trains the full table. Imports no torch: the scenario's keys are read with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fl_peel.errors import DataError, ScenarioError

if TYPE_CHECKING:
    from fl_peel.data.interactions import UserItems


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
    negatives_exponent: float
    temperature: float
    user_weight_exponent: float
    initialization: Literal["spectral", "normal"]
    initial_norm: float
    diversity_form: DiversityForm
    diversity_weight: float
    num_slices: int
    num_threads: int = 0


DiversityForm = Literal["axes", "none", "cosine", "distance"]


def check_collected(collected: UserItems) -> None:
    """Refuse to train on nothing.

    Raises:
        DataError: no interaction was collected.
    """
    if collected.num_interactions == 0:
        raise DataError("pretraining: no interactions were collected; raise pretraining.collected.share")


def check_negatives(loss: str, num_negatives: int, exponent: float) -> None:
    """Refuse BPR without anything to compare with, and an exponent that nothing is drawn by.

    Raises:
        ScenarioError: naming the setting and the remedy.
    """
    if loss == "bpr" and num_negatives < 1:
        raise ScenarioError("pretraining.num_negatives: bpr needs at least 1; 0 (all items) is for sampled-softmax")
    if exponent and (loss == "bpr" or not num_negatives):
        doing = "bpr, which draws evenly" if loss == "bpr" else "num_negatives 0, which takes all items"
        raise ScenarioError(f"pretraining.negatives_exponent: {exponent:g} does nothing under {doing}; leave it out")


COUNT_EXPONENTS = (0.3, 0.4, 0.5)
VALUE_EXPONENTS = (0.0, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class SpectralConfig:
    """How tables are made of sums over devices (:mod:`fl_peel.pretraining.spectral_steps`): what
    :class:`fl_peel.scenario.method.Pretraining` says under each key.

    None as an exponent: about ``filter_devices`` choose one of ``COUNT_EXPONENTS`` or ``VALUE_EXPONENTS``;
    oversampling: columns more in passes, which find the others better; num_threads: as in :class:`PretrainingConfig`.
    """

    columns: int
    filter_devices: int
    passes: int
    user_exponent: float
    item_exponent: float
    count_exponent: float | None
    value_exponent: float | None
    group_columns: int
    group_rounds: int
    sum_bits: Literal[32, 64]
    oversampling: int = 32
    num_threads: int = 2

    @property
    def chooses(self) -> bool:
        """Whether an exponent is left to the devices."""
        return self.count_exponent is None or self.value_exponent is None
