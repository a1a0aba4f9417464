"""Keys of privacy, secure aggregation and poisoning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fl_peel.scenario.base import (
    MOST_DEVICES,
    MOST_ITEMS,
    MOST_LISTED,
    OR_PERCENT,
    Keys,
    OneOf,
    PartShare,
    Share,
    as_share,
    check_distinct,
    unit,
)
from fl_peel.scenario.settings import LARGEST_MULTIPLIER, MECHANISMS, NO_MECHANISM, STATISTICS

Norm = Annotated[float, Field(gt=0, le=1e9, json_schema_extra=unit("norm"))]


class Clipping(Keys):
    """Clipping of a device's block update before aggregation; see docs/privacy.md."""

    kind: Literal["none", "flat", "per-block", "adaptive"] = "none"
    """Kind of clipping; flat: the whole update has norm ``norm`` at most; per-block: each of the K blocks sent has
    ``norm`` / sqrt(K) at most; adaptive: flat, with a bound that follows a quantile of the norms (Andrew et al.,
    NeurIPS 2021).
    """
    norm: Norm = 1.0
    """Clipping bound of a device's update, in L2 (local-laplace: L1); adaptive: the bound of the first round."""
    quantile: float = Field(0.5, gt=0, lt=1, json_schema_extra=unit("share"))
    """Share of the devices whose update should remain unclipped, adaptive only."""
    learning_rate: float = Field(0.2, gt=0, le=10, json_schema_extra=unit("step size"))
    """Learning rate of the bound, adaptive only: bound <- bound * exp(-learning_rate * (share below it - quantile))
    after every round."""


class ReleaseShares(Keys):
    """Division of one round's privacy budget among the quantities released; 0 releases nothing. The shares are
    normalized to sum to 1, except for stage1."""

    updates: float = Field(0.9, gt=0, json_schema_extra=unit("share"))
    """Share of the block updates, which train the tables."""
    signals: float = Field(0.1, ge=0, json_schema_extra=unit("share"))
    """Share of the validation hits per block, which train the controller."""
    counts: float = Field(0.0, ge=0, json_schema_extra=unit("share"))
    """Share of the counts of interactions per block, which give popularity within the user group."""
    quantile: float = Field(0.02, ge=0, json_schema_extra=unit("share"))
    """Share of the count of devices below the clipping bound, with adaptive clipping."""
    stage1: float = Field(4.0, gt=0, json_schema_extra=unit("rounds"))
    """Privacy budget of all that devices send in stage 1 (``pretraining.source: devices``), in multiples of one round;
    it is added to that of the rounds and is not normalized."""


class Statistic(Keys):
    """A statistic of an installed package that noised rounds release in addition; see docs/privacy.md."""

    share: float = Field(gt=0, json_schema_extra=unit("share"))
    """Share of one round's privacy budget, before all shares are normalized."""
    norm: Norm = 1.0
    """Bound of a device's contribution in a round: L2, with local-laplace L1."""


class Privacy(Keys):
    """Differential privacy; see docs/privacy.md. By default no noise is added."""

    mechanism: Annotated[str, AfterValidator(MECHANISMS.check), OneOf(MECHANISMS)] = NO_MECHANISM
    """Privacy mechanism; none; central-gaussian: the server adds noise to the sum over a user group; local-gaussian,
    local-laplace: each device adds noise; or a mechanism that an installed package registers under
    ``fl_peel.mechanisms``.
    """
    target_epsilon: float | None = Field(None, gt=0, json_schema_extra=unit("epsilon"))
    """User-level epsilon of the whole run, from which the noise follows."""
    delta: float = Field(1e-5, gt=0, lt=1, json_schema_extra=unit("probability"))
    """Delta of the (epsilon, delta) guarantee: the probability with which it may fail. Choose it below one over the
    number of devices."""
    noise_multiplier: float | None = Field(
        None, ge=1e-6, le=LARGEST_MULTIPLIER, json_schema_extra=unit("clipping bounds")
    )
    """Noise of one round relative to the clipping bound, in place of target_epsilon; with both, it is checked against
    target_epsilon."""
    noise_source: Literal["seed", "system"] = "seed"
    """Source of noise, of randomized responses and of the coins of Poisson sampling; seed: the scenario's seed, so that
    runs repeat, for simulations only, since whoever has the seed can subtract the noise; system: the operating system's
    randomness, in exact integer arithmetic; runs do not repeat.
    """
    clipping: Clipping = Clipping()
    signals_norm: Norm = 1.0
    """Bound of a device's validation signals in a round: L2, with local-laplace L1."""
    counts_norm: Norm = 1.0
    """Bound of a device's interaction counts in a round, and in stage 1: L2, with local-laplace L1."""
    shares: ReleaseShares = ReleaseShares()
    statistics: dict[Annotated[str, AfterValidator(STATISTICS.check)], Statistic] = Field(default_factory=dict)
    """Additional statistics by name, which installed packages register under ``fl_peel.statistics``; they need a
    mechanism."""
    group_epsilon: float | None = Field(None, gt=0, json_schema_extra=unit("epsilon"))
    """Epsilon of the randomized response by which devices whose data was not collected report their user group."""
    colluding_devices: int = Field(1, ge=0, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Number of devices of a user group whose noise shares are not counted on, since they may reveal them to an
    attacker. Under secure aggregation devices add the noise in shares; 1: any device that looks at tables knows its own
    share.
    """
    shrinkage: bool = True
    """Whether the server shrinks noised updates and signals towards earlier estimates, by the variance of the noise."""
    rows: Literal["touched", "all-sent"] = "touched"
    """Rows that a device's update contains; touched: those it changed; all-sent: all rows it was sent, which hides the
    rows it changed."""
    requests: Literal["own-budget", "group-prefix"] = "own-budget"
    """Blocks that a device downloads; own-budget: those that fit its budget; group-prefix: those that fit the largest
    budget of the fleet, which hides its own."""
    answer_share: float | None = Field(None, gt=0, le=1, json_schema_extra=unit("share"))
    """Share of the rounds in which a device answers. Devices that are available more often than that skip rounds at
    random, so that availability reveals nothing about the class. null: devices answer whenever they are available."""
    min_owners: int = Field(5, ge=1, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Minimum number of contributors to a sum of stage 1 by devices: items with fewer owners and user groups with fewer
    members are left out; and, under secure aggregation, of owners of a row in a round of refinement, which has no
    signals then. 1: every sum is opened, those of single devices, too. Under a mechanism noise takes its place.
    """
    counters: Literal["withheld", "measured"] = "withheld"
    """Losses, validation metrics, times and bytes per class, which no mechanism covers; withheld: not sent; measured:
    reported as the simulation's own measurement, like the test metrics, outside the protocol and without effect on it.
    """

    @property
    def noised(self) -> bool:
        """Whether a mechanism adds noise."""
        return self.mechanism != NO_MECHANISM

    @property
    def counts_contributors(self) -> bool:
        """Whether contributors to a sum are counted before it is opened."""
        return self.min_owners > 1 and not self.noised

    @property
    def sums_only(self) -> bool:
        """Whether devices send bounded sums over all rows alone: no row counts, losses, holders."""
        return self.noised or self.rows == "all-sent"

    @model_validator(mode="after")
    def _consistent(self) -> Privacy:
        if not self.noised:
            for key in ("target_epsilon", "noise_multiplier", "group_epsilon"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} needs a mechanism that adds noise; set privacy.mechanism, e.g. central-gaussian"
                    )
            if self.noise_source == "system":
                raise ValueError(
                    "noise_source: system needs a mechanism that adds noise; set privacy.mechanism, e.g. "
                    "central-gaussian"
                )
            if self.statistics:
                raise ValueError("statistics are noised sums; set privacy.mechanism, e.g. central-gaussian")
            if self.clipping.kind == "adaptive":
                raise ValueError(
                    "clipping.kind adaptive releases a noised count of devices; set privacy.mechanism, or kind flat"
                )
            return self
        if self.clipping.kind == "none":
            raise ValueError(
                f"mechanism {self.mechanism} without clipping gives no guarantee; set privacy.clipping.kind to flat, "
                "per-block or adaptive"
            )
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise ValueError(f"mechanism {self.mechanism} needs target_epsilon (or noise_multiplier); give one")
        if self.target_epsilon is not None and (self.group_epsilon or 0.0) >= self.target_epsilon:
            raise ValueError("group_epsilon uses up target_epsilon; lower it or raise the target")
        if self.clipping.kind == "adaptive" and self.shares.quantile == 0:
            raise ValueError("clipping.kind adaptive needs shares.quantile above 0; give e.g. 0.02")
        return self


class SecureAggregation(Keys):
    """Secure aggregation of the rounds and of the steps of stage 1: the server learns sums over devices and nothing
    else; see docs/secure-aggregation.md. In a step of stage 1 all devices form one group."""

    enabled: bool = False
    """Whether devices mask what they send."""
    masked: bool = True
    """Whether keys and masks are used; false: the same devices, dropouts and void rounds without them, as a baseline of
    the protocol's cost."""
    devices_per_group: int | None = Field(64, ge=2, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Number of devices of a user group that take part in a round, drawn from the round's cohort; null: the whole
    cohort. Refinement only: a step of stage 1 takes all devices that answer."""
    min_devices: int = Field(8, ge=3, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Smallest number of devices in a sum. A user group in which fewer devices are available skips the round; stage 1
    ends the run."""
    neighbours: int = Field(12, ge=2, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Number of devices with which each device shares masks and secrets, an even number; in a smaller group, all the
    others."""
    threshold: Share = 0.55
    """Share of a device's neighbours, and of a group's devices, that must stay until the end of a round: above one
    half."""
    word_bits: Literal["auto", 32, 64] = Field("auto", json_schema_extra=unit("bits"))
    """Word size of block updates; auto: 32 where the clipping norm proves that sums cannot overflow, else 64. Stage 1
    has its own: ``pretraining.sum_bits``."""
    dropout_share: PartShare = 0.0
    """Share of the devices that drop out of a round or step after key exchange, at a random stage, for studies of
    dropouts."""

    @model_validator(mode="after")
    def _consistent(self) -> SecureAggregation:
        if self.neighbours % 2:
            raise ValueError(f"neighbours {self.neighbours} is odd; give an even number")
        if self.threshold <= 0.5:
            raise ValueError(
                f"threshold {self.threshold:g} lets two halves of the devices reconstruct both secrets; give more "
                "than 0.5"
            )
        if self.devices_per_group is not None and self.devices_per_group < self.min_devices:
            raise ValueError(
                f"devices_per_group {self.devices_per_group} is below min_devices {self.min_devices}; "
                "raise it or lower min_devices"
            )
        return self


class Poisoning(Keys):
    """Malicious devices; see docs/poisoning.md. By default there are none."""

    share: PartShare = 0.0
    """Share of malicious devices, drawn by device id: those of a smaller share are among those of a larger one."""
    kind: Literal["scaled", "sign-flip", "promote", "idle"] = "scaled"
    """Attack; scaled: the update times factor; sign-flip: the update times -factor; promote: malicious devices train on
    the target items too, report them as validation hits, and multiply the target items' rows by factor; idle: they
    behave honestly, for comparison.
    """
    factor: float = Field(10.0, gt=0, le=1e6, json_schema_extra=unit("factor"))
    """Factor of the attack's updates, and of promote's target rows."""
    target_items: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), max_length=MOST_ITEMS, json_schema_extra=unit("item numbers")
    )
    """Item numbers that promote promotes and whose hit rate is reported."""
    num_targets: int = Field(5, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Number of target items that are drawn by the seed where target_items is empty."""
    compare: tuple[Annotated[float, BeforeValidator(as_share), Field(gt=0, lt=1), OR_PERCENT], ...] = Field(
        (), max_length=MOST_LISTED
    )
    """Shares of malicious devices for which refinement is repeated, with robust aggregation and without."""

    @model_validator(mode="after")
    def _targets_are_distinct(self) -> Poisoning:
        check_distinct("target_items", self.target_items)
        return self

    @property
    def largest_share(self) -> float:
        """Devices that are malicious under any share of the scenario: none of them counts in recall."""
        return max((self.share, *self.compare))

    @property
    def active(self) -> bool:
        """Whether any device does what it should not."""
        return self.share > 0 and self.kind != "idle"
