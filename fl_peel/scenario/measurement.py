"""Keys of what is measured in the end, and of the engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from fl_peel.blocks.settings import Precision
from fl_peel.errors import ScenarioError, shortened
from fl_peel.scenario.base import (
    MOST_DEVICES,
    MOST_ITEMS,
    MOST_LISTED,
    MOST_NODES,
    MOST_ROUNDS,
    Keys,
    Share,
    Text,
    check_distinct,
    unit,
)
from fl_peel.scenario.method import Selector
from fl_peel.training.settings import check_device_name


def _device(name: str) -> str:
    try:
        return check_device_name(name)
    except ScenarioError as error:
        raise ValueError(str(error)) from error


Device = Annotated[str, AfterValidator(_device)]


class Evaluation(Keys):
    """Final evaluation on the test items."""

    top_n: int = Field(20, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Length N of the recommendation list in Recall@N and NDCG@N."""
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
        check_distinct("budgets", self.budgets)
        check_distinct("precisions", self.precisions)
        check_distinct("selectors", self.selectors)
        return self


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
