"""Whether a node stands for devices that are simulated: only there may noise come from a seed, and only there may a
message name folders and files, as the node shares its machine with the server. Any other node opens the paths of its
own configuration alone.

Flower's simulation runs its nodes as Ray workers, a SuperNode does not; Flower tells a ClientApp no other difference.
Whoever starts a SuperNode for a rehearsal says so: ``--node-config 'partition-id=0 num-partitions=2 simulated=true'``.
No message can set it: the server is not asked.
"""

from __future__ import annotations

import sys

from flwr.app import Context

from fl_peel.errors import EngineError, ScenarioError
from fl_peel.scenario.scenario import Scenario

KEY = "simulated"
DATA_DIR, RUN_DIR = "data-dir", "run-dir"


def is_simulated(context: Context) -> bool:
    """Whether this node's devices are."""
    ray = sys.modules.get("ray")  # whoever is a worker of it has imported it
    return context.node_config.get(KEY) is True or (ray is not None and ray.is_initialized())


def refuse_seeded_noise(scenario: Scenario, context: Context) -> None:
    """Refuse noise that whoever has the seed can subtract, where it would have to hide somebody.

    Raises:
        ScenarioError: a mechanism whose noise comes from the seed, on a node that is not simulated.
    """
    if scenario.privacy.noised and scenario.privacy.noise_source == "seed" and not is_simulated(context):
        raise ScenarioError(
            "privacy.noise_source: seed is for simulations, since anyone with the seed can subtract the noise; set "
            f"system (or start nodes whose devices are simulated with --node-config '{KEY}=true')",
            public=True,
        )


def refuse_paths(scenario: Scenario, context: Context) -> None:
    """Refuse to take part in a run that would have this node open a path which is not of its own configuration.

    Raises:
        ScenarioError: a node that is not simulated, and has no file of its own, is to read one that the scenario names.
        EngineError: such a node was started without folders of its own.
    """
    if is_simulated(context):
        return
    remedy = f"start the node with data of its own, or with --node-config '{KEY}=true' where it shares the machine"
    for key in ("path", "test_path", "catalogue"):
        if getattr(scenario.data, key) is not None:
            raise ScenarioError(
                f"data.{key}: a node opens no file that a message names, unless it is simulated; {remedy}", public=True
            )
    lacking = [key for key in (DATA_DIR, RUN_DIR) if key not in context.node_config]
    if lacking:
        raise EngineError(
            f"node config lacks {' and '.join(lacking)}, and takes none of a message; {remedy}", public=True
        )


__all__ = ["is_simulated", "refuse_paths", "refuse_seeded_noise"]
