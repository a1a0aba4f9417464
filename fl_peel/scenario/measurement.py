"""Keys of what is measured in the end, and of the engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fl_peel.blocks.settings import Precision
from fl_peel.errors import ScenarioError
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
    """What is measured in the end, on the test items."""

    top_n: int = Field(20, ge=1, le=MOST_ITEMS, json_schema_extra=unit("items"))
    """Length of the list that recall and NDCG look at."""
    budgets: tuple[Share, ...] = Field((0.01, 0.025, 0.05, 0.1, 0.25), max_length=MOST_LISTED)
    """Shares of the fp32 full item table."""
    precisions: tuple[Precision, ...] = ()
    """Empty: that of blocks.precision."""
    selectors: tuple[Selector, ...] = Field(("shown", "popularity"), max_length=MOST_LISTED)
    """Orders of the blocks that are measured beside one another."""
    full_tables: bool = True
    """Also the full fp32 tables, global and refined."""
    artifacts: int = Field(3, ge=0, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Devices whose stored embeddings are written to the output folder."""
    bootstrap: int = Field(1000, ge=0, le=100_000, json_schema_extra=unit("replicates"))
    """Replicates that intervals over devices come from, see docs/statistics.md; 0: no intervals."""
    per_device: bool = False
    """Also what every single device gets, as per-device.parquet in the output folder; in simulation only."""

    @model_validator(mode="after")
    def _rows_are_distinct(self) -> Evaluation:
        check_distinct("budgets", self.budgets)
        check_distinct("precisions", self.precisions)
        check_distinct("selectors", self.selectors)
        return self


class Fairness(Keys):
    """What each device class gets, against systems whose tables are not elastic; see docs/heterogeneity.md."""

    tiers: tuple[Share, ...] = Field((0.0025, 0.01, 0.05, 0.25), max_length=MOST_LISTED)
    """Fixed sizes, as shares of the full table; each class gets the one that is best for it on validation."""
    exclude_below: Share | None = None
    """Refine once more without the devices whose budget is below this share; null does not."""


class Elasticity(Keys):
    """What happens to trained tables when budgets move; see docs/heterogeneity.md."""

    rounds: int = Field(6, ge=0, le=MOST_ROUNDS, json_schema_extra=unit("rounds"))
    """Rounds after the last one for which devices are followed, at every step of the fleet's clock; 0: not at all."""
    devices: int = Field(2000, ge=1, le=MOST_DEVICES, json_schema_extra=unit("devices"))
    """Devices followed, drawn by the seed; all where there are fewer."""
    falls: tuple[Share, ...] = Field((1.0, 0.5, 0.25, 0.1, 0.05), max_length=MOST_LISTED)
    """Factors by which all budgets fall at once after the last round."""
    trained_for: tuple[Share, ...] = Field((), max_length=MOST_LISTED)
    """Of these factors: refine once more with all budgets times the factor, to compare with."""


class Engine(Keys):
    """How the simulation runs. Nothing here changes a result; ``device`` alone changes how figures are rounded."""

    backend: Literal["auto", "embedded", "ray"] = "auto"
    """What hosts the nodes: worker processes of this machine, or Flower's engine on Ray. auto: Ray where there is a
    ray_address, or several GPUs for device cuda; else this machine."""
    nodes: int = Field(2, ge=1, le=MOST_NODES, json_schema_extra=unit("nodes"))
    """Flower nodes; each hosts every nodes-th device."""
    cpus_per_node: int = Field(1, ge=1, le=MOST_NODES, json_schema_extra=unit("processors"))
    """Set aside for a node: as many nodes work at a time as the machine has room for."""
    reply_timeout_s: float = Field(1800, gt=0, json_schema_extra=unit("s"))
    """A node that has not answered by then counts as failed for that round."""
    patience_s: float = Field(600, gt=0, json_schema_extra=unit("s"))
    """Of a deployment: how long a node that is lost is waited for where all must answer; rounds go on without it."""
    ray_address: Text | None = None
    """An existing Ray cluster; null needs none."""
    device: Device = "cpu"
    """Where cohorts train and rank, and the server pretrains: cpu, cuda, cuda:N; torch-cpu: what a GPU would do, done
    by the processor, slowly, for tests (pretraining then is on cpu)."""

    @model_validator(mode="after")
    def _cluster_is_of_ray(self) -> Engine:
        if self.backend == "embedded" and self.ray_address is not None:
            raise ValueError("ray_address is of a cluster, and backend embedded uses none; leave one of them out")
        return self
