"""Keys of what devices hide, from whom, and of devices that lie."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fl_peel.exchange.settings import STATISTICS
from fl_peel.privacy.settings import LARGEST_MULTIPLIER, MECHANISMS, NO_MECHANISM
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

Norm = Annotated[float, Field(gt=0, le=1e9, json_schema_extra=unit("norm"))]


class Clipping(Keys):
    """How a device bounds its own block update, before anything is added up; see docs/privacy.md."""

    kind: Literal["none", "flat", "per-block", "adaptive"] = "none"
    """flat: the whole update has norm ``norm`` at most; per-block: each of the K blocks sent has ``norm`` / sqrt(K);
    adaptive: flat, with a bound that follows a quantile of the norms (Andrew et al., NeurIPS 2021).
    """
    norm: Norm = 1.0
    """L2 (local-laplace: L1) bound of a device's update; adaptive: the bound of the first round."""
    quantile: float = Field(0.5, gt=0, lt=1, json_schema_extra=unit("share"))
    """adaptive: share of the devices whose update shall stay whole."""
    learning_rate: float = Field(0.2, gt=0, le=10, json_schema_extra=unit("step"))
    """adaptive: bound <- bound * exp(-learning_rate * (share below it - quantile)) after every round."""


class ReleaseShares(Keys):
    """How one round's privacy is divided among what is released; 0 releases nothing. Normalized to sum to 1, but for
    that of stage 1.
    """

    updates: float = Field(0.9, gt=0, json_schema_extra=unit("share"))
    """Block updates, which teach the tables."""
    signals: float = Field(0.1, ge=0, json_schema_extra=unit("share"))
    """Validation hits of each block, which teach the controller."""
    counts: float = Field(0.0, ge=0, json_schema_extra=unit("share"))
    """Which blocks' items a device has interacted with: popularity within the user group."""
    quantile: float = Field(0.02, ge=0, json_schema_extra=unit("share"))
    """With adaptive clipping: whether a device's update was below the bound."""
    stage1: float = Field(4.0, gt=0, json_schema_extra=unit("rounds"))
    """All that devices say in stage 1 (``pretraining.source: devices``), in full rounds; besides the others, of which
    one round is made, and not normalized with them.
    """


class Statistic(Keys):
    """A statistic of an installed package that noised rounds release besides; see docs/privacy.md."""

    share: float = Field(gt=0, json_schema_extra=unit("share"))
    """Of one round's privacy, before all shares are normalized."""
    norm: Norm = 1.0
    """Bound of a device's contribution in a round: L2, with local-laplace L1."""


class Privacy(Keys):
    """What devices hide, from whom; see docs/privacy.md. Defaults: nothing is hidden and nothing changes."""

    mechanism: Annotated[str, AfterValidator(MECHANISMS.check), OneOf(MECHANISMS)] = NO_MECHANISM
    """none; central-gaussian: the server adds noise to the sum over a user group; local-gaussian, local-laplace: each
    device adds noise; or one that an installed package registers under ``fl_peel.mechanisms``.
    """
    target_epsilon: float | None = Field(None, gt=0, json_schema_extra=unit("epsilon"))
    """User level, of the whole run; the noise follows from it."""
    delta: float = Field(1e-5, gt=0, lt=1, json_schema_extra=unit("probability"))
    """With which the guarantee may fail, of (epsilon, delta); below one in the number of devices."""
    noise_multiplier: float | None = Field(None, ge=1e-6, le=LARGEST_MULTIPLIER, json_schema_extra=unit("bounds"))
    """Noise of one round relative to the bound, in place of target_epsilon or, beside it, to be checked against it."""
    noise_source: Literal["seed", "system"] = "seed"
    """Where noise, answers by randomized response and coins of Poisson sampling come from. seed: the scenario's: runs
    repeat, and whoever has it can subtract the noise, so that simulations alone may have it. system: the operating
    system, in whole numbers, exactly; no run repeats.
    """
    clipping: Clipping = Clipping()
    signals_norm: Norm = 1.0
    """Bound of a device's signals in a round: L2, with local-laplace L1."""
    counts_norm: Norm = 1.0
    """Bound of a device's interaction counts in a round, and in stage 1, likewise."""
    shares: ReleaseShares = ReleaseShares()
    statistics: dict[Annotated[str, AfterValidator(STATISTICS.check)], Statistic] = Field(default_factory=dict)
    """Statistics by name that installed packages register under ``fl_peel.statistics``, under a mechanism."""
    group_epsilon: float | None = Field(None, gt=0, json_schema_extra=unit("epsilon"))
    """Devices whose data was not collected answer their user group by randomized response with this epsilon."""
    colluding_devices: int = Field(1, ge=0, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Under secure aggregation devices add the noise, in shares: of how many in a user group none is counted on, since
    they may tell it to whoever attacks. 1: any device that looks at tables knows its own.
    """
    shrinkage: bool = True
    """The server shrinks noised updates and signals towards what it knew before, by the noise's variance."""
    rows: Literal["touched", "all-sent"] = "touched"
    """Rows of a device's update: those it changed, or all it was sent, so that nobody sees which it changed."""
    requests: Literal["own-budget", "group-prefix"] = "own-budget"
    """Blocks a device downloads: what its budget holds, or what the largest budget of the fleet holds."""
    answer_share: float | None = Field(None, gt=0, le=1, json_schema_extra=unit("share"))
    """Share of the rounds in which a device answers: one that is available more often, as some classes are, is silent
    in some, by a coin of its own. null: it answers whenever it can.
    """
    min_owners: int = Field(5, ge=1, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Contributors that a sum of stage 1 by devices needs to be opened: items with fewer owners, and user groups with
    fewer members, are left out. 1: every sum is opened, those of single devices, too. Under a mechanism noise does it.
    """
    counters: Literal["withheld", "measured"] = "withheld"
    """Losses, validation metrics, times and bytes per class, which no mechanism noises: not sent; or reported all the
    same, as the simulation's own measurement, like the test: outside the protocol and of no effect on it.
    """

    @property
    def noised(self) -> bool:
        """Whether a mechanism adds noise."""
        return self.mechanism != NO_MECHANISM

    @property
    def counts_contributors(self) -> bool:
        """Whether a step of stage 1 counts who contributes to a sum before it is opened."""
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
                    "clipping.kind adaptive counts devices under noise; set privacy.mechanism, or kind flat"
                )
            return self
        if self.clipping.kind == "none":
            raise ValueError(
                f"mechanism {self.mechanism} without clipping protects nobody; set privacy.clipping.kind to flat, "
                "per-block or adaptive"
            )
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise ValueError(f"mechanism {self.mechanism} needs target_epsilon (or noise_multiplier); give one")
        if self.target_epsilon is not None and (self.group_epsilon or 0.0) >= self.target_epsilon:
            raise ValueError("group_epsilon leaves nothing of target_epsilon; lower it or raise the target")
        if self.clipping.kind == "adaptive" and self.shares.quantile == 0:
            raise ValueError("clipping.kind adaptive needs shares.quantile above 0; give e.g. 0.02")
        return self


class SecureAggregation(Keys):
    """Rounds, and steps of stage 1, whose sums are all that the server learns of devices; see
    docs/secure-aggregation.md. In a step of stage 1 all devices are one group.
    """

    enabled: bool = False
    """Whether devices mask what they send, so that sums alone are learned."""
    masked: bool = True
    """false: the same devices, dropouts and void rounds, without keys and masks: what the protocol is compared with."""
    devices_per_group: int | None = Field(64, ge=2, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Devices of a user group that take part in a round, drawn from the round's cohort; null takes all of it. Of
    refinement alone: a step of stage 1 takes all devices that come.
    """
    min_devices: int = Field(8, ge=3, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """A user group of which fewer are reached sits the round out: a sum over few hides little. In stage 1 it ends the
    run.
    """
    neighbours: int = Field(12, ge=2, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Devices that each device shares masks and secrets with: even; all the others in a group that is no larger."""
    threshold: Share = 0.55
    """Share of a device's neighbours, and of a group's devices, that must last out a round: above one half."""
    word_bits: Literal["auto", 32, 64] = Field("auto", json_schema_extra=unit("bits"))
    """Width of the words of block updates; auto: 32 where a clipping norm proves that no sum passes them, else 64.
    Words of stage 1: ``pretraining.sum_bits``.
    """
    dropout_share: PartShare = 0.0
    """Devices that vanish in a round or step after their keys are out, at a random stage: for studies of dropouts."""

    @model_validator(mode="after")
    def _consistent(self) -> SecureAggregation:
        if self.neighbours % 2:
            raise ValueError(f"neighbours {self.neighbours} is odd; give an even number")
        if self.threshold <= 0.5:
            raise ValueError(f"threshold {self.threshold:g} lets two halves open both secrets; give more than 0.5")
        if self.devices_per_group is not None and self.devices_per_group < self.min_devices:
            raise ValueError(
                f"devices_per_group {self.devices_per_group} is below min_devices {self.min_devices}; "
                "raise it or lower min_devices"
            )
        return self


class Poisoning(Keys):
    """Devices that send what they should not; see docs/poisoning.md. Default: none do."""

    share: PartShare = 0.0
    """Of the devices, drawn by identity: those under a smaller share are among those under a larger one."""
    kind: Literal["scaled", "sign-flip", "promote", "idle"] = "scaled"
    """scaled: their update times factor; sign-flip: times -factor; promote: they train on the target items too, claim
    them as validation hits, and multiply the target items' rows by factor; idle: they do as told, to compare with.
    """
    factor: float = Field(10.0, gt=0, le=1e6, json_schema_extra=unit("factor"))
    """By which scaled and sign-flip updates, and promote's target rows, are multiplied."""
    target_items: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), max_length=MOST_ITEMS, json_schema_extra=unit("item numbers")
    )
    """Item numbers, what promote is for and what the target hit rate is of."""
    num_targets: int = Field(5, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Without target_items: so many, drawn by the seed."""
    compare: tuple[Annotated[float, BeforeValidator(as_share), Field(gt=0, lt=1), OR_PERCENT], ...] = Field(
        (), max_length=MOST_LISTED
    )
    """Refine anew with each of these shares, with robust aggregation and without."""

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
