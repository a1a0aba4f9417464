"""How the server trains the full table. Imports no torch: the scenario's keys are read with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_peel.errors import ScenarioError


@dataclass(frozen=True)
class PretrainingConfig:
    """How the server trains the full table. See :class:`PretrainedEmbeddings` for what comes out.

    model: "lightgcn" spreads the tables over ``num_layers`` of the graph; "matrix-factorization" does not.
    epochs: passes over the users; batch_size: users in a step, each with all of its collected items.
    learning_rate: of Adam, falling linearly to zero over the epochs.
    l2: weight of the squared norms of the layer-0 rows; l2_exponent: a row's share of the penalty goes with its
        interactions ** exponent, so 1 penalizes every interaction and 0 every row the same.
    num_negatives: sampled softmax: items drawn per step and shared by its users, 0 for all items;
        BPR: items drawn per interaction.
    temperature: logits are dot product / temperature.
    similarity: "dot", or "cosine": the tables are normalized to length 1, in training and in the result.
    popularity_correction: share of the item's log popularity that training adds to its logit and that
        serving leaves out; 0 learns the data's popularity as it is, 1 learns as if all items
        were equally popular.
    user_weight_exponent: a user's weight in the loss is interactions ** exponent; 0: users count the same,
        1: interactions count the same.
    initialization: "spectral" (truncated SVD) or "normal" (standard deviation 0.1 / sqrt(d)).
    initial_norm: mean length of an item's layer-0 row at the start, for both.
    diversity_*: see :func:`fl_peel.pretraining.losses.slice_diversity`; num_slices must divide embedding_dim.
    num_threads: torch threads, fixed since sums of more add up in another order (what else decides it:
        :mod:`fl_peel.code_paths`); 0: two from 300,000 interactions on, else one (threads on small tables wait for
        each other more than they work).
    """

    model: Literal["lightgcn", "matrix-factorization"] = "lightgcn"
    embedding_dim: int = 64
    num_layers: int = 3
    loss: Literal["sampled-softmax", "bpr"] = "sampled-softmax"
    epochs: int = 80
    batch_size: int = 2048
    learning_rate: float = 0.03
    l2: float = 0.2
    l2_exponent: float = 1.0
    num_negatives: int = 4096
    temperature: float = 0.25
    similarity: Literal["dot", "cosine"] = "dot"
    popularity_correction: float = 0.0
    user_weight_exponent: float = 1.0
    initialization: Literal["spectral", "normal"] = "spectral"
    initial_norm: float = 1.0
    diversity_form: DiversityForm = "cosine"
    diversity_weight: float = 0.0
    num_slices: int = 4
    num_threads: int = 0


DiversityForm = Literal["none", "cosine", "distance"]


def check_negatives(loss: str, num_negatives: int) -> None:
    """Refuse BPR without anything to compare with.

    Raises:
        ScenarioError: naming the setting and the remedy.
    """
    if loss == "bpr" and num_negatives < 1:
        raise ScenarioError("pretraining.num_negatives: bpr needs at least 1; 0 (all items) is for sampled-softmax")


COUNT_EXPONENTS = (0.3, 0.4, 0.5)
VALUE_EXPONENTS = (0.0, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class SpectralConfig:
    """How tables are made of sums over devices; see :mod:`fl_peel.pretraining.by_sums`.

    columns: K of the space in which devices are compared; oversampling: columns more in passes, which find the others
        better; passes: multiplications by R~^T R~, each a round of every device.
    user_exponent, item_exponent: a and b of R~ = D_u^-a R D_i^-b; count_exponent: of the item counts in scores;
    value_exponent: of the eigenvalues, a filter's shape between all columns alike (0) and the leading ones. None: about
    ``panel`` devices choose one of ``COUNT_EXPONENTS`` or ``VALUE_EXPONENTS`` by their validation items.
    group_columns: leading columns in which user groups are found; group_rounds: of Lloyd's algorithm.
    row_sketch: buckets that rows are hashed into in all passes but the last, as a share of the rows; None: all rows.
    sum_bits: of the words of passes, user groups and moments: 64, or 32 with units so coarse that no sum overflows.
    num_threads: as in :class:`PretrainingConfig`.
    """

    columns: int = 512
    panel: int = 1000
    oversampling: int = 32
    passes: int = 6
    user_exponent: float = 0.3
    item_exponent: float = 0.5
    count_exponent: float | None = None
    value_exponent: float | None = None
    group_columns: int = 128
    group_rounds: int = 8
    row_sketch: float | None = None
    sum_bits: Literal[32, 64] = 64
    num_threads: int = 2

    @property
    def chooses(self) -> bool:
        """Whether an exponent is left to the devices."""
        return self.count_exponent is None or self.value_exponent is None
