"""Keys of stage 2: rounds, local training, aggregation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fl_peel.scenario.base import (
    MOST_DEVICES,
    MOST_ITEMS,
    MOST_ROUNDS,
    OR_PERCENT,
    Keys,
    PartShare,
    Share,
    as_share,
    unit,
)
from fl_peel.scenario.registered import check_contents
from fl_peel.training.settings import LocalLoss, LocalTraining


class Local(Keys):
    """Local training of a device in a round; see docs/method.md."""

    epochs: int = Field(1, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("passes"))
    """Passes over the device's train items, per round."""
    batch_size: int = Field(64, ge=1, le=MOST_DEVICES, json_schema_extra=unit("interactions"))
    """Interactions in a training step."""
    num_negatives: int = Field(128, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Negative items per interaction, drawn from the items that the device stores and has not interacted with."""
    learning_rate: float = Field(0.05, gt=0, json_schema_extra=unit("step size"))
    """Learning rate of the item blocks, per step of gradient descent."""
    user_learning_rate: float = Field(0.003, ge=0, json_schema_extra=unit("step size"))
    """Learning rate of the device's user embedding, which never leaves the device; 0: it stays as it is."""
    l2: float = Field(0.0, ge=0, json_schema_extra=unit("weight"))
    """Weight of the squared norms of the item rows and the user embedding in the loss."""
    loss: LocalLoss = "sampled-softmax"
    """Training loss; sampled-softmax: against all negatives together; bpr: pairwise."""
    temperature: float | None = Field(None, gt=0, json_schema_extra=unit("divisor of logits"))
    """Temperature of the softmax; null: that of pretraining, so that the scale of the scores stays."""

    def config(self, pretraining_temperature: float) -> LocalTraining:
        """The method's own value."""
        fields = self.model_dump()
        if fields["temperature"] is None:
            fields["temperature"] = pretraining_temperature
        return LocalTraining(**fields)


class Robust(Keys):
    """Robust aggregation against malicious devices; see docs/poisoning.md. By default there is none."""

    norm_bound: float | None = Field(None, gt=0, json_schema_extra=unit("L2 norm"))
    """L2 bound of a device's whole update, enforced by its node: it protects against malicious devices on an honest
    node."""
    rule: Literal["mean", "median", "trimmed-mean", "krum"] = "mean"
    """Aggregation rule over the sums of sub-cohorts, row by row; krum: over the sub-cohorts that lie closest together.
    It protects against malicious devices whose node is malicious too, and bounds no single update; the server sees sums
    over fewer devices.
    """
    buckets: int = Field(16, ge=3, le=MOST_DEVICES, json_schema_extra=unit("sub-cohorts"))
    """Number of sub-cohorts of a user group, into which devices are hashed; used by every rule but mean."""
    trim: Annotated[float, BeforeValidator(as_share), Field(ge=0, lt=0.5), OR_PERCENT] = Field(
        0.2, json_schema_extra=unit("share")
    )
    """Share of the sub-cohorts that trimmed-mean leaves out at either end, or that krum assumes to be poisoned."""

    @property
    def in_buckets(self) -> bool:
        """Whether nodes return sums of sub-cohorts."""
        return self.rule != "mean"


class Aggregation(Keys):
    """Aggregation of block updates into a new group table, on the server."""

    denominator: Literal["holders", "touched"] = "touched"
    """Devices that the mean update is over; holders: those that stored the block (FedAvg); touched: those that changed
    the row."""
    optimizer: Literal["sgd", "adam", "adagrad"] = "sgd"
    """Server optimizer, applied to the mean update (Reddi et al., ICLR 2021)."""
    learning_rate: float = Field(1.0, gt=0, json_schema_extra=unit("step size"))
    """Server learning rate; 1 adds the mean update as it is."""
    robust: Robust = Robust()


class Acceptance(Keys):
    """Acceptance of refinement per user group. Devices compare the refined table with the last accepted one, on their
    validation items (:mod:`fl_peel.ranking.bootstrap`)."""

    rule: Literal["validation", "always"] = "validation"
    """Rule of acceptance; validation: a group accepts the refined table if it is significantly better, and returns to
    the last accepted one otherwise; always: every group accepts."""
    every: int | None = Field(None, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds between comparisons; null: one comparison after the last round."""
    confidence: float = Field(0.95, gt=0.5, lt=1, json_schema_extra=unit("probability"))
    """One-sided confidence that an accepted table is better."""


class Refinement(Keys):
    """Stage 2: federated refinement of the group tables."""

    rounds: int = Field(8, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Number of rounds; 0: no refinement."""
    cohort_share: Share = 1.0
    """Share of the devices that is sampled in each round; sampled devices that are offline do not answer."""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """Sampling of the cohort; fixed: exactly that share; poisson: each device independently, which privacy
    amplification by sampling requires."""
    over_selection: float = Field(0.0, ge=0, le=10, json_schema_extra=unit("share"))
    """Additional devices sampled, as a share of the cohort, to make up for those that miss the deadline."""
    deadline_s: float | None = Field(None, gt=0, json_schema_extra=unit("s"))
    """Deadline of a round in virtual seconds, after which updates are discarded; null: the server waits for all."""
    min_budget_share: PartShare = 0.0
    """Smallest budget of a device that trains, as a share of the fp32 full item table."""
    contribution: Annotated[str | None, AfterValidator(check_contents)] = None
    """Name of a contribution (what devices send and what the server does with the sums) that an installed package
    registers under ``fl_peel.device_contents``, ``fl_peel.server_contents`` or both; null: the contribution that the
    other keys ask for.
    """
    local: Local = Local()
    aggregation: Aggregation = Aggregation()
    acceptance: Acceptance = Acceptance()

    @property
    def sampling_rate(self) -> float:
        """Share of the devices that are asked in a round, extra ones included."""
        return min(1.0, self.cohort_share * (1 + self.over_selection))
