"""The Scenario and its parts: typed, validated, unknown keys refused, errors name the key's path; and the keys of what
is measured in the end, and of the engine.

A scenario is one YAML file (see ``simulations/scenarios``). Each option is documented under its field. The value
classes of the method (:class:`fl_peel.scenario.settings.LocalTraining` and so on) are built from these.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from fl_peel.errors import ScenarioError, shortened
from fl_peel.scenario.base import (
    MOST_DEVICES,
    MOST_ITEMS,
    MOST_LISTED,
    MOST_NODES,
    MOST_ROUNDS,
    Keys,
    OneOf,
    Share,
    Text,
    check_distinct,
    check_path,
    unit,
)
from fl_peel.scenario.method import (
    Blocks,
    ControllerPart,
    Data,
    Poisoning,
    Pretraining,
    Privacy,
    Refinement,
    Robust,
    SecureAggregation,
    Selector,
    UserGroupsPart,
)
from fl_peel.scenario.settings import STAGES, Precision, check_device_name


def _device(name: str) -> str:
    try:
        return check_device_name(name)
    except ScenarioError as error:
        raise ValueError(str(error)) from error


Device = Annotated[str, AfterValidator(_device)]


Length = Annotated[int, Field(ge=1, le=MOST_ITEMS)]


class Evaluation(Keys):
    """Final evaluation on the test items."""

    top_n: int = Field(20, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Length N of the recommendation list in Recall@N and NDCG@N."""
    cutoffs: tuple[Length, ...] = Field((), max_length=MOST_LISTED, json_schema_extra=unit("items"))
    """Lengths of further lists, for recall, NDCG, MRR, hit rate, precision and coverage in report.json and metrics.csv;
    the last four are reported for top_n, too. See docs/reports.md."""
    budgets: tuple[Share, ...] = Field((0.01, 0.025, 0.05, 0.1, 0.25), max_length=MOST_LISTED)
    """Memory budgets to evaluate, as shares of the fp32 full item table."""
    precisions: tuple[Precision, ...] = ()
    """Block precisions to evaluate; empty: that of blocks.precision."""
    selectors: tuple[Selector, ...] = Field(("exposure", "popularity"), max_length=MOST_LISTED)
    """Selectors, that is orders of the blocks, to evaluate."""
    full_tables: bool = True
    """Whether the full fp32 tables are evaluated too: the global table and the refined group tables."""
    artifacts: int = Field(3, ge=0, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Number of devices whose stored embeddings are written to the output folder."""
    bootstrap: int = Field(1000, ge=0, le=100_000, json_schema_extra=unit("replicates"))
    """Bootstrap replicates for intervals over devices, see docs/statistics.md; 0: no intervals."""
    per_device: bool = False
    """Whether the figures of every device are written to per-device.parquet in the output folder; in simulation only.
    """

    @field_validator("budgets", mode="before")
    @classmethod
    def _listed(cls, budgets: object) -> object:
        if isinstance(budgets, str):
            raise ValueError(
                f"{shortened(repr(budgets), 60)} is not a list of shares of the full table; write e.g. [1%, 5%]"
            )
        return budgets

    @model_validator(mode="after")
    def _rows_are_distinct(self) -> Evaluation:
        check_distinct("cutoffs", self.cutoffs)
        check_distinct("budgets", self.budgets)
        check_distinct("precisions", self.precisions)
        check_distinct("selectors", self.selectors)
        return self

    @property
    def list_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({self.top_n, *self.cutoffs}))


class Fairness(Keys):
    """Quality per device class, compared with systems whose tables are not elastic; see docs/heterogeneity.md."""

    tiers: tuple[Share, ...] = Field((0.0025, 0.01, 0.05, 0.25), max_length=MOST_LISTED)
    """Fixed table sizes, as shares of the full table; each class gets the size that is best for it on validation."""
    exclude_below: Share | None = None
    """Budget share below which devices are left out of a second refinement, for comparison; null: no second refinement.
    """


class Elasticity(Keys):
    """Behaviour of trained tables when budgets change; see docs/heterogeneity.md."""

    rounds: int = Field(6, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds after the last one for which devices are followed, at every step of the fleet's clock; 0: devices are not
    followed."""
    devices: int = Field(2000, ge=1, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Number of devices that are followed, drawn by the seed; all of them where there are fewer."""
    falls: tuple[Share, ...] = Field((1.0, 0.5, 0.25, 0.1, 0.05), max_length=MOST_LISTED)
    """Factors by which all budgets are multiplied at once after the last round."""
    trained_for: tuple[Share, ...] = Field((), max_length=MOST_LISTED)
    """Those of these factors for which a second refinement runs with all budgets reduced, for comparison."""


class Engine(Keys):
    """Settings of the simulation engine. None of them changes a result, except that ``device`` changes how figures are
    rounded."""

    backend: Literal["auto", "embedded", "ray"] = "auto"
    """What hosts the nodes: worker processes of this machine, or Flower's engine on Ray. auto: Ray where there is a
    ray_address, or several GPUs for device cuda; else this machine."""
    nodes: int = Field(2, ge=1, le=MOST_NODES, json_schema_extra=unit("nodes"))
    """Number of Flower nodes; of n nodes, each hosts every n-th device."""
    cpus_per_node: int = Field(1, ge=1, le=MOST_NODES, json_schema_extra=unit("processors"))
    """Processors reserved for a node; as many nodes work at a time as the machine has room for."""
    reply_timeout_s: float = Field(1800, gt=0, json_schema_extra=unit("s"))
    """Time after which a node that has not answered counts as failed for that round."""
    patience_s: float = Field(600, gt=0, json_schema_extra=unit("s"))
    """Time that a deployment waits for a lost node in steps that need all nodes; rounds go on without it."""
    ray_address: Text | None = None
    """Address of a running Ray cluster; null: none is used."""
    device: Device = "cpu"
    """Processor that trains, ranks and pretrains: cpu, cuda, cuda:N; torch-cpu runs the GPU's code on the processor,
    slowly, for tests (pretraining is then on cpu)."""

    @model_validator(mode="after")
    def _backend_fits_address(self) -> Engine:
        if self.backend == "embedded" and self.ray_address is not None:
            raise ValueError(
                "ray_address names a Ray cluster, which backend embedded does not use; leave one of them out"
            )
        return self


Stage = Annotated[str, AfterValidator(STAGES.check), OneOf(STAGES)]

# ---- The scenario


class Scenario(Keys):
    """All settings of a run, except for the folders of the data and of the results."""

    name: Text
    """Name of the scenario in reports; default: the file's own name."""
    question: Text = ""
    """Question that the scenario answers, in one sentence."""
    seed: int = Field(0, ge=0, le=2**64 - 1, json_schema_extra=unit("seed"))
    """Seed of all randomness of a run: the same seed gives the same figures, to the last digit."""
    data: Data
    pretraining: Pretraining = Pretraining()
    user_groups: UserGroupsPart = UserGroupsPart()
    blocks: Blocks = Blocks()
    selector: Selector = "exposure"
    """Selector that ranks the blocks, in refinement too: a fixed order, or the controller, which is learned."""
    controller: ControllerPart = ControllerPart()
    refinement: Refinement = Refinement()
    fleet: str | tuple[str, ...] = "default"
    """Fleet of device profiles: the name of a shipped fleet, or YAML files."""
    budget_factor: float = Field(1.0, gt=0, le=1, json_schema_extra=unit("factor"))
    """Factor by which all budgets of the fleet are multiplied."""
    evaluation: Evaluation = Evaluation()
    fairness: Fairness = Fairness()
    elasticity: Elasticity = Elasticity()
    privacy: Privacy = Privacy()
    secure_aggregation: SecureAggregation = SecureAggregation()
    poisoning: Poisoning = Poisoning()
    stages: tuple[Stage, ...] = Field((), max_length=MOST_LISTED, exclude_if=lambda names: not names)
    """Stages of installed packages that the run has besides its own, see docs/how-to/extend.md."""
    engine: Engine = Engine()

    @field_validator("fleet", mode="before")
    @classmethod
    def _named(cls, fleet: object) -> object:
        if not isinstance(fleet, (str, list, tuple)):
            raise ValueError("is the name of a fleet or a YAML file; write e.g. fleet: phones")
        return fleet

    @field_validator("data", mode="before")
    @classmethod
    def _given(cls, data: object) -> object:
        if isinstance(data, str):
            raise ValueError(f"needs keys; write data: {{path: {data}}} for a file, or data: {{name: ml-100k}}")
        return data

    @field_validator("fleet")
    @classmethod
    def _fleet(cls, fleet: str | tuple[str, ...]) -> str | tuple[str, ...]:
        entries = (fleet,) if isinstance(fleet, str) else fleet
        if not 0 < len(entries) <= MOST_LISTED:
            raise ValueError(f"names {len(entries)} fleets; give 1 to {MOST_LISTED}")
        for entry in entries:
            check_path(entry)
        return fleet

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
    def _excluded(self) -> Scenario:
        below, least = self.fairness.exclude_below, self.refinement.min_budget_share
        if below is not None and below < least:  # both are the same where the run refines without them
            raise ValueError(
                f"fairness.exclude_below: {below:g} is below refinement.min_budget_share {least:g}, so that the "
                "comparison would include more devices; raise it, or leave it out"
            )
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
    def _stage1(self) -> Scenario:
        pretraining = self.pretraining
        if self.privacy.noised and pretraining.by_devices and pretraining.sum_bits == 32:
            raise ValueError("pretraining.sum_bits has no bound that allows for noise; leave it out under a mechanism")
        chooses = pretraining.model == "spectral" and pretraining.spectral().chooses
        if self.privacy.noised and pretraining.by_devices and pretraining.columns is None:
            raise ValueError("pretraining.columns: more columns have more noise; under a mechanism set their number")
        if self.privacy.noised and chooses and not pretraining.by_devices:
            raise ValueError(
                "pretraining.source: collected lets devices choose the filter in the clear; under a mechanism set "
                "pretraining.columns, count_exponent and value_exponent, or source: devices"
            )
        return self

    @model_validator(mode="after")
    def _stages(self) -> Scenario:
        check_distinct("stages", self.stages)
        if self.stages and self.data.timeline is not None:
            raise ValueError("stages: a timeline has none but its own; leave them out")
        if self.stages and self.privacy.noised and not self.pretraining.by_devices:
            raise ValueError(
                "stages have a share of the noise of stage 1 under a mechanism; set pretraining.source: devices"
            )
        return self

    @model_validator(mode="after")
    def _held_by_nodes(self) -> Scenario:
        if not self.data.held_by_nodes:
            return self
        if not self.pretraining.by_devices or self.pretraining.collected.share:
            raise ValueError(
                "data.catalogue: without name and path no interaction leaves a device; set pretraining.model: "
                "spectral, source: devices and collected.share: 0"
            )
        if self.evaluation.per_device or self.poisoning.largest_share > 0:
            raise ValueError(
                "evaluation.per_device, poisoning: are for simulations, which have all interactions; leave them out, "
                "or give data.name or data.path"
            )
        return self

    @model_validator(mode="after")
    def _refit(self) -> Scenario:
        if self.data.refit and self.privacy.noised:
            raise ValueError("data.refit runs both stages twice and so spends epsilon twice; leave it out under noise")
        if self.data.refit and self.poisoning.largest_share > 0:
            raise ValueError(
                "data.refit: malicious devices would choose the settings of the refit; leave it out with poisoning"
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
            raise ValueError(
                "poisoning: malicious devices do not implement clipping per block; set privacy.clipping.kind flat"
            )
        if self.poisoning.compare and self.privacy.noised:
            raise ValueError(
                "poisoning.compare refines once more and so spends epsilon twice; leave it out under noise"
            )
        lies = self.poisoning.kind != "idle" or self.refinement.aggregation.robust != Robust()
        if self.privacy.noised and self.poisoning.share > 0 and lies:
            raise ValueError(
                "poisoning.share: the effect of malicious devices is measured by refining once more without them, "
                "which spends epsilon twice; set 0 under noise"
            )
        return self

    @property
    def counts_owners(self) -> bool:
        """Whether devices count the owners of rows before each round of refinement."""
        return self.secure_aggregation.enabled and self.privacy.counts_contributors

    @property
    def compares(self) -> bool:
        """Whether devices decide about acceptance: nothing hides their comparison, and none is malicious."""
        hidden = self.privacy.sums_only or self.secure_aggregation.enabled or self.poisoning.largest_share > 0
        wanted = self.refinement.acceptance.rule == "validation" and self.refinement.rounds > 0
        return wanted and not hidden and self.data.validation_share > 0

    def shown_bytes(self, num_items: int) -> int:
        """Return the bytes in which a node says which items its devices' lists have, a bit each; 0 where devices say
        bounded or masked sums alone, and coverage is not known.
        """
        return 0 if self.privacy.sums_only or self.secure_aggregation.enabled else -(-num_items // 8)

    def to_yaml(self) -> str:
        """Return the resolved scenario as YAML, with the value of every key."""
        content = json.loads(self.model_dump_json())
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if (
            yaml.safe_load(text) != content
        ):  # a character that only survives escaped, such as U+0085, a line end to YAML
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=False)
        return text

    def to_json(self) -> str:
        """Return one line of JSON, the form in which it is sent to nodes."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str) -> Scenario:
        return Scenario.model_validate_json(text)
