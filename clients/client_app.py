"""The device side of the Flower app: unpack a message, do the work, pack the reply."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from clients.node import joining
from clients.node.cohort import Cohort, OwnData, open_cohort, open_own_cohort
from clients.node.requests import checked
from clients.node.simulation import DATA_DIR, RUN_DIR, is_simulated, node_error, refuse_paths, refuse_seeded_noise
from clients.round import clear, masked_group
from clients.round import masked as secure_round
from clients.serving import acceptance
from clients.serving import evaluate as ranking
from clients.serving import following as serving
from clients.serving import refresh as refreshing
from clients.steps import masked_steps
from clients.steps.step_round import step_round
from fl_peel import wire
from fl_peel.errors import EngineError, FlPeelError, MessageError
from fl_peel.mmap_arrays import release_memory
from fl_peel.package_check import check_one_root, code_digest
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
    hosting = *_partition(context), str(context.node_config.get("profile", "")), setting.fleet
    if own is not None:
        return open_own_cohort(setting.scenario, own, setting.num_devices, *hosting)
    refuse_paths(scenario, context)
    data_dir = str(context.node_config.get(DATA_DIR, setting.data_dir))
    run_dir = str(context.node_config.get(RUN_DIR, setting.run_dir))
    return open_cohort(setting.scenario, data_dir, run_dir, *hosting)


Request = TypeVar("Request")


@lru_cache(maxsize=1)
def _begin(kind: str) -> None:
    """Messages of this kind come now, whose arrays have other sizes than those of another kind before them."""
    release_memory()


def _answer(message: Message, context: Context, work_for: Callable[[], object]) -> Message:
    """The reply, or what went wrong: the one line of a mistake where the node is simulated, else no more of it than
    :func:`clients.node.simulation.node_error` lets out.
    """
    _begin(message.metadata.message_type)
    try:
        return Message(wire.pack(work_for()), reply_to=message)
    except FlPeelError as mistake:
        error = node_error(mistake, whole=is_simulated(context))
        return Message(Error(wire.USER_MISTAKE, error.to_reason()), reply_to=message)
    except Exception:
        if is_simulated(context):
            raise
        logger.exception("%s was not answered", message.metadata.message_type)
        return Message(Error(wire.NODE_FAILED, "the node failed; its log says how"), reply_to=message)


def _answer_for_devices(
    message: Message, context: Context, kind: type[Request], work: Callable[[Cohort, Request], object]
) -> Message:
    """The reply of a node's devices to a question that they can answer."""

    def reply() -> object:
        request = wire.unpack(kind, message.content)
        cohort = _cohort(context, request)
        checked(cohort, request)
        return work(cohort, request)

    return _answer(message, context, reply)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which partition this node hosts, unless it will not take part in such a run."""

    def reply() -> wire.HelloReply:
        request = wire.unpack(wire.HelloRequest, message.content)
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

    return _answer(message, context, reply)


@app.train("step")
def add_up(message: Message, context: Context) -> Message:
    """Devices do a step of stage 1."""
    return _answer_for_devices(message, context, wire.StepRequest, step_round)


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Devices take or find their user embedding and group."""
    return _answer_for_devices(message, context, wire.JoinRequest, joining.join)


@app.train("round")
def train_round(message: Message, context: Context) -> Message:
    """Sampled devices train one round."""
    return _answer_for_devices(message, context, wire.RoundRequest, clear.clear_round)


@app.evaluate("budgets")
def evaluate_budgets(message: Message, context: Context) -> Message:
    """Let all hosted devices rank under each budget."""
    return _answer_for_devices(message, context, wire.EvaluateRequest, ranking.evaluate_budgets)


@app.query("refresh")
def refresh(message: Message, context: Context) -> Message:
    """A period begins: hosted devices read what they lack of its tables."""
    return _answer_for_devices(message, context, wire.RefreshRequest, refreshing.refresh)


@app.evaluate("moving")
def follow(message: Message, context: Context) -> Message:
    """Follow some hosted devices while their budgets move."""
    return _answer_for_devices(message, context, wire.MovingRequest, serving.follow)


@app.evaluate("compare")
def compare(message: Message, context: Context) -> Message:
    """Devices compare what they were refined to with what they kept last."""
    return _answer_for_devices(message, context, wire.CompareRequest, acceptance.compare)


@app.query("keep")
def keep(message: Message, context: Context) -> Message:
    """Devices keep what they have, or go back."""
    return _answer_for_devices(message, context, wire.KeepRequest, acceptance.keep)


@app.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    """A round of secure aggregation begins: devices announce keys."""
    return _answer_for_devices(message, context, wire.SecureKeysRequest, secure_round.announce_keys)


@app.query("secure_shares")
def secure_shares(message: Message, context: Context) -> Message:
    """Devices seal shares of their secrets for their neighbours."""
    return _answer_for_devices(message, context, wire.SecureSharesRequest, masked_group.share_secrets)


@app.train("secure_round")
def secure_train_round(message: Message, context: Context) -> Message:
    """Devices train and send masked vectors."""
    return _answer_for_devices(message, context, wire.SecureRoundRequest, secure_round.masked_round)


@app.query("secure_step")
def secure_step(message: Message, context: Context) -> Message:
    """A step of stage 1 under secure aggregation begins: devices announce keys."""
    return _answer_for_devices(message, context, wire.SecureStepRequest, masked_steps.announce_step)


@app.train("secure_sums")
def secure_sums(message: Message, context: Context) -> Message:
    """Devices do a step of stage 1 and send masked vectors."""
    return _answer_for_devices(message, context, wire.SecureSumsRequest, masked_steps.masked_sums)


@app.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    """Devices open shares of their neighbours' secrets."""
    return _answer_for_devices(message, context, wire.SecureUnmaskRequest, masked_group.open_shares)
