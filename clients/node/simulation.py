"""Whether a node stands for devices that are simulated: only there may noise come from a seed.

Flower's simulation runs its nodes as Ray workers, a SuperNode does not; Flower tells a ClientApp no other difference.
Whoever starts a SuperNode for a rehearsal says so: ``--node-config 'partition-id=0 num-partitions=2 simulated=true'``.
No message can say it: the server is not asked.
"""

from __future__ import annotations

import sys

from flwr.app import Context

from fl_peel.errors import ScenarioError
from fl_peel.scenario.scenario import Scenario

KEY = "simulated"


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
            f"system (or start nodes whose devices are simulated with --node-config '{KEY}=true')"
        )


__all__ = ["is_simulated", "refuse_seeded_noise"]
