"""The device side of the Flower app: unpack a message, do the work, pack the reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from clients.node import joining
from clients.node.cohort import Cohort, open_cohort
from clients.node.simulation import refuse_seeded_noise
from clients.round import clear, masked_stage1, stage1
from clients.round import masked as secure_round
from clients.serving import evaluate as ranking
from clients.serving import following as serving
from clients.serving import keeping
from clients.serving import refresh as refreshing
from fl_peel import wire
from fl_peel.errors import EngineError, FlPeelError
from fl_peel.roots import check_one_root, code_digest
from fl_peel.scenario.scenario import Scenario

app = ClientApp()


def _partition(context: Context) -> tuple[int, int]:
    try:
        return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    except KeyError as error:
        raise EngineError(
            f"node config lacks {error}; start the node with --node-config 'partition-id=0 num-partitions=2'"
        ) from error


def _cohort(context: Context, request: Any) -> Cohort:
    """A node started with its own data-dir or run-dir uses those (real nodes have their own disks); one started with a
    profile hosts devices of that class alone. None does anything for noise that would hide nobody.
    """
    data_dir = str(context.node_config.get("data-dir", request.setting.data_dir))
    run_dir = str(context.node_config.get("run-dir", request.setting.run_dir))
    profile = str(context.node_config.get("profile", ""))
    cohort = open_cohort(request.setting.scenario, data_dir, run_dir, *_partition(context), profile)
    refuse_seeded_noise(cohort.scenario, context)
    return cohort


def _answer(message: Message, work_for: Callable[[], object]) -> Message:
    """The reply, or the one line of a user's mistake instead of a traceback."""
    try:
        return Message(wire.pack(work_for()), reply_to=message)
    except FlPeelError as mistake:
        return Message(Error(wire.USER_MISTAKE, f"{type(mistake).__name__}|{mistake}"), reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which partition this node hosts, unless it will not take part in such a run."""
    request = wire.unpack(wire.HelloRequest, message.content)

    def reply() -> wire.HelloReply:
        refuse_seeded_noise(Scenario.from_json(request.scenario), context)
        root = check_one_root()
        return wire.HelloReply(*_partition(context), str(root), code_digest(root))

    return _answer(message, reply)


@app.train("sums")
def add_up(message: Message, context: Context) -> Message:
    """Devices do a step of stage 1."""
    request = wire.unpack(wire.SumsRequest, message.content)
    return _answer(message, lambda: stage1.sums_round(_cohort(context, request), request))


@app.evaluate("choice")
def choose(message: Message, context: Context) -> Message:
    """Some devices say which filter of stage 1 ranks their validation items best."""
    request = wire.unpack(wire.ChoiceRequest, message.content)
    return _answer(message, lambda: stage1.choice(_cohort(context, request), request))


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Devices take or find their user embedding and group."""
    request = wire.unpack(wire.JoinRequest, message.content)
    return _answer(message, lambda: joining.join(_cohort(context, request), request))


@app.train("round")
def train_round(message: Message, context: Context) -> Message:
    """Sampled devices train one round."""
    request = wire.unpack(wire.RoundRequest, message.content)
    return _answer(message, lambda: clear.clear_round(_cohort(context, request), request))


@app.evaluate("budgets")
def evaluate_budgets(message: Message, context: Context) -> Message:
    """All hosted devices rank under each budget."""
    request = wire.unpack(wire.EvaluateRequest, message.content)
    return _answer(message, lambda: ranking.evaluate_budgets(_cohort(context, request), request))


@app.query("refresh")
def refresh(message: Message, context: Context) -> Message:
    """A period begins: hosted devices read what they lack of its tables."""
    request = wire.unpack(wire.RefreshRequest, message.content)
    return _answer(message, lambda: refreshing.refresh(_cohort(context, request), request))


@app.evaluate("moving")
def follow(message: Message, context: Context) -> Message:
    """Some hosted devices are followed while their budgets move."""
    request = wire.unpack(wire.MovingRequest, message.content)
    return _answer(message, lambda: serving.follow(_cohort(context, request), request))


@app.evaluate("compare")
def compare(message: Message, context: Context) -> Message:
    """Devices compare what they were refined to with what they kept last."""
    request = wire.unpack(wire.CompareRequest, message.content)
    return _answer(message, lambda: keeping.compare(_cohort(context, request), request))


@app.query("keep")
def keep(message: Message, context: Context) -> Message:
    """Devices keep what they have, or go back."""
    request = wire.unpack(wire.KeepRequest, message.content)
    return _answer(message, lambda: keeping.keep(_cohort(context, request), request))


@app.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    """A round of secure aggregation begins: devices announce keys."""
    request = wire.unpack(wire.SecureKeysRequest, message.content)
    return _answer(message, lambda: secure_round.announce_keys(_cohort(context, request), request))


@app.query("secure_shares")
def secure_shares(message: Message, context: Context) -> Message:
    """Devices seal shares of their secrets for their neighbours."""
    request = wire.unpack(wire.SecureSharesRequest, message.content)
    return _answer(message, lambda: secure_round.share_secrets(_cohort(context, request), request))


@app.train("secure_round")
def secure_train_round(message: Message, context: Context) -> Message:
    """Devices train and send masked vectors."""
    request = wire.unpack(wire.SecureRoundRequest, message.content)
    return _answer(message, lambda: secure_round.masked_round(_cohort(context, request), request))


@app.query("secure_step")
def secure_step(message: Message, context: Context) -> Message:
    """A step of stage 1 under secure aggregation begins: devices announce keys."""
    request = wire.unpack(wire.SecureStepRequest, message.content)
    return _answer(message, lambda: masked_stage1.announce_step(_cohort(context, request), request))


@app.train("secure_sums")
def secure_sums(message: Message, context: Context) -> Message:
    """Devices do a step of stage 1 and send masked vectors."""
    request = wire.unpack(wire.SecureSumsRequest, message.content)
    return _answer(message, lambda: masked_stage1.masked_sums(_cohort(context, request), request))


@app.evaluate("secure_choice")
def secure_choice(message: Message, context: Context) -> Message:
    """Some devices say, masked, which filter of stage 1 ranks their validation items best."""
    request = wire.unpack(wire.SecureChoiceRequest, message.content)
    return _answer(message, lambda: masked_stage1.masked_choice(_cohort(context, request), request))


@app.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    """Devices open shares of their neighbours' secrets."""
    request = wire.unpack(wire.SecureUnmaskRequest, message.content)
    return _answer(message, lambda: secure_round.open_shares(_cohort(context, request), request))
