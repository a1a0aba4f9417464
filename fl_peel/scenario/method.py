"""Keys of the method: data, pretraining, groups, blocks, controller; and of stage 2: rounds, local training,
aggregation.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fl_peel.errors import shortened
from fl_peel.plugins import did_you_mean
from fl_peel.scenario.base import (
    MOST_DEVICES,
    MOST_ITEMS,
    MOST_LISTED,
    MOST_ROUNDS,
    OR_PERCENT,
    WIDEST,
    WIDEST_LAYER,
    FilePath,
    Keys,
    OneOf,
    PartShare,
    Share,
    ShareOrNone,
    Text,
    as_share,
    check_distinct,
    unit,
)
from fl_peel.scenario.settings import (
    COLUMNS,
    HEADED,
    LARGEST_MULTIPLIER,
    MECHANISMS,
    NO_MECHANISM,
    SELECTORS,
    STATISTICS,
    ZONE_UTC,
    CollectedMode,
    ControllerConfig,
    DataFormat,
    Dialect,
    DiversityForm,
    FeatureName,
    ItemGroupKind,
    LocalLoss,
    LocalTraining,
    Phase,
    Precision,
    PretrainingConfig,
    SpectralConfig,
    SplitOrder,
    check_contents,
)

Selector = Annotated[str, AfterValidator(SELECTORS.check), OneOf(SELECTORS)]


class TimelinePart(Keys):
    """Replay of the interactions in order of time, see docs/timeline.md."""

    start: Share = 0.6
    """Share of all interactions that lie before the first period."""
    periods: int = Field(8, ge=1, le=MOST_LISTED, json_schema_extra=unit("periods"))
    """Number of periods that are replayed, one after the other."""
    share: Share = 0.05
    """Share of all interactions that falls into one period."""
    days: float | None = Field(None, gt=0, json_schema_extra=unit("days"))
    """Length of a period, in place of ``share``; null: periods hold equal shares of the interactions."""
    passes: int = Field(1, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("passes"))
    """Passes of stage 1 in each period, warm-started from the previous period's eigenvectors."""
    max_changed_rows: Share = 0.15
    """Largest share of the table's rows that a period may change: new items first, then the rows that changed most."""
    regroup_margin: PartShare = 0.0
    """Margin for changing the user group: a device moves to another group if that group's centroid is closer by more
    than this share of the squared distance to its present centroid, so that the move is worth the download."""
    rounds: int = Field(0, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Least number of rounds of the fleet's clock that a period lasts; the steps of a period take some themselves."""
    decay_interactions: float | None = Field(10.0, gt=0, json_schema_extra=unit("interactions"))
    """Decay constant of a device's vector: an interaction followed by n later ones has weight e^(-n /
    decay_interactions); null: all interactions have the same weight."""
    inactivity_half_life: float | None = Field(None, gt=0, json_schema_extra=unit("periods"))
    """Half-life of inactive users: after so many periods without an interaction a user contributes the newer half of
    its interactions, after twice as many a quarter, and finally none. null: users stay."""
    recency_exponents: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, max_length=MOST_LISTED, json_schema_extra=unit("exponent")
    )
    """Candidate exponents of recency: an item's score is multiplied by (its recent interactions / all its interactions)
    ** exponent; devices choose one of them on validation after every period, and answers of a period ago count half."""
    popularity_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.5, 1.0, 2.0), min_length=1, max_length=MOST_LISTED, json_schema_extra=unit("weight")
    )
    """Candidate weights of popularity: devices add everybody's mean vector, times this weight, to their own, both at
    length 1, and choose one together with the exponent of recency. 0: their own vector alone."""
    recency_half_life: float = Field(0.5, gt=0, json_schema_extra=unit("periods"))
    """Half-life of recent interactions: one that is so many periods old counts half, one twice as old a quarter."""
    period: int = Field(0, ge=0, json_schema_extra=unit("period index"))
    """Index of the present period, from 0; the run sets it."""
    phase: Phase = "learn"
    """Part of the period; the run sets it."""

    @property
    def chooses(self) -> bool:
        """Return whether freshness, or the weight of everybody's mean vector, is left to the devices."""
        return len(self.recency_exponents) * len(self.popularity_weights) > 1

    @property
    def counts_recent(self) -> bool:
        """Return whether it matters what was used of late."""
        return self.chooses or any(self.recency_exponents)

    @model_validator(mode="after")
    def _fits(self) -> TimelinePart:
        if self.days is None and self.start + self.periods * self.share > 1 + 1e-9:
            raise ValueError(
                f"start {self.start:g} and {self.periods} periods of {self.share:g} cover more than all interactions; "
                "lower one of them"
            )
        if self.period >= self.periods:
            raise ValueError(
                f"period: {self.period} is not one of the {self.periods} periods, which are numbered from 0"
            )
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
    """Names of the columns of ``path``, for files whose header does not say user, item, rating and timestamp."""

    user: Text | None = None
    """Name of the user column."""
    item: Text | None = None
    """Name of the item column."""
    rating: Text | None = None
    """Name of the rating column."""
    time: Text | None = None
    """Name of the time column: seconds since 1970, or ISO 8601 such as 2026-03-01T09:30:00+01:00."""

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
    """Source of the interactions and the split of each user's interactions into train, validation and test items."""

    name: Text | None = None
    """Name of a data set that fl-peel knows (``fl-peel data list``)."""
    path: FilePath | None = None
    """File or folder with your own interactions, in place of ``name``."""
    format: DataFormat = "auto"
    """File format of ``path``; auto: recognized by the name and the content."""
    columns: ColumnNames = ColumnNames()
    time_zone: Annotated[Text, AfterValidator(_known_zone)] | None = None
    """Time zone of times in ``path`` that have no offset: UTC, or a name like Europe/Berlin; null: such times are
    refused."""
    catalogue: FilePath | None = None
    """File of item ids, one per line; items are numbered in this order and all others are left out. Without ``name``
    and ``path`` it is that of a deployment whose nodes hold their own interactions (docs/deploy.md)."""
    test_path: FilePath | None = None
    """Test file that belongs to ``path``, if there is one."""
    titles: FilePath | None = None
    """File with a title for each item id, shown by ``export`` and ``demo``: CSV or TSV with the columns item and title,
    RecBole ``.item``, or MovieLens (``u.item``, ``movies.dat``, ``movies.csv``); null: a named data set's own."""
    min_rating: float | None = Field(None, json_schema_extra=unit("rating"))
    """Lowest rating that counts as an interaction; null: all ratings count."""
    split_order: SplitOrder = "auto"
    """Order in which each user's interactions are split; time: the newest become test items; random; auto: time where
    the data has timestamps, else random."""
    validation_share: PartShare = 0.1
    """Share of each user's interactions outside the test part that become validation items."""
    test_share: PartShare = 0.2
    """Share of each user's interactions that become test items, unless the source has a test part."""
    refit: bool = False
    """Whether both stages run once more with the validation items added to the train items, after settings are chosen;
    the second run is evaluated."""
    timeline: TimelinePart | None = None
    """Replay of the interactions period by period, in place of one split; null: one split."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.name is not None and self.path is not None) or not (self.name or self.path or self.catalogue):
            raise ValueError("give either name (a named data set) or path (a file of your own)")
        if self.held_by_nodes and (self.timeline is not None or self.min_rating is not None):
            raise ValueError(
                "catalogue: with a catalogue alone, nodes hold their own interactions; leave out timeline and "
                "min_rating"
            )
        of_path = {
            "test_path": self.test_path is not None,
            "format": self.format != "auto",
            "columns": bool(self.columns.given),
            "time_zone": self.time_zone is not None,
        }
        for key, given in of_path.items():  # nodes may have files of any kind, and no test file
            if given and self.path is None and (self.name is not None or key == "test_path"):
                why = f"{self.name} is a named data set" if self.name else "nodes hold their own test items"
                raise ValueError(f"{key} describes path, and {why}; leave it out, or give path")
        if self.refit and not self.validation_share:
            raise ValueError(
                "refit: there is nothing to refit on with validation_share 0; raise it, or leave refit out"
            )
        if self.timeline is not None and (self.refit or self.test_path is not None):
            raise ValueError("timeline: a timeline makes its own splits; leave out refit and test_path")
        if self.columns.given and self.format not in ("auto", *HEADED):
            raise ValueError(f"columns: format {self.format} has no column names; leave out one of them")
        return self

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.columns.given, self.time_zone)

    @property
    def held_by_nodes(self) -> bool:
        """Whether nodes have their own interactions, and nobody else has any."""
        return self.name is None and self.path is None


class Collected(Keys):
    """Interactions that the server may collect for pretraining and grouping."""

    mode: CollectedMode = "users"
    """Who contributes to ``share``; users: a share of the users consents; oldest: every user gives the oldest share of
    its interactions."""
    share: ShareOrNone = 1.0
    """Share of the users, or of each user's interactions, that the server collects. 0: fully federated (no interaction
    leaves a device), which needs pretraining.source: devices."""


class Pretraining(Keys):
    """Stage 1, pretraining of the item tables; see docs/method.md and docs/nothing-collected.md."""

    model: Literal["lightgcn", "matrix-factorization", "spectral"] = "lightgcn"
    """Model of stage 1; spectral: tables from sums over users (:mod:`fl_peel.pretraining.spectral`), without
    gradients.
    """
    source: Literal["collected", "devices"] = "collected"
    """Interactions that the sums of spectral run over; collected: those that the server collected; devices: those of
    all devices, which never leave them. With devices, what is collected initializes the passes."""
    columns: int | None = Field(512, ge=1, le=WIDEST, json_schema_extra=unit("columns"))
    """Rank K of the eigendecomposition, spectral only; null: 128, 256 or 512, chosen by devices on their validation
    items, of those by which passes open at most one number of a row for every three items."""
    passes: int = Field(6, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("passes"))
    """Power iterations of spectral (products with R~^T R~), each one round over all devices."""
    user_exponent: float = Field(0.3, ge=0, le=1, json_schema_extra=unit("exponent"))
    """Exponent a of the normalized matrix R~ = D_u^-a R D_i^-b, spectral only: larger values reduce the weight of
    active users' interactions. With 0 all owners of an item add alike, and its sum tells none from another (see
    docs/privacy.md)."""
    item_exponent: float = Field(0.5, ge=0, le=1, json_schema_extra=unit("exponent"))
    """Exponent b of R~: larger values reduce the weight of interactions with popular items."""
    count_exponent: float | None = Field(None, ge=0, le=1, json_schema_extra=unit("exponent"))
    """Exponent of the item counts in the scores, spectral only; null: chosen by devices on their validation items."""
    value_exponent: float | None = Field(None, ge=0, json_schema_extra=unit("exponent"))
    """Exponent of the eigenvalues, the shape of the spectral filter: 0 weights all columns equally, larger values the
    leading ones; null: chosen by devices on their validation items."""
    filter_devices: int = Field(1000, ge=1, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Number of devices, approximately, that choose the columns and exponents left at null."""
    group_columns: int = Field(128, ge=1, le=WIDEST, json_schema_extra=unit("columns"))
    """Number of leading columns in which users are clustered, spectral only."""
    sum_bits: Literal[32, 64] = Field(64, json_schema_extra=unit("bits"))
    """Word size of the sums that devices send; 32: fixed-point units as fine as the number of devices allows."""
    open_rounds: int = Field(3, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds of the fleet's clock for which a step of spectral with source: devices stays open, so that devices that
    are offline at first can still answer."""
    deadline_s: float | None = Field(None, gt=0, json_schema_extra=unit("s"))
    """Deadline of a device's answer to a step, in virtual seconds from when it takes part; null: the server waits for
    all."""
    embedding_dim: int = Field(64, ge=1, le=WIDEST, json_schema_extra=unit("dimensions"))
    """Dimension of the user and item embeddings. The full table takes four bytes per number, so relative budgets scale
    with it."""
    num_layers: int = Field(3, ge=0, le=MOST_LISTED, json_schema_extra=unit("layers"))
    """Number of graph convolution layers of lightgcn; matrix-factorization has none."""
    loss: Literal["sampled-softmax", "bpr"] = "sampled-softmax"
    """Training loss; sampled-softmax: against the negatives of the whole batch; bpr: pairwise."""
    epochs: int = Field(80, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("epochs"))
    """Number of training epochs. On Gowalla 80 epochs give better validation recall than 40 (docs/method.md)."""
    batch_size: int = Field(2048, ge=1, le=MOST_DEVICES, json_schema_extra=unit("users"))
    """Users in a training step, each with all of its collected items."""
    learning_rate: float = Field(0.03, gt=0, json_schema_extra=unit("step size"))
    """Initial learning rate of Adam, per step; it falls linearly to zero over the epochs."""
    l2: float = Field(0.2, ge=0, json_schema_extra=unit("weight"))
    """Weight of the squared norms of the layer-0 rows in the loss."""
    l2_exponent: float = Field(1.0, ge=0, json_schema_extra=unit("exponent"))
    """Exponent of a row's interaction count in its penalty: 1 penalizes each interaction equally, 0 each row equally.
    """
    num_negatives: int = Field(4096, ge=0, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Number of negative items; sampled-softmax: per step, shared by its users, 0 for all items; bpr: per interaction.
    """
    temperature: float = Field(0.25, gt=0, json_schema_extra=unit("divisor of logits"))
    """Temperature of the softmax: logits are dot product / temperature."""
    user_weight_exponent: float = Field(1.0, ge=0, json_schema_extra=unit("exponent"))
    """Exponent of a user's interaction count in its weight in the loss; 0: users count equally; 1: interactions count
    equally."""
    initialization: Literal["spectral", "normal"] = "spectral"
    """Initial tables; spectral: truncated SVD; normal: Gaussian noise of standard deviation 0.1 / sqrt(embedding_dim).
    """
    initial_norm: float = Field(1.0, gt=0, json_schema_extra=unit("length"))
    """Mean norm of the initial layer-0 item rows."""
    diversity_form: DiversityForm = "axes"
    """What keeps the slices of an item different; axes: where there are several, each user group's table is turned onto
    its principal axes after training, which changes no score and puts columns in the order of what they add to the
    group's scores; none; or a regularizer: cosine, which is bounded; distance, the paper's, which is unbounded. Tables
    of spectral are on such axes in any case."""
    diversity_weight: float = Field(0.0, ge=0, json_schema_extra=unit("weight"))
    """Weight of that regularizer in the loss; 0: no regularizer."""
    diversity_slices: int = Field(4, ge=1, le=WIDEST, json_schema_extra=unit("slices"))
    """Number of slices that the regularizer compares, a divisor of embedding_dim."""
    collected: Collected = Collected()

    @model_validator(mode="after")
    def _losses(self) -> Pretraining:
        if self.loss == "bpr" and self.num_negatives < 1:
            raise ValueError("num_negatives: bpr needs at least 1; 0 (all items) is for sampled-softmax")
        if self.diversity_weight and (self.diversity_form in ("axes", "none") or self.diversity_slices == 1):
            raise ValueError(
                f"diversity_weight {self.diversity_weight:g} has no effect with diversity_form {self.diversity_form} "
                f"and {self.diversity_slices} diversity_slices; set cosine or distance and 2 or more slices, or the "
                "weight to 0"
            )
        return self

    @model_validator(mode="after")
    def _source(self) -> Pretraining:
        if self.source == "devices" and self.model != "spectral":
            raise ValueError(
                f"source: devices needs model: spectral; {self.model} is trained on collected interactions"
            )
        if self.sum_bits != 64 and not self.by_devices:
            raise ValueError("sum_bits applies to sums from devices; set source: devices, or leave it out")
        if not self.collected.share and not self.by_devices:
            raise ValueError(
                "collected.share: 0 leaves the server no interactions to train on; set model: spectral and source: "
                "devices"
            )
        return self

    @property
    def by_devices(self) -> bool:
        return self.model == "spectral" and self.source == "devices"

    def config(self) -> PretrainingConfig:
        """How tables are trained by gradients; of spectral, how a rival's are."""
        keys = self.model_dump(
            exclude={"collected", "diversity_slices", "source", "deadline_s", "open_rounds", *_SPECTRAL}
        )
        if self.model == "spectral":
            keys["model"] = "lightgcn"
        return PretrainingConfig(**keys, num_slices=self.diversity_slices)

    def spectral(self) -> SpectralConfig:
        """How tables are made of sums."""
        *fewer, columns = COLUMNS if self.columns is None else (self.columns,)
        keys = self.model_dump(include=set(_SPECTRAL)) | {"columns": columns}
        return SpectralConfig(**keys, fewer=tuple(fewer))


_SPECTRAL = tuple(
    field.name for field in fields(SpectralConfig) if field.name not in ("fewer", "oversampling", "num_threads")
)


class UserGroupsPart(Keys):
    """User groups: clusters of users found by k-means on the embeddings of the collected users."""

    count: int = Field(16, ge=1, le=MOST_DEVICES, json_schema_extra=unit("user groups"))
    """Number of user groups, each with its own item table and block order; shipped scenarios have 60 to 120 devices per
    group."""
    min_size: int = Field(8, ge=1, le=MOST_DEVICES, json_schema_extra=unit("users"))
    """Smallest number of users in a group; a group of one would reveal its member."""
    neighbour_weight: float = Field(0.1, ge=0, json_schema_extra=unit("weight"))
    """Weight of the users' neighbours in each group's initial table; 0: a copy of the global table."""
    neighbour_ridge: float = Field(0.01, gt=0, json_schema_extra=unit("share"))
    """Ridge penalty of that regression, as a share of the mean squared user embedding."""


class Blocks(Keys):
    """Blocks of the item table, the units that devices store and exchange: item groups x slices."""

    item_groups: ItemGroupKind = "single"
    """Grouping of the items; contiguous: by item number, as in the paper; popularity: popularity tiers;
    interest-popularity: clusters within popularity tiers; single: one item per group."""
    count: int = Field(20, ge=1, le=MOST_ITEMS, json_schema_extra=unit("item groups"))
    """Number of item groups, for every kind but single."""
    num_tiers: int = Field(4, ge=1, le=MOST_ITEMS, json_schema_extra=unit("tiers"))
    """Number of popularity tiers of interest-popularity."""
    num_slices: int = Field(1, ge=1, le=WIDEST, json_schema_extra=unit("slices"))
    """Number of slices of the embedding dimensions, a divisor of pretraining.embedding_dim."""
    precision: Precision = "int8"
    """Number format of the blocks that devices download and store: fp32, fp16, int8 or int4."""


class ControllerPart(Keys):
    """Controller: the network that turns block features into weights; see docs/method.md."""

    features: tuple[FeatureName, ...] = Field(
        ("exposure", "popularity", "global-popularity", "loss", "energy"), min_length=1
    )
    """Input features of the network, one value each per block; the first one is the order that it starts from."""
    hidden: tuple[Annotated[int, Field(ge=1, le=WIDEST_LAYER)], ...] = Field(
        (16, 16), max_length=16, json_schema_extra=unit("units")
    )
    """Widths of the hidden layers. Keep them small: a few hundred parameters in all cannot overfit."""
    steps: int = Field(20, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("steps"))
    """Number of Adam steps per round."""
    learning_rate: float = Field(0.01, gt=0, json_schema_extra=unit("step size"))
    """Learning rate of those Adam steps."""
    weight_decay: float = Field(0.01, ge=0, json_schema_extra=unit("weight"))
    """Weight decay of the network's weights, per step."""
    signal_momentum: float = Field(0.5, ge=0, le=1, json_schema_extra=unit("share"))
    """Weight of the signals of earlier rounds in the next round (exponential moving average)."""
    every: int = Field(1, ge=1, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds between two updates of the controller; devices send validation signals in those rounds."""
    list_length: int = Field(50, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Length of the top list in which a device looks for its validation items."""

    @model_validator(mode="after")
    def _distinct(self) -> ControllerPart:
        check_distinct("features", self.features)
        return self

    @property
    def signal_length(self) -> int:
        """The same where signals are sent: recall@20 is told with them."""
        return max(self.list_length, 20)

    def config(self) -> ControllerConfig:
        """The method's own value."""
        return ControllerConfig(**self.model_dump(exclude={"every", "list_length"}))


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
    """Rounds between comparisons; null: one comparison after the last round. The rounds end with the first comparison
    by which no group has accepted anything and devices have gained nothing on average."""
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


# ---- Keys of privacy, secure aggregation and poisoning


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
