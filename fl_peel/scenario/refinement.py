"""Keys of stage 2: rounds, local training, aggregation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fl_peel.exchange.settings import check_contents
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
from fl_peel.training.settings import LocalLoss, LocalTraining


class Local(Keys):
    """What a device does in a round; see docs/method.md."""

    epochs: int = Field(1, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("passes"))
    """Over the device's train items, in a round."""
    batch_size: int = Field(64, ge=1, le=MOST_DEVICES, json_schema_extra=unit("interactions"))
    """In a step."""
    num_negatives: int = Field(128, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Drawn an interaction, from those that the device keeps and has not met."""
    learning_rate: float = Field(0.05, gt=0, json_schema_extra=unit("step"))
    """Of gradient descent, of the blocks."""
    user_learning_rate: float = Field(0.003, ge=0, json_schema_extra=unit("step"))
    """Of the device's own embedding, which never leaves it; 0 keeps it as it was."""
    l2: float = Field(0.0, ge=0, json_schema_extra=unit("weight"))
    """Of the squared norms of the rows and of the own embedding in the loss."""
    loss: LocalLoss = "sampled-softmax"
    """sampled-softmax, against all items drawn together; bpr, pair by pair."""
    temperature: float | None = Field(None, gt=0, json_schema_extra=unit("divisor of a logit"))
    """Of the logits; null takes the one of pretraining, so that the scale of scores stays."""

    def config(self, pretraining_temperature: float) -> LocalTraining:
        """The method's own value."""
        fields = self.model_dump()
        if fields["temperature"] is None:
            fields["temperature"] = pretraining_temperature
        return LocalTraining(**fields)


class Robust(Keys):
    """What bounds the influence of devices that lie; see docs/poisoning.md. Defaults: nothing."""

    norm_bound: float | None = Field(None, gt=0, json_schema_extra=unit("L2 norm"))
    """L2 bound of a device's whole update, held by its node: against devices that lie to an honest node."""
    rule: Literal["mean", "median", "trimmed-mean", "krum"] = "mean"
    """Over the sums of sub-cohorts, row by row; krum: over those of the sub-cohorts that lie closest together. Against
    devices whose own node lies too, and bounds nothing; the server sees smaller sums.
    """
    buckets: int = Field(16, ge=3, le=MOST_DEVICES, json_schema_extra=unit("sub-cohorts"))
    """Sub-cohorts of a user group, into which devices are hashed; with every rule but mean."""
    trim: Annotated[float, BeforeValidator(as_share), Field(ge=0, lt=0.5), OR_PERCENT] = Field(
        0.2, json_schema_extra=unit("share")
    )
    """trimmed-mean: share of the sub-cohorts that is left out at either end; krum: share that may be poisoned."""

    @property
    def in_buckets(self) -> bool:
        """Whether nodes return sums of sub-cohorts."""
        return self.rule != "mean"


class Aggregation(Keys):
    """How the server turns block updates into a new group table."""

    denominator: Literal["holders", "touched"] = "touched"
    """Mean over the devices that held the block (FedAvg), or over those that changed the row."""
    optimizer: Literal["sgd", "adam", "adagrad"] = "sgd"
    """On the mean update (Reddi et al., ICLR 2021)."""
    learning_rate: float = Field(1.0, gt=0, json_schema_extra=unit("step"))
    """Of the server, on the mean update: 1 adds it as it is."""
    robust: Robust = Robust()


class Acceptance(Keys):
    """Which user groups keep what was refined. Devices compare it with what they kept last, on their validation items
    (:mod:`fl_peel.ranking.paired`).
    """

    rule: Literal["validation", "always"] = "validation"
    """validation: a group keeps what is better beyond noise, and else goes back; always: all keep all."""
    every: int | None = Field(None, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds between comparisons; null: one, after the last round."""
    confidence: float = Field(0.95, gt=0.5, lt=1, json_schema_extra=unit("probability"))
    """That a kept refinement is better, of one side."""


class Refinement(Keys):
    """Stage 2: federated rounds."""

    rounds: int = Field(8, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Of federated refinement; 0 refines nothing."""
    cohort_share: Share = 1.0
    """Share of the devices sampled in each round; those that are not available then do not answer."""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """fixed: that share exactly; poisson: each device by its own coin, which privacy accounting by sampling needs."""
    over_selection: float = Field(0.0, ge=0, le=10, json_schema_extra=unit("share"))
    """Extra devices sampled, as a share of the cohort, to make up for those that do not answer in time."""
    deadline_s: float | None = Field(None, gt=0, json_schema_extra=unit("s"))
    """Virtual seconds after which an update is too late and counts for nothing; null waits for everybody."""
    min_budget_share: PartShare = 0.0
    """Devices whose budget is below this share of the fp32 full item table do not train."""
    contents: Annotated[str | None, AfterValidator(check_contents)] = None
    """What devices say and the server makes of it: contents that an installed package registers under
    ``fl_peel.device_contents``, ``fl_peel.server_contents`` or both; null: what the other keys ask for.
    """
    local: Local = Local()
    aggregation: Aggregation = Aggregation()
    acceptance: Acceptance = Acceptance()

    @property
    def sampling_rate(self) -> float:
        """Share of the devices that are asked in a round, extra ones included."""
        return min(1.0, self.cohort_share * (1 + self.over_selection))
