"""The device side of the Flower app: unpack a message, do the work, pack the reply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from clients.node import channel, evaluate, following, joining, masked
from clients.node.cohort import Cohort, OwnData, open_cohort, open_own_cohort
from clients.node.requests import (
    DATA_DIR,
    RUN_DIR,
    checked,
    is_simulated,
    node_error,
    refuse_paths,
    refuse_seeded_noise,
)
from clients.node.step_round import announce_step, masked_sums, step_round
from fl_peel import wire
from fl_peel.errors import EngineError, FlPeelError, MessageError
from fl_peel.mmap_arrays import release_memory
from fl_peel.packages import check_one_root, code_digest
from fl_peel.scenario.scenario import Scenario

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
    :func:`clients.node.requests.node_error` lets out. work: gets the devices that the node hosts and the request, but
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
