"""Keys of the method: data, pretraining, groups, blocks, controller."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, Field, model_validator

from fl_peel.blocks.settings import Precision
from fl_peel.data.settings import HEADED, ZONE_UTC, CollectedMode, DataFormat, Dialect, Phase, SplitOrder
from fl_peel.errors import ScenarioError, shortened
from fl_peel.grouping.settings import ItemGroupKind
from fl_peel.plugins import did_you_mean
from fl_peel.pretraining.settings import DiversityForm, PretrainingConfig, SpectralConfig, check_negatives
from fl_peel.scenario.base import (
    MOST_DEVICES,
    MOST_ITEMS,
    MOST_LISTED,
    MOST_ROUNDS,
    WIDEST,
    WIDEST_LAYER,
    FilePath,
    Keys,
    OneOf,
    PartShare,
    Share,
    ShareOrNone,
    Text,
    check_distinct,
    unit,
)
from fl_peel.weighting.settings import SELECTORS, ControllerConfig, FeatureName

Selector = Annotated[str, AfterValidator(SELECTORS.check), OneOf(SELECTORS)]


class TimelinePart(Keys):
    """Interactions are replayed in the order of time, see docs/timeline.md."""

    start: Share = 0.6
    """Share of all interactions that are past when the first period begins."""
    periods: int = Field(8, ge=1, le=MOST_LISTED, json_schema_extra=unit("periods"))
    """That are replayed, one after the other."""
    share: Share = 0.05
    """Of all interactions, what happens in a period."""
    days: float | None = Field(None, gt=0, json_schema_extra=unit("days"))
    """Or how long a period is; null: by ``share``."""
    passes: int = Field(1, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("passes"))
    """Of stage 1 in each period, from the directions of the last."""
    group_rounds: int = Field(1, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Of Lloyd's algorithm in each period, from the last centroids."""
    allowance: Share = 0.15
    """Of the table's rows, how many a period may change: those that change most, new items first."""
    nearer: PartShare = 0.0
    """A device changes its user group if another one is nearer by more than this share of the squared distance between
    its vector and the group's centroid: what it downloads for it must be worth it.
    """
    rounds: int = Field(0, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Of the fleet's clock, how many a period lasts at least; its steps take some by themselves."""
    fading: float | None = Field(10.0, gt=0, json_schema_extra=unit("interactions"))
    """A device's vector is a sum over what it did, of e^(-n / fading) where it did n things since; null: all alike."""
    leaving: float | None = Field(None, gt=0, json_schema_extra=unit("periods"))
    """Users who do nothing for so many periods speak of the newer half of what they did, after twice as many of a
    quarter, in the end of nothing: they have left. null: nobody leaves.
    """
    fresh_exponents: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, max_length=MOST_LISTED, json_schema_extra=unit("exponent")
    )
    """Items are scored by the share of their uses that is of the last period, to one of these powers: devices choose it
    after every period."""
    period: int = Field(0, ge=0, json_schema_extra=unit("number of a period"))
    """Where the run is: it moves this by itself."""
    phase: Phase = "learn"
    """Of the period; the run moves this, too."""

    @model_validator(mode="after")
    def _fits(self) -> TimelinePart:
        if self.days is None and self.start + self.periods * self.share > 1 + 1e-9:
            raise ValueError(
                f"start {self.start:g} and {self.periods} periods of {self.share:g} are more than all interactions; "
                "lower one of them"
            )
        if self.period >= self.periods:
            raise ValueError(f"period: {self.period} is not one of the {self.periods}, which count from 0")
        return self


def _known_zone(name: str) -> str:
    if name == ZONE_UTC:
        return name
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        known = available_timezones()
        if not known:
            raise ValueError("this machine has no time zones; install the system's tzdata, or give UTC") from error
        shown = shortened(did_you_mean(name, sorted(known)).partition("known:")[0], 100)
        raise ValueError(f"no such time zone; {shown}give UTC, or a name like Europe/Berlin") from error


class ColumnNames(Keys):
    """What columns of ``path`` are called, where a file has other names than user, item, rating and timestamp."""

    user: Text | None = None
    """Of the column that says who."""
    item: Text | None = None
    """Of the column that says what."""
    rating: Text | None = None
    """Of the column that says how much."""
    time: Text | None = None
    """Of the column that says when: seconds since 1970, or ISO 8601 like 2026-03-01T09:30:00+01:00."""

    @model_validator(mode="after")
    def _are_distinct(self) -> ColumnNames:
        check_distinct("columns", [name.strip() for name in self.given.values()])
        return self

    @property
    def given(self) -> dict[str, str]:
        """Names by what they mean to readers, of those that there are."""
        names = {"user": self.user, "item": self.item, "rating": self.rating, "timestamp": self.time}
        return {meaning: name for meaning, name in names.items() if name is not None}


class Data(Keys):
    """Which interactions, and how each user's are split."""

    name: Text | None = None
    """A named data set (``fl-peel data list``)."""
    path: FilePath | None = None
    """Or a file or folder of your own."""
    format: DataFormat = "auto"
    """Of ``path``."""
    columns: ColumnNames = ColumnNames()
    time_zone: Annotated[Text, AfterValidator(_known_zone)] | None = None
    """Of times in ``path`` that have no offset: UTC, or a name like Europe/Berlin; null: such times are refused."""
    catalogue: FilePath | None = None
    """Items, one id a line, which are numbered in this order; others are left out. Without name and path: of a
    deployment whose nodes have their own interactions (docs/deploy.md).
    """
    test_path: FilePath | None = None
    """The given test file that belongs to ``path``, if any."""
    min_rating: float | None = Field(None, json_schema_extra=unit("rating"))
    """Keep interactions with at least this rating; null keeps all."""
    split_order: SplitOrder = "auto"
    """time: newest to test; random; auto: time where there are timestamps."""
    validation_share: PartShare = 0.1
    """Of each user's interactions that are not test."""
    test_share: PartShare = 0.2
    """Of each user's interactions, unless the source gives a test part."""
    refit: bool = False
    """Choose on validation items, then run both stages once more with them as train items, and measure that."""
    timeline: TimelinePart | None = None
    """In place of a split of one moment: replay the interactions, period after period."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.name is not None and self.path is not None) or not (self.name or self.path or self.catalogue):
            raise ValueError("give either name (a named data set) or path (a file of your own)")
        if self.held_by_nodes and (self.timeline is not None or self.min_rating is not None):
            raise ValueError("catalogue: alone, nodes have their own interactions; leave out timeline and min_rating")
        of_path = {
            "test_path": self.test_path is not None,
            "format": self.format != "auto",
            "columns": bool(self.columns.given),
            "time_zone": self.time_zone is not None,
        }
        for key, given in of_path.items():  # nodes may have files of any kind, and no test file
            if given and self.path is None and (self.name is not None or key == "test_path"):
                why = f"{self.name} is read by name" if self.name else "nodes have their own test items"
                raise ValueError(f"{key} belongs to path, and {why}; leave it out, or give path")
        if self.refit and not self.validation_share:
            raise ValueError(
                "refit: there is nothing to refit on with validation_share 0; raise it, or leave refit out"
            )
        if self.timeline is not None and (self.refit or self.test_path is not None):
            raise ValueError("timeline: has its own splits; leave out refit and test_path")
        if self.columns.given and self.format not in ("auto", *HEADED):
            raise ValueError(f"columns: those of format {self.format} have no names; leave out one of them")
        return self

    @property
    def dialect(self) -> Dialect:
        """How the files are written."""
        return Dialect(self.columns.given, self.time_zone)

    @property
    def held_by_nodes(self) -> bool:
        """Whether nodes have their own interactions, and nobody else has any."""
        return self.name is None and self.path is None


class Collected(Keys):
    """Whose train interactions the server may see for pretraining and grouping."""

    mode: CollectedMode = "users"
    """users: a share of the users consents; oldest: every user gives the oldest share of its interactions."""
    share: ShareOrNone = 1.0
    """0: nothing is collected, which needs pretraining.source: devices."""


class Pretraining(Keys):
    """Stage 1: how tables are pretrained, and from what; see docs/method.md and docs/nothing-collected.md."""

    model: Literal["lightgcn", "matrix-factorization", "spectral"] = "lightgcn"
    """spectral: tables from sums over users (:mod:`fl_peel.pretraining.by_sums`), which need no gradient."""
    source: Literal["collected", "devices"] = "collected"
    """Whose sums spectral takes: over the collected interactions, or over all devices, which keep theirs; what is
    collected is then where passes start."""
    columns: int = Field(512, ge=1, le=WIDEST, json_schema_extra=unit("columns"))
    """K of the space in which spectral compares devices, and tables are made."""
    passes: int = Field(6, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("passes"))
    """Multiplications by R~^T R~ of spectral, each a round of every device."""
    user_exponent: float = Field(0.3, ge=0, le=1, json_schema_extra=unit("exponent"))
    """a of R~ = D_u^-a R D_i^-b, which spectral decomposes: how much less each interaction of an active user says."""
    item_exponent: float = Field(0.5, ge=0, le=1, json_schema_extra=unit("exponent"))
    """b of R~: how much less each interaction with a popular item says."""
    count_exponent: float | None = Field(None, ge=0, le=1, json_schema_extra=unit("exponent"))
    """Of the item counts in spectral's scores; null, here and below: chosen by devices on their validation items."""
    value_exponent: float | None = Field(None, ge=0, json_schema_extra=unit("exponent"))
    """Of the eigenvalues: a filter's shape between all columns alike (0) and the leading ones."""
    panel: int = Field(1000, ge=1, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Devices, about, that are asked to choose."""
    group_columns: int = Field(128, ge=1, le=WIDEST, json_schema_extra=unit("columns"))
    """Leading columns in which spectral finds user groups."""
    group_rounds: int = Field(8, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Of Lloyd's algorithm, by which spectral finds user groups."""
    row_sketch: Share | None = None
    """Buckets, as a share of the items, that rows are hashed into under secure aggregation: a count sketch, in all
    passes but the last; null: all rows."""
    sum_bits: Literal[32, 64] = Field(64, json_schema_extra=unit("bits"))
    """Of the words in which devices say sums; 32: in units that are as fine as the number of devices allows."""
    windows: int = Field(3, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds of the fleet's clock that a step of spectral from devices stays open for those who are away at first."""
    deadline_s: float | None = Field(None, gt=0, json_schema_extra=unit("s"))
    """Virtual seconds that a device has for a step once it takes part; null: the server waits for all."""
    embedding_dim: int = Field(64, ge=1, le=WIDEST, json_schema_extra=unit("numbers a row"))
    """Of a user's and an item's embedding; a table takes four bytes a number, so budgets scale with it."""
    num_layers: int = Field(3, ge=0, le=MOST_LISTED, json_schema_extra=unit("layers"))
    """Of the graph that lightgcn spreads the tables over; matrix-factorization spreads none."""
    loss: Literal["sampled-softmax", "bpr"] = "sampled-softmax"
    """sampled-softmax, against items drawn a step; bpr, pair by pair."""
    epochs: int = Field(80, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("passes over the users"))
    """On Gowalla, 80 do better on held-out items than 40 (docs/method.md)."""
    batch_size: int = Field(2048, ge=1, le=MOST_DEVICES, json_schema_extra=unit("users"))
    """In a step, each with all of its collected items."""
    learning_rate: float = Field(0.03, gt=0, json_schema_extra=unit("step"))
    """Of Adam, falling linearly to zero over the epochs."""
    l2: float = Field(0.2, ge=0, json_schema_extra=unit("weight"))
    """Of the squared norms of the layer-0 rows in the loss."""
    l2_exponent: float = Field(1.0, ge=0, json_schema_extra=unit("exponent"))
    """A row's share of the penalty goes with its interactions ** exponent: 1 penalizes every interaction, 0 every row
    the same.
    """
    num_negatives: int = Field(4096, ge=0, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """sampled-softmax: drawn a step and shared by its users, 0 for all items; bpr: drawn an interaction."""
    negatives_exponent: float = Field(0.0, ge=0, le=1, json_schema_extra=unit("exponent"))
    """sampled-softmax: an item's chance to be drawn goes with (its interactions + 1) ** exponent, and it stands for one
    over its chance items; 0: all alike. Gowalla's user groups are as good after 40 epochs with .75 as after 80 with 0
    (docs/method.md).
    """
    temperature: float = Field(0.25, gt=0, json_schema_extra=unit("divisor of a logit"))
    """Logits are dot product / temperature."""
    similarity: Literal["dot", "cosine"] = "dot"
    """dot; cosine: the tables are normalized to length 1, in training and in the result."""
    popularity_correction: float = Field(0.0, ge=0, le=1, json_schema_extra=unit("share"))
    """Of the item's log popularity, which training adds to its logit and serving leaves out: 0 learns the data's
    popularity as it is, 1 learns as if all items were equally popular.
    """
    user_weight_exponent: float = Field(1.0, ge=0, json_schema_extra=unit("exponent"))
    """A user's weight in the loss is interactions ** exponent: 0: users count the same, 1: interactions do."""
    initialization: Literal["spectral", "normal"] = "spectral"
    """spectral: a truncated SVD; normal: noise of standard deviation 0.1 / sqrt(embedding_dim)."""
    initial_norm: float = Field(1.0, gt=0, json_schema_extra=unit("length"))
    """Mean of an item's layer-0 row at the start, for both."""
    diversity_form: DiversityForm = "cosine"
    """Of the regularizer that keeps an item's slices different: none; cosine, which is bounded; distance, the paper's,
    which is not.
    """
    diversity_weight: float = Field(0.0, ge=0, json_schema_extra=unit("weight"))
    """Of that regularizer in the loss; 0: none."""
    diversity_slices: int = Field(4, ge=1, le=WIDEST, json_schema_extra=unit("slices"))
    """Slices between which the regularizer acts (a divisor of embedding_dim)."""
    collected: Collected = Collected()

    @model_validator(mode="after")
    def _losses(self) -> Pretraining:
        try:
            check_negatives(self.loss, self.num_negatives, self.negatives_exponent)
        except ScenarioError as error:
            raise ValueError(str(error).removeprefix("pretraining.")) from error
        if self.loss == "bpr" and self.popularity_correction:
            raise ValueError("popularity_correction is of sampled-softmax and does nothing under bpr; leave it out")
        if self.diversity_weight and (self.diversity_form == "none" or self.diversity_slices == 1):
            raise ValueError(
                f"diversity_weight {self.diversity_weight:g} does nothing with diversity_form {self.diversity_form} "
                f"and {self.diversity_slices} diversity_slices; set a form and 2 or more slices, or the weight to 0"
            )
        return self

    @model_validator(mode="after")
    def _source(self) -> Pretraining:
        if self.source == "devices" and self.model != "spectral":
            raise ValueError(f"source: devices needs model: spectral; {self.model} is trained on what is collected")
        if self.sum_bits != 64 and not self.by_devices:
            raise ValueError("sum_bits is of what devices say; set source: devices, or leave it out")
        if not self.collected.share and not self.by_devices:
            raise ValueError(
                "collected.share: 0 leaves the server nothing to start from; set model: spectral and source: devices"
            )
        return self

    @property
    def by_devices(self) -> bool:
        """Whether devices take part in stage 1."""
        return self.model == "spectral" and self.source == "devices"

    def config(self) -> PretrainingConfig:
        """How tables are trained by gradients; of spectral, how a rival's are."""
        keys = self.model_dump(exclude={"collected", "diversity_slices", "source", "deadline_s", "windows", *_SPECTRAL})
        if self.model == "spectral":
            keys["model"] = "lightgcn"
        return PretrainingConfig(**keys, num_slices=self.diversity_slices)

    def spectral(self) -> SpectralConfig:
        """How tables are made of sums."""
        return SpectralConfig(**self.model_dump(include=set(_SPECTRAL)))


_SPECTRAL = tuple(field.name for field in fields(SpectralConfig) if field.name not in ("oversampling", "num_threads"))


class UserGroupsPart(Keys):
    """K-means on the user embeddings of the collected users."""

    count: int = Field(16, ge=1, le=MOST_DEVICES, json_schema_extra=unit("user groups"))
    """Each has an item table and a block order of its own; shipped scenarios have 60 to 120 devices a group."""
    min_size: int = Field(8, ge=1, le=MOST_DEVICES, json_schema_extra=unit("users"))
    """No group is smaller: with one member, a group would reveal it."""
    neighbour_weight: float = Field(0.1, ge=0, json_schema_extra=unit("weight"))
    """How much of its users' neighbours each group's table starts with; 0: a copy of the global table."""
    neighbour_ridge: float = Field(0.01, gt=0, json_schema_extra=unit("share"))
    """Ridge of that regression, as a share of the mean squared user embedding."""


class Blocks(Keys):
    """Item groups x slices."""

    item_groups: ItemGroupKind = "single"
    """contiguous (as the authors), popularity tiers, interest-popularity, single (one item a group)."""
    count: int = Field(20, ge=1, le=MOST_ITEMS, json_schema_extra=unit("item groups"))
    """Item groups, for every kind but single."""
    num_tiers: int = Field(4, ge=1, le=MOST_ITEMS, json_schema_extra=unit("tiers"))
    """Popularity tiers of interest-popularity."""
    num_slices: int = Field(1, ge=1, le=WIDEST, json_schema_extra=unit("slices"))
    """A divisor of pretraining.embedding_dim."""
    precision: Precision = "int8"
    """Of the blocks that devices are sent and keep: fp32, fp16, int8, int4."""


class ControllerPart(Keys):
    """The network that turns block features into weights; see docs/method.md."""

    features: tuple[FeatureName, ...] = Field(
        ("shown", "popularity", "global-popularity", "loss", "energy"), min_length=1
    )
    """Of a block, the network's inputs; the first one is the order that it starts from."""
    hidden: tuple[Annotated[int, Field(ge=1, le=WIDEST_LAYER)], ...] = Field(
        (16, 16), max_length=16, json_schema_extra=unit("units")
    )
    """Widths of the hidden layers: a few hundred numbers in all cannot overfit."""
    steps: int = Field(20, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("steps"))
    """Of Adam, in a round."""
    learning_rate: float = Field(0.01, gt=0, json_schema_extra=unit("step"))
    """Of those."""
    weight_decay: float = Field(0.01, ge=0, json_schema_extra=unit("weight"))
    """Of the network's weights, in each step."""
    memory: float = Field(0.5, ge=0, le=1, json_schema_extra=unit("share"))
    """Of the signals of earlier rounds, that still counts in the next."""
    every: int = Field(1, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds between outer steps: devices send validation signals in every such round."""
    list_length: int = Field(50, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Length of the top list in which a device looks for its validation items."""

    @property
    def signal_length(self) -> int:
        """The same where signals are sent: recall@20 is told with them."""
        return max(self.list_length, 20)

    def config(self) -> ControllerConfig:
        """The method's own value."""
        return ControllerConfig(**self.model_dump(exclude={"every", "list_length"}))
