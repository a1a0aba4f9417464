"""The device side of the Flower app: unpack a message, do the work, pack the reply."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from pydantic import BaseModel, ValidationError

from clients.node import channel, evaluate, following, joining, masked
from clients.node.cohort import Cohort, OwnData, open_cohort, open_own_cohort
from clients.node.step_round import announce_step, masked_sums, step_round
from fl_peel import wire
from fl_peel.array_specs import MessageContext, check
from fl_peel.errors import EngineError, FlPeelError, MessageError, ScenarioError
from fl_peel.mmap_arrays import release_memory
from fl_peel.packages import check_one_root, code_digest
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps import STEPS
from fl_peel.wire import NodeError

# ---- What a node checks before it answers: its request, its paths, whether it is simulated
# Flower's simulation runs its nodes as Ray workers, a SuperNode does not; Flower tells a ClientApp no other
# difference. Whoever starts a SuperNode for a rehearsal says so: ``--node-config 'partition-id=0 num-partitions=2
# simulated=true'``. No message can set it: the server is not asked.


ANYTHING = MessageContext(arrays=None)


def checked(cohort: Cohort, request: object) -> None:
    """Refuse a question that its devices cannot answer: nothing has been computed or written by then. Ranked blocks are
    looked at where they are decoded, :meth:`fl_peel.blocks.ranked_blocks.RankedBlocks.unpack`.

    Raises:
        MessageError: of another shape, or with numbers out of range.
    """
    if isinstance(request, wire.StepRequest | wire.SecureStepRequest):
        step = request.step.question
        if step.name not in STEPS and step.name not in cohort.scenario.stages:
            raise MessageError(f"{type(request).__name__}: {step.name} is no stage of the scenario")
    check(request, _known(cohort, request))
    if isinstance(request, wire.JoinRequest):
        _check_join(cohort, request)
    if isinstance(request, wire.EvaluateRequest) and request.on_validation > len(request.budgets):
        raise MessageError(f"EvaluateRequest: {request.on_validation} of {len(request.budgets)} budgets on validation")
    if isinstance(request, wire.CompareRequest) and set(request.kept) != set(request.current):
        raise MessageError("CompareRequest: the user groups with a stored table are not the current ones")


def _known(cohort: Cohort, request: object) -> MessageContext:
    scenario, num_items = cohort.scenario, cohort.splits.num_items
    most_groups = max(scenario.user_groups.count, cohort.population)
    sizes = {"most groups": most_groups, "d": scenario.pretraining.embedding_dim}
    known = MessageContext(sizes, {"devices": cohort.devices})
    if isinstance(request, wire.StepRequest):
        return _of_step(cohort, request, known)
    if isinstance(request, wire.JoinRequest):
        return known.with_sizes(I=num_items)
    if isinstance(request, wire.RefreshRequest):
        groups = _some(request.groups, min(len(request.former), max(len(request.changed), 1)))
        if len(request.changed) == 1:  # one table for all
            groups = _some(request.groups, len(request.former))
        return known.with_groups(groups).with_sizes(B=cohort.layout().num_blocks)
    if isinstance(request, wire.CompareRequest):
        return known.with_groups(_some((*request.kept, *request.current), min(request.num_groups, most_groups)))
    if isinstance(request, wire.EvaluateRequest | wire.RoundRequest | wire.MovingRequest):
        return known.with_groups({wire.EVERYBODY: ANYTHING} | _some(request.groups, most_groups))
    return known


def _some(groups: Iterable[int], count: int) -> dict[int, MessageContext]:
    """Return a context for each of ``groups`` that is the number of a user group, of which there are ``count``."""
    return {group: ANYTHING for group in groups if 0 <= group < count}


def _of_step(cohort: Cohort, request: wire.StepRequest, known: MessageContext) -> MessageContext:
    step, part = request.step, (request.first, request.stop)
    if not part[0] < part[1] <= step.num_pieces:
        raise MessageError(f"StepRequest: pieces {part[0]} to {part[1]} of {step.num_pieces}")
    return MessageContext(known.sizes, known.numbers, step.sent_arrays(cohort.terms, part))


def _check_join(cohort: Cohort, request: wire.JoinRequest) -> None:
    if not np.bincount(request.item_group).all():
        raise MessageError("JoinRequest.item_group: an item group is empty")
    if not len(request.centroids):
        raise MessageError("JoinRequest.centroids: there is no user group")
    some = joining.joining(cohort, request)
    if request.first + max(request.count, 0) > len(cohort.devices):
        raise MessageError(f"JoinRequest.count: devices that do not exist, of {len(cohort.devices)}")
    if not np.isin(request.devices, cohort.devices[some]).all():
        raise MessageError("JoinRequest.devices: some of them join in another part")
    if len(request.maps) not in (0, len(request.centroids)):
        raise MessageError(f"JoinRequest.maps: {len(request.maps)} of {len(request.centroids)} user groups")
    if len(request.maps) and not len(request.item_table):
        if len(some) < len(cohort.devices):
            raise MessageError("JoinRequest.maps: all devices of a node join at once")
        return
    if request.centroids.shape[1] != cohort.scenario.pretraining.embedding_dim:
        raise MessageError(f"JoinRequest.centroids: of {request.centroids.shape[1]} columns, as no embedding is")
    if len(request.maps) and request.maps.shape[1] != request.centroids.shape[1]:
        raise MessageError(f"JoinRequest.maps: of {request.maps.shape[1]} rows, as no embedding is")
    if len(request.devices) < len(some):
        rows, wanted = len(request.item_table), cohort.splits.num_items
        if rows != wanted:
            raise MessageError(f"item_table: {rows} rows, not {wanted}")


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


app = ClientApp()
logger = logging.getLogger("fl_peel")


def _partition(context: Context) -> tuple[int, int]:
    try:
        return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    except KeyError as error:
        raise EngineError(
            f"node config lacks {error}; start the node with --node-config 'partition-id=0 num-partitions=2'"
        ) from error


Read = TypeVar("Read")


def _of_scenario(read: Callable[[str], Read], text: str) -> Read:
    """Read a part of a scenario.

    Raises:
        MessageError: the text is no scenario.
    """
    try:
        return read(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise MessageError(f"what is to be run is no scenario: {where} ({first['type']})") from None


_scenario = lru_cache(maxsize=64)(Scenario.from_json)


def _cohort(context: Context, request: Any) -> Cohort:
    """Return the cohort that the node hosts. A node started with its own data, data-dir or run-dir uses those, as real
    nodes have their own disks; one started with a profile hosts devices of that class alone. Unless it is simulated, a
    node adds no noise that would hide nobody, and opens no path that a message names.
    """
    setting: wire.RunSetting = request.setting
    scenario = _of_scenario(_scenario, setting.scenario)
    refuse_seeded_noise(scenario, context)
    own = OwnData.from_context(context, _partition(context)[0])
    hosting = *_partition(context), str(context.node_config.get("profile", ""))
    if own is not None:
        return open_own_cohort(setting, own, *hosting)
    refuse_paths(scenario, context)
    data_dir = str(context.node_config.get(DATA_DIR, setting.data_dir))
    run_dir = str(context.node_config.get(RUN_DIR, setting.run_dir))
    return open_cohort(replace(setting, data_dir=data_dir, run_dir=run_dir, num_devices=0), *hosting)


@lru_cache(maxsize=1)
def _begin(kind: str) -> None:
    """Messages of this kind come now, whose arrays have other sizes than those of another kind before them."""
    release_memory()


def _answer(
    kind: wire.MessageKind[Any], work: Callable[[Any, Any], object], message: Message, context: Context
) -> Message:
    """The reply, or what went wrong: the one line of a mistake where the node is simulated, else no more of it than
    :func:`clients.client_app.node_error` lets out. work: gets the devices that the node hosts and the request, but
    for a first request, which comes before there are any, the context and the request.
    """
    _begin(kind)
    try:
        request = wire.unpack(kind.request, message.content)
        if kind == wire.HELLO:  # on Ray each worker has kinds of its own
            return Message(wire.pack(work(context, request)), reply_to=message)
        cohort = _cohort(context, request)
        checked(cohort, request)
        return Message(wire.pack(work(cohort, request)), reply_to=message)
    except FlPeelError as mistake:
        error = node_error(mistake, whole=is_simulated(context))
        return Message(Error(wire.USER_MISTAKE, error.to_reason()), reply_to=message)
    except Exception:
        if is_simulated(context):
            raise
        logger.exception("%s was not answered", kind)
        return Message(Error(wire.NODE_FAILED, "the node failed; its log says how"), reply_to=message)


def hello(context: Context, request: wire.HelloRequest) -> wire.HelloReply:
    """Say which partition this node hosts, unless it will not take part in such a run."""
    scenario = _of_scenario(Scenario.from_json, request.scenario)
    refuse_seeded_noise(scenario, context)
    root = check_one_root()
    partition, num_partitions = _partition(context)
    own = OwnData.from_context(context, partition)
    if (own is None) == scenario.data.held_by_nodes:
        raise EngineError(
            f"node {partition}: nodes hold their own interactions if, and only if, the scenario has a catalogue "
            f"and no name or path; start the node {'with' if own is None else 'without'} data in its --node-config",
            public=True,
        )
    if own is None:
        refuse_paths(scenario, context)
    place = str(root) if is_simulated(context) else ""
    reply = wire.HelloReply(partition, num_partitions, place, code_digest(root))
    return reply if own is None else replace(reply, first=own.first, hosted=own.hosted(scenario, request.catalogue))


ANSWERS: Mapping[wire.MessageKind[Any], Callable[[Any, Any], object]] = {
    wire.HELLO: hello,
    wire.STEP: step_round,
    wire.JOIN: joining.join,
    wire.ROUND: channel.clear_round,
    wire.EVALUATE: evaluate.evaluate_budgets,
    wire.REFRESH: following.refresh,
    wire.MOVING: following.follow,
    wire.COMPARE: evaluate.compare,
    wire.KEEP: evaluate.keep,
    # secure aggregation: of a round, and of a step of stage 1
    wire.SECURE_KEYS: masked.announce_keys,
    wire.SECURE_SHARES: masked.share_secrets,
    wire.SECURE_OWNERS: masked.count_owners,
    wire.SECURE_ROUND: masked.masked_round,
    wire.SECURE_STEP: announce_step,
    wire.SECURE_SUMS: masked_sums,
    wire.SECURE_UNMASK: masked.open_shares,
}
"""What a node does about each kind of message."""


for _kind, _work in ANSWERS.items():
    _category, _, _name = _kind.partition(".")
    getattr(app, _category)(_name)(partial(_answer, _kind, _work))
