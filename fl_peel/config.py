"""The Scenario and its parts: typed, validated, unknown keys refused, errors name the key's path.

A scenario is one YAML file (see ``simulations/scenarios``). Each option is documented under its field. The value
classes of the method (:class:`fl_peel.local_training.LocalTraining` and so on) are built from these.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fl_peel.controller import ControllerConfig, FeatureName
from fl_peel.errors import ScenarioError
from fl_peel.grouping import ItemGroupKind
from fl_peel.interactions import CollectedMode, SplitOrder
from fl_peel.local_training import LocalLoss, LocalTraining
from fl_peel.losses import DiversityForm
from fl_peel.precision import Precision
from fl_peel.pretraining import PretrainingConfig
from fl_peel.processor import check_device_name
from fl_peel.readers import DataFormat
from fl_peel.selectors import check_selector


def _share(value: Any) -> Any:
    """Read ``1%`` as 0.01; numbers stay."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError as error:
            raise ValueError(f"{value!r} is not a percentage; write e.g. 1%") from error
    return value


def _selector(name: str) -> str:
    try:
        return check_selector(name)
    except ScenarioError as error:
        raise ValueError(str(error)) from error


def _device(name: str) -> str:
    try:
        return check_device_name(name)
    except ScenarioError as error:
        raise ValueError(str(error)) from error


Device = Annotated[str, AfterValidator(_device)]
Selector = Annotated[str, AfterValidator(_selector)]
Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]
PartShare = Annotated[float, BeforeValidator(_share), Field(ge=0, lt=1)]


class Part(BaseModel):
    """A part of a scenario: immutable, strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Part):
    """Which interactions, and how each user's are split."""

    name: str | None = None
    """A named data set (``fl-peel data list``)."""
    path: str | None = None
    """Or a file or folder of your own."""
    format: DataFormat = "auto"
    """Of ``path``."""
    test_path: str | None = None
    """The given test file that belongs to ``path``, if any."""
    min_rating: float | None = None
    """Keep interactions with at least this rating; null keeps all."""
    split_order: SplitOrder = "auto"
    """time: newest to test; random; auto: time where there are timestamps."""
    validation_share: PartShare = 0.1
    """Of each user's interactions that are not test."""
    test_share: PartShare = 0.2
    """Of each user's interactions, unless the source gives a test part."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.name is None) == (self.path is None):
            raise ValueError("give either name (a named data set) or path (a file of your own)")
        return self


class Collected(Part):
    """Whose train interactions the server may see for pretraining and grouping."""

    mode: CollectedMode = "users"
    """users: a share of the users consents; oldest: every user gives the oldest share of its interactions."""
    share: Share = 1.0


class Pretraining(Part):
    """Stage 1 on the server; see :class:`fl_peel.pretraining.PretrainingConfig` for each field."""

    model: Literal["lightgcn", "matrix-factorization"] = "lightgcn"
    embedding_dim: int = Field(64, ge=1)
    num_layers: int = Field(3, ge=0)
    loss: Literal["sampled-softmax", "bpr"] = "sampled-softmax"
    epochs: int = Field(80, ge=0)
    batch_size: int = Field(2048, ge=1)
    learning_rate: float = Field(0.03, gt=0)
    l2: float = Field(0.2, ge=0)
    l2_exponent: float = Field(1.0, ge=0)
    num_negatives: int = Field(4096, ge=0)
    temperature: float = Field(0.25, gt=0)
    similarity: Literal["dot", "cosine"] = "dot"
    popularity_correction: float = Field(0.0, ge=0, le=1)
    user_weight_exponent: float = Field(1.0, ge=0)
    initialization: Literal["spectral", "normal"] = "spectral"
    initial_norm: float = Field(1.0, gt=0)
    diversity_form: DiversityForm = "cosine"
    diversity_weight: float = Field(0.0, ge=0)
    diversity_slices: int = Field(4, ge=1)
    """Slices between which the regularizer acts (a divisor of embedding_dim)."""
    collected: Collected = Collected()

    def config(self) -> PretrainingConfig:
        """The method's own value."""
        fields = self.model_dump(exclude={"collected", "diversity_slices"})
        return PretrainingConfig(**fields, num_slices=self.diversity_slices)


class UserGroupsPart(Part):
    """K-means on the user embeddings of the collected users."""

    count: int = Field(16, ge=1)
    min_size: int = Field(8, ge=1)
    """No group is smaller: with one member, a group would reveal it."""
    neighbour_weight: float = Field(0.1, ge=0)
    """How much of its users' neighbours each group's table starts with; 0: a copy of the global table."""
    neighbour_ridge: float = Field(0.01, gt=0)
    """Ridge of that regression, as a share of the mean squared user embedding."""


class Blocks(Part):
    """Item groups x slices."""

    item_groups: ItemGroupKind = "single"
    """contiguous (as the authors), popularity tiers, interest-popularity, single (one item a group)."""
    count: int = Field(20, ge=1)
    """Item groups, for every kind but single."""
    num_tiers: int = Field(4, ge=1)
    """Popularity tiers of interest-popularity."""
    num_slices: int = Field(1, ge=1)
    """A divisor of pretraining.embedding_dim."""
    precision: Precision = "int8"
    """Of the blocks that devices are sent and keep: fp32, fp16, int8, int4."""


class ControllerPart(Part):
    """The network that turns block features into weights; see :class:`fl_peel.controller.ControllerConfig`."""

    features: tuple[FeatureName, ...] = Field(
        ("shown", "popularity", "global-popularity", "loss", "energy"), min_length=1
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (16, 16)
    steps: int = Field(20, ge=0)
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    memory: float = Field(0.5, ge=0, le=1)
    every: int = Field(1, ge=1)
    """Rounds between outer steps: devices send validation signals in every such round."""
    list_length: int = Field(50, ge=1)
    """Length of the top list in which a device looks for its validation items."""

    def config(self) -> ControllerConfig:
        """The method's own value."""
        return ControllerConfig(**self.model_dump(exclude={"every", "list_length"}))


class Local(Part):
    """What a device does in a round; see :class:`fl_peel.local_training.LocalTraining`."""

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(64, ge=1)
    num_negatives: int = Field(128, ge=1)
    learning_rate: float = Field(0.05, gt=0)
    user_learning_rate: float = Field(0.003, ge=0)
    l2: float = Field(0.0, ge=0)
    loss: LocalLoss = "sampled-softmax"
    temperature: float | None = Field(None, gt=0)
    """Of the logits; null takes the one of pretraining, so that the scale of scores stays."""

    def config(self, pretraining_temperature: float) -> LocalTraining:
        """The method's own value."""
        fields = self.model_dump()
        if fields["temperature"] is None:
            fields["temperature"] = pretraining_temperature
        return LocalTraining(**fields)


class Robust(Part):
    """What bounds the influence of devices that lie; see docs/poisoning.md. Defaults: nothing."""

    norm_bound: float | None = Field(None, gt=0)
    """L2 bound of a device's whole update, held by its node: against devices that lie to an honest node."""
    rule: Literal["mean", "median", "trimmed-mean", "krum"] = "mean"
    """Over the sums of sub-cohorts, row by row; krum: over those of the sub-cohorts that lie closest together. Against
    devices whose own node lies too, and bounds nothing; the server sees smaller sums.
    """
    buckets: int = Field(16, ge=3)
    """Sub-cohorts of a user group, into which devices are hashed; with every rule but mean."""
    trim: Annotated[float, BeforeValidator(_share), Field(ge=0, lt=0.5)] = 0.2
    """trimmed-mean: share of the sub-cohorts that is left out at either end; krum: share that may be poisoned."""

    @property
    def in_buckets(self) -> bool:
        """Whether nodes return sums of sub-cohorts."""
        return self.rule != "mean"


class Aggregation(Part):
    """How the server turns block updates into a new group table."""

    denominator: Literal["holders", "touched"] = "touched"
    """Mean over the devices that held the block (FedAvg), or over those that changed the row."""
    optimizer: Literal["sgd", "adam", "adagrad"] = "sgd"
    """On the mean update (Reddi et al., ICLR 2021)."""
    learning_rate: float = Field(1.0, gt=0)
    robust: Robust = Robust()


class Refinement(Part):
    """Stage 2: federated rounds."""

    rounds: int = Field(8, ge=0)
    cohort_share: Share = 1.0
    """Share of the devices sampled in each round; those that are not available then do not answer."""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """fixed: that share exactly; poisson: each device by its own coin, which privacy accounting by sampling needs."""
    over_selection: float = Field(0.0, ge=0, le=10)
    """Extra devices sampled, as a share of the cohort, to make up for those that do not answer in time."""
    deadline_s: float | None = Field(None, gt=0)
    """Virtual seconds after which an update is too late and counts for nothing; null waits for everybody."""
    min_budget_share: PartShare = 0.0
    """Devices whose budget is below this share of the fp32 full item table do not train."""
    local: Local = Local()
    aggregation: Aggregation = Aggregation()


class Clipping(Part):
    """How a device bounds its own block update, before anything is added up; see docs/privacy.md."""

    kind: Literal["none", "flat", "per-block", "adaptive"] = "none"
    """flat: the whole update has norm ``norm`` at most; per-block: each of the K blocks sent has ``norm`` / sqrt(K);
    adaptive: flat, with a bound that follows a quantile of the norms (Andrew et al., NeurIPS 2021).
    """
    norm: float = Field(1.0, gt=0)
    """L2 (local-laplace: L1) bound of a device's update; adaptive: the bound of the first round."""
    quantile: float = Field(0.5, gt=0, lt=1)
    """adaptive: share of the devices whose update shall stay whole."""
    learning_rate: float = Field(0.2, gt=0)
    """adaptive: bound <- bound * exp(-learning_rate * (share below it - quantile)) after every round."""


class ReleaseShares(Part):
    """How one round's privacy is divided among what is released; 0 releases nothing. Normalized to sum to 1."""

    updates: float = Field(0.9, gt=0)
    signals: float = Field(0.1, ge=0)
    """Validation hits of each block, which teach the controller."""
    counts: float = Field(0.0, ge=0)
    """Which blocks' items a device has interacted with: popularity within the user group."""
    quantile: float = Field(0.02, ge=0)
    """With adaptive clipping: whether a device's update was below the bound."""


class Privacy(Part):
    """What devices hide, from whom; see docs/privacy.md. Defaults: nothing is hidden and nothing changes."""

    mechanism: str = "none"
    """none; central-gaussian: the server adds noise to the sum over a user group; local-gaussian, local-laplace: each
    device adds noise; or one that an installed package registers under ``fl_peel.mechanisms``.
    """
    target_epsilon: float | None = Field(None, gt=0)
    """User level, of the whole run; the noise follows from it."""
    delta: float = Field(1e-5, gt=0, lt=1)
    noise_multiplier: float | None = Field(None, gt=0)
    """Noise of one round relative to the bound, in place of target_epsilon or, beside it, to be checked against it."""
    clipping: Clipping = Clipping()
    signals_norm: float = Field(1.0, gt=0)
    """Bound of a device's signals in a round: L2, with local-laplace L1."""
    counts_norm: float = Field(1.0, gt=0)
    """Bound of a device's interaction counts in a round, likewise."""
    shares: ReleaseShares = ReleaseShares()
    group_epsilon: float | None = Field(None, gt=0)
    """Devices whose data was not collected answer their user group by randomized response with this epsilon."""
    colluding_devices: int = Field(1, ge=0)
    """Under secure aggregation devices add the noise, in shares: of how many in a user group none is counted on, since
    they may tell it to whoever attacks. 1: any device that looks at tables knows its own.
    """
    shrinkage: bool = True
    """The server shrinks noised updates and signals towards what it knew before, by the noise's variance."""
    rows: Literal["touched", "all-sent"] = "touched"
    """Rows of a device's update: those it changed, or all it was sent, so that nobody sees which it changed."""
    requests: Literal["own-budget", "group-prefix"] = "own-budget"
    """Blocks a device downloads: what its budget holds, or what the largest budget of the fleet holds."""
    answer_share: float | None = Field(None, gt=0, le=1)
    """Share of the rounds in which a device answers: one that is available more often, as some classes are, is silent
    in some, by a coin of its own. null: it answers whenever it can.
    """
    counters: Literal["withheld", "measured"] = "withheld"
    """Losses, validation metrics, times and bytes per class, which no mechanism noises: not sent; or reported all the
    same, as the simulation's own measurement, like the test: outside the protocol and of no effect on it.
    """

    @property
    def noised(self) -> bool:
        """Whether a mechanism adds noise."""
        return self.mechanism != "none"

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


class SecureAggregation(Part):
    """Rounds whose sums are all that the server learns of devices; see docs/secure-aggregation.md."""

    enabled: bool = False
    masked: bool = True
    """false: the same devices, dropouts and void rounds, without keys and masks: what the protocol is compared with."""
    devices_per_group: int | None = Field(64, ge=2)
    """Devices of a user group that take part in a round, drawn from the round's cohort; null takes all of it."""
    min_devices: int = Field(8, ge=3)
    """A user group of which fewer are reached sits the round out: a sum over few hides little."""
    neighbours: int = Field(12, ge=2)
    """Devices that each device shares masks and secrets with: even; all the others in a group that is no larger."""
    threshold: Share = 0.55
    """Share of a device's neighbours, and of a group's devices, that must last out a round: above one half."""
    word_bits: Literal["auto", 32, 64] = "auto"
    """Width of the words of block updates; auto: 32 where a clipping norm proves that no sum passes them, else 64."""
    dropout_share: PartShare = 0.0
    """Devices that vanish in a round after their keys are out, at a random stage: for studies of dropouts."""

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


class Poisoning(Part):
    """Devices that send what they should not; see docs/poisoning.md. Default: none do."""

    share: PartShare = 0.0
    """Of the devices, drawn by identity: those under a smaller share are among those under a larger one."""
    kind: Literal["scaled", "sign-flip", "promote", "idle"] = "scaled"
    """scaled: their update times factor; sign-flip: times -factor; promote: they train on the target items too, claim
    them as validation hits, and multiply the target items' rows by factor; idle: they do as told, to compare with.
    """
    factor: float = Field(10.0, gt=0, le=1e6)
    target_items: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Item numbers, what promote is for and what the target hit rate is of."""
    num_targets: int = Field(5, ge=1)
    """Without target_items: so many, drawn by the seed."""
    compare: tuple[Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)], ...] = ()
    """Refine anew with each of these shares, with robust aggregation and without."""

    @property
    def largest_share(self) -> float:
        """Devices that are malicious under any share of the scenario: none of them counts in recall."""
        return max((self.share, *self.compare))

    @property
    def active(self) -> bool:
        """Whether any device does what it should not."""
        return self.share > 0 and self.kind != "idle"


class Evaluation(Part):
    """What is measured in the end, on the test items."""

    top_n: int = Field(20, ge=1)
    budgets: tuple[Share, ...] = (0.01, 0.025, 0.05, 0.1, 0.25)
    """Shares of the fp32 full item table."""
    precisions: tuple[Precision, ...] = ()
    """Empty: that of blocks.precision."""
    selectors: tuple[Selector, ...] = ("controller", "popularity")
    full_tables: bool = True
    """Also the full fp32 tables, global and refined."""
    artifacts: int = Field(3, ge=0)
    """Devices whose stored embeddings are written to the output folder."""


class Fairness(Part):
    """What each device class gets, against systems whose tables are not elastic; see docs/heterogeneity.md."""

    tiers: tuple[Share, ...] = (0.0025, 0.01, 0.05, 0.25)
    """Fixed sizes, as shares of the full table; each class gets the one that is best for it on validation."""
    exclude_below: Share | None = None
    """Refine once more without the devices whose budget is below this share; null does not."""


class Elasticity(Part):
    """What happens to trained tables when budgets move; see docs/heterogeneity.md."""

    rounds: int = Field(6, ge=0)
    """Rounds after the last one for which devices are followed, at every step of the fleet's clock; 0: not at all."""
    devices: int = Field(2000, ge=1)
    """Devices followed, drawn by the seed; all where there are fewer."""
    falls: tuple[Share, ...] = (1.0, 0.5, 0.25, 0.1, 0.05)
    """Factors by which all budgets fall at once after the last round."""
    trained_for: tuple[Share, ...] = ()
    """Of these factors: refine once more with all budgets times the factor, to compare with."""


class Engine(Part):
    """How the simulation runs. Nothing here changes a result; ``device`` alone changes how figures are rounded."""

    nodes: int = Field(2, ge=1)
    """Flower nodes; each hosts every nodes-th device."""
    cpus_per_node: int = Field(1, ge=1)
    reply_timeout_s: float = Field(1800, gt=0)
    """A node that has not answered by then counts as failed for that round."""
    ray_address: str | None = None
    """An existing Ray cluster; null starts one."""
    device: Device = "cpu"
    """Where cohorts train and rank, and the server pretrains: cpu, cuda, cuda:N; torch-cpu: what a GPU would do, done
    by the processor, slowly, for tests (pretraining then is on cpu)."""


class Scenario(Part):
    """Everything that decides a run, but for the folder the data lies in and the one results go to."""

    name: str
    question: str = ""
    """What the scenario is for, in a sentence."""
    seed: int = Field(0, ge=0)
    data: Data
    pretraining: Pretraining = Pretraining()
    user_groups: UserGroupsPart = UserGroupsPart()
    blocks: Blocks = Blocks()
    selector: Selector = "controller"
    """What ranks the blocks during refinement."""
    controller: ControllerPart = ControllerPart()
    refinement: Refinement = Refinement()
    fleet: str | tuple[str, ...] = "default"
    """Device profiles: a shipped fleet or YAML files."""
    budget_factor: float = Field(1.0, gt=0, le=1)
    """All budgets of the fleet times this."""
    evaluation: Evaluation = Evaluation()
    fairness: Fairness = Fairness()
    elasticity: Elasticity = Elasticity()
    privacy: Privacy = Privacy()
    secure_aggregation: SecureAggregation = SecureAggregation()
    poisoning: Poisoning = Poisoning()
    engine: Engine = Engine()

    @model_validator(mode="after")
    def _slices(self) -> Scenario:
        dim = self.pretraining.embedding_dim
        for key, slices in (
            ("blocks.num_slices", self.blocks.num_slices),
            ("pretraining.diversity_slices", self.pretraining.diversity_slices),
        ):
            if dim % slices:
                raise ValueError(f"{key}: {slices} does not divide pretraining.embedding_dim {dim}; choose a divisor")
        return self

    @model_validator(mode="after")
    def _secure_sampling(self) -> Scenario:
        secure = self.secure_aggregation
        if secure.enabled and secure.devices_per_group is not None and self.refinement.sampling == "poisson":
            raise ValueError(
                "secure_aggregation.devices_per_group draws a fixed number of devices, which refinement.sampling: "
                "poisson does not account for; set it to null, or sampling to fixed"
            )
        return self

    @model_validator(mode="after")
    def _poisoning(self) -> Scenario:
        if self.refinement.aggregation.robust.in_buckets:
            rule = f"refinement.aggregation.robust.rule: {self.refinement.aggregation.robust.rule}"
            if self.secure_aggregation.enabled:
                raise ValueError(f"{rule} needs sums of sub-cohorts, which secure aggregation hides; set mean")
            if self.privacy.sums_only:
                raise ValueError(f"{rule} needs row counts of sub-cohorts, which privacy hides; set mean")
        if self.poisoning.largest_share > 0 and self.privacy.clipping.kind == "per-block":
            raise ValueError("poisoning: malicious devices know no clipping per block; set privacy.clipping.kind flat")
        if self.poisoning.compare and self.privacy.noised:
            raise ValueError("poisoning.compare refines anew and so spends epsilon again; leave it out under noise")
        return self

    def to_yaml(self) -> str:
        """The resolved scenario, every default spelled out."""
        content = json.loads(self.model_dump_json())
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if (
            yaml.safe_load(text) != content
        ):  # a character that only survives escaped, such as U+0085, a line end to YAML
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=False)
        return text

    def to_json(self) -> str:
        """One line of JSON, the form in which it is sent to nodes."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str) -> Scenario:
        """Read :meth:`to_json`."""
        return Scenario.model_validate_json(text)


SCENARIO_FOLDER = Path(__file__).resolve().parent.parent / "simulations" / "scenarios"
"""Where the shipped scenarios lie."""


def shipped_scenarios() -> dict[str, Path]:
    """Shipped scenarios by name."""
    return {path.stem: path for path in sorted(SCENARIO_FOLDER.glob("*.yaml"))}


def load_scenario(source: str | Path, overrides: Iterable[str] = (), *, seed: int | None = None) -> Scenario:
    """Read a scenario: a shipped name or a YAML file, changed by ``path=value`` overrides.

    Raises:
        ScenarioError: no such scenario, not YAML, or a key that is unknown, of the wrong type or out of range.
    """
    path = _find(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read ({error}); name a scenario or a YAML file") from error
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: not valid YAML ({' '.join(str(error).split())}); mend the line") from error
    if not isinstance(content, dict):
        raise ScenarioError(f"{path}: holds no mapping of keys; start from a file that `fl-peel scenarios` lists")
    content.setdefault("name", path.stem)
    for override in overrides:
        content = _with_override(content, override)
    if seed is not None:
        content["seed"] = seed
    return validated(Scenario, content, str(source))


def _find(source: str | Path) -> Path:
    shipped = shipped_scenarios()
    if str(source) in shipped:
        return shipped[str(source)]
    path = Path(source)
    if path.is_file():
        return path
    close = difflib.get_close_matches(str(source), shipped, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(shipped)} or give a YAML file"
    raise ScenarioError(f"{source}: no such scenario or file; {hint}")


def _with_override(content: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ScenarioError(f"--set {override}: expected path=value, e.g. refinement.rounds=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"--set {override}: the value is not valid YAML; quote it") from error

    def changed(node: Any, left: list[str]) -> dict[str, Any]:
        if node is not None and not isinstance(node, dict):
            raise ScenarioError(f"--set {override}: {'.'.join(keys[: -len(left)])} is a value, it has no keys")
        inner = dict(node or {})
        inner[left[0]] = value if len(left) == 1 else changed(inner.get(left[0]), left[1:])
        return inner

    return changed(content, keys)


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], content: Mapping[str, Any], place: str) -> Model:
    """Build ``model``, or raise a ScenarioError of one line that names the first bad key and the remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"][:-1])
            close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise ScenarioError(f"{place}: unknown key {path}; {hint}{more}") from error
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
        where = f"{path}: " if path else ""
        raise ScenarioError(f"{place}: {where}{message}{got}{more}") from error


def _known_keys(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
