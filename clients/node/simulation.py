"""Whether a node stands for devices that are simulated: only there may noise come from a seed, and only there may a
message name folders and files, as the node shares its machine with the server. Any other node opens the paths of its
own configuration alone.

Flower's simulation runs its nodes as Ray workers, a SuperNode does not; Flower tells a ClientApp no other difference.
Whoever starts a SuperNode for a rehearsal says so: ``--node-config 'partition-id=0 num-partitions=2 simulated=true'``.
No message can set it: the server is not asked.
"""

from __future__ import annotations

import logging
import sys

from flwr.app import Context
from pydantic import BaseModel

from fl_peel.errors import EngineError, FlPeelError, MessageError, ScenarioError
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import NodeError

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


# ---- Errors that a node reports to the server


logger = logging.getLogger("fl_peel")
NODE_CONFIG = "node config"
USUAL_PLACES = {"ProfileError": "fleet", "DataError": "data"}
"""Keys that errors of these classes are about, where they name another place."""


def node_error(mistake: FlPeelError, *, whole: bool) -> NodeError:
    """Return the part of an error that leaves the node: its class and the key it is about. Its line goes too where it
    is ``whole``, is public, or is about the message itself; any other line is for the node's own log.
    """
    code, line = type(mistake).__name__, str(mistake)
    if whole or mistake.public or isinstance(mistake, MessageError):
        return NodeError(code, _place(code, line), line)
    logger.error("%s: %s", code, line)
    return NodeError(code, _place(code, line))


def _place(code: str, line: str) -> str:
    """The key that a line begins with, as lines do."""
    first = line.partition(":")[0]
    if first.startswith(NODE_CONFIG):
        return NODE_CONFIG
    return first if _is_key(first) else USUAL_PLACES.get(code, "")


def _is_key(text: str) -> bool:
    """Whether a scenario has a key of this name, with dots where it is in a part of it."""
    model: object = Scenario
    for name in text.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields):
            return False
        model = model.model_fields[name].annotation
    return True
