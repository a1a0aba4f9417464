"""The nodes of a run: who hosts which partition, asking all of them, and what to do when one fails."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel import errors, wire
from fl_peel.errors import EngineError, FlPeelError, MessageError, ScenarioError, SecureAggregationError
from fl_peel.exchange.array_specs import MOST, TOTAL, MessageContext, check
from fl_peel.package_check import code_digest, own_root
from fl_peel.scenario.scenario import Scenario

logger = logging.getLogger("fl_peel")
Reply = TypeVar("Reply")
PULL_INTERVAL_S = 0.01
"""Seconds between looks for replies in simulation."""


ONCE = frozenset({wire.REFRESH})
"""Kinds of questions that are not asked again: devices remember that they have answered."""
NOISED = frozenset({wire.STEP, wire.JOIN})
"""Kinds of questions whose answers may have noise, of which a second answer would have another."""
HELLO_S = 60.0
"""Seconds that a node which comes later has to say who it is: nothing goes on meanwhile."""
PAUSES_S = (0.5, 2.0, 5.0)
"""Seconds until a node that failed is asked again: a worker that died must start first."""


@dataclass(frozen=True)
class NodeRequest:
    """A question to a node, and what is known of a right answer. about: user groups that it is about, for who counts
    which of them are answered.
    """

    payload: object
    known: MessageContext = field(default_factory=MessageContext)
    about: Collection[int] = ()


@dataclass(frozen=True)
class _SentRequest:
    """The node that a message went to, and what is known of the right answer."""

    partition: int
    node: int
    known: MessageContext
    about: Collection[int]


@dataclass(frozen=True)
class NodeReply(Generic[Reply]):
    """A node's right reply, with the sizes that were found in it; or else what went wrong. came: whether the node sent
    anything but a failure; lost: whether somebody else said so, as the node is not there; about: as in the
    question.
    """

    partition: int
    reply: Reply | None
    sizes: Mapping[str, int]
    error: FlPeelError | None = None
    came: bool = True
    lost: bool = False
    about: Collection[int] = ()


Content = Callable[[int], NodeRequest | None]
"""The question to a partition, if there is one."""


@dataclass
class Nodes:
    """Node ids by partition. Node ids are random, partitions are not: everything is ordered by partition.

    noise_is_drawn: whether devices draw noise that is new each time, so that they must not be asked twice; hello: what
    a node is asked that comes later, in place of one that was lost; patience_s: how long that is waited for, 0 where
    no node comes later; own: which devices each node hosts, where nodes have their interactions: else they are dealt
    out one by one.
    """

    grid: Grid
    ids: tuple[int, ...]
    timeout_s: float
    noise_is_drawn: bool = False
    hello: Hello | None = None
    patience_s: float = 0.0
    own: tuple[range, ...] = ()
    _open: dict[str, _SentRequest] = field(default_factory=dict, repr=False, compare=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)
    _refused: set[int] = field(default_factory=set, repr=False, compare=False)

    @property
    def num_devices(self) -> int:
        """Return the number of devices on all nodes that have their own interactions."""
        return sum(map(len, self.own))

    def hosted(self, partition: int, num_devices: int) -> NDArray[np.int64]:
        """Devices, of so many, that a node hosts, ascending."""
        if self.own:
            return np.asarray(self.own[partition], np.int64)
        return np.arange(partition, num_devices, len(self.ids), dtype=np.int64)

    def partitions_of(self, devices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the partition of the node that hosts each of the devices (N,)."""
        if not self.own:
            return devices % len(self.ids)
        order = sorted(range(len(self.own)), key=lambda partition: self.own[partition].start)
        starts = np.array([self.own[partition].start for partition in order], np.int64)
        return np.array(order, np.int64)[np.searchsorted(starts, devices, side="right") - 1]

    @staticmethod
    def connect(
        grid: Grid, scenario: str, *, root: str, timeout_s: float, patience_s: float = 120.0, catalogue: str = ""
    ) -> Nodes:
        """Find the node of every partition. catalogue: ids of all items, where nodes have their own interactions.

        Raises:
            EngineError: not all partitions answered in time, or nodes run another copy of the packages.
            MessageError: a node's answer is none, or another one's.
        """
        deadline = time.monotonic() + patience_s
        if hasattr(grid, "pull_interval"):  # of the simulation's grid, which else looks for replies 10 times a second
            grid.pull_interval = PULL_INTERVAL_S
        returning_s = float(getattr(grid, "patience_s", 0.0))  # of a deployment's
        hello = Hello(wire.HelloRequest(scenario, catalogue=catalogue), root)
        node_ids: dict[int, int] = {}
        own: dict[int, range] = {}
        wanted: int | None = None
        while True:
            asked = [node for node in grid.get_node_ids() if node not in node_ids.values()]
            for reply in hello.ask(grid, asked, min(timeout_s, patience_s)):
                node = reply.metadata.src_node_id
                if reply.has_error():
                    if returning_s and node not in asked:
                        continue  # one that was lost before the run began
                    raise failure(reply, f"node {node}")
                answer = hello.checked(reply, wanted)
                if node_ids.setdefault(answer.partition, node) != node:
                    raise EngineError(f"two nodes claim to be partition {answer.partition}; number them from 0")
                wanted = answer.num_partitions
                own[answer.partition] = _own_range(answer)
            if wanted is not None and set(node_ids) >= set(range(wanted)):
                drawn = Scenario.from_json(scenario).privacy
                ids = tuple(node_ids[partition] for partition in range(wanted))
                noise_is_drawn = drawn.noised and drawn.noise_source == "system"
                theirs = _without_gaps(own) if catalogue else ()
                return Nodes(grid, ids, timeout_s, noise_is_drawn, hello, returning_s, theirs)
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{len(node_ids)} of {wanted or 'unknown'} nodes answered within {patience_s:.0f} s; "
                    "start the missing nodes or look for their errors in the log above"
                )
            time.sleep(0.5)

    def begin(self) -> None:
        """Whatever is not answered yet comes too late; nodes that have come in place of lost ones are asked instead."""
        self._open.clear()
        if self.hello is not None and self.patience_s:
            self._adopt(self.hello)

    def _adopt(self, hello: Hello) -> None:
        """A node that comes back has another id, and is known by its partition."""
        strangers = [node for node in self.grid.get_node_ids() if node not in {*self.ids, *self._refused}]
        for reply in hello.ask(self.grid, strangers, min(self.timeout_s, HELLO_S)):
            node = reply.metadata.src_node_id
            if reply.has_error() and node not in strangers:
                continue  # it is gone again
            try:
                if reply.has_error():
                    raise failure(reply, f"node {node}")
                answer = hello.checked(reply, len(self.ids))
                partition = answer.partition
                if self.own and _own_range(answer) != self.own[partition]:
                    raise EngineError(f"partition {partition} came back with other devices than it had")
            except FlPeelError as error:
                self._refused.add(node)
                logger.warning("a node that joined later is not accepted: %s", error)
                continue
            logger.warning("partition %d is back as node %d", partition, node)
            self.ids = (*self.ids[:partition], node, *self.ids[partition + 1 :])

    def messages(self, kind: str, content: Content) -> Iterable[Message]:
        """One message for each partition for which ``content`` has a question."""
        for partition, node in enumerate(self.ids):
            asked = content(partition)
            if asked is not None:
                # Flower brings the group back with the reply, also with one that the SuperLink makes for a dead node
                number = str(next(self._numbers))
                known = asked.known.with_sizes(**{TOTAL: MOST // len(self.ids)})
                self._open[number] = _SentRequest(partition, node, known, asked.about)
                record: RecordDict = wire.pack(asked.payload)
                yield Message(record, dst_node_id=node, message_type=kind, group_id=number)

    def answers(self, kind: str, reply_type: type[Reply], replies: Iterable[Message]) -> Iterator[NodeReply[Reply]]:
        """Yield every message's answer, once; late answers are left out."""
        for message in replies:
            sent = self._open.get(message.metadata.group_id)
            theirs = message.has_error() or sent is None or message.metadata.src_node_id == sent.node
            if sent is None or not theirs:
                logger.warning("a late answer to %s is ignored", kind)
                continue
            del self._open[message.metadata.group_id]
            who = f"node {sent.partition} ({kind})"
            if message.has_error():
                lost = message.metadata.src_node_id != sent.node
                yield NodeReply(
                    sent.partition, None, {}, failure(message, who), came=False, lost=lost, about=sent.about
                )
                continue
            try:
                reply = wire.unpack(reply_type, message.content)
                sizes = check(reply, sent.known)
            except MessageError as error:
                wrong = MessageError(f"{who} gave a wrong answer: {error}")
                yield NodeReply(sent.partition, None, {}, wrong, about=sent.about)
            else:
                agreed = {name: sizes[name] for name in sent.known.agreed if name in sizes}
                yield NodeReply(sent.partition, reply, agreed, about=sent.about)

    def _exchange(
        self, kind: str, reply_type: type[Reply], content: Content
    ) -> tuple[list[int], dict[int, NodeReply[Reply]]]:
        """Ask nodes once: who was asked; answers by partition, ascending. Silent nodes are not among these."""
        self.begin()
        messages = list(self.messages(kind, content))
        asked = [sent.partition for sent in self._open.values()]
        replies = self.grid.send_and_receive(messages, timeout=self.timeout_s) if messages else []
        return asked, _by_partition(self.answers(kind, reply_type, replies))

    def ask(self, kind: str, reply_type: type[Reply], content: Content) -> list[Reply]:
        """Ask nodes and wait for all of them; one that fails, or whose answer is wrong, is asked again a few times.

        Raises:
            EngineError, MessageError: a node failed each time, or did not answer in time.
            FlPeelError: a node found a mistake of the user's, which it names.
        """
        return self._until_right(kind, reply_type, content, *self._exchange(kind, reply_type, content))

    def ask_each(self, kind: str, reply_type: type[Reply], contents: Iterable[Content]) -> Iterator[list[Reply]]:
        """As :meth:`ask` of one content after the other; nodes work on one while the server makes the next.

        Raises:
            EngineError, MessageError, FlPeelError: as :meth:`ask`.
        """
        asked: dict[int, dict[int, NodeRequest]] = {}
        answers: dict[int, dict[int, NodeReply[Reply]]] = {}

        def messages() -> Iterator[Message]:
            for place, content in enumerate(contents):
                each = {partition: content(partition) for partition in range(len(self.ids))}
                asked[place] = {partition: replace(query, about=(place,)) for partition, query in each.items() if query}
                answers[place] = {}
                yield from self.messages(kind, asked[place].get)

        self.begin()
        done: dict[int, list[Reply]] = {}
        for answer in self.answers(kind, reply_type, self.grid.send_and_receive(messages(), timeout=self.timeout_s)):
            (place,) = answer.about
            answers[place][answer.partition] = answer
            if len(answers[place]) == len(asked[place]):
                answers[place] = _by_partition(answers[place].values())
                if _are_right(kind, answers[place]):  # then nobody is asked again, and the question may be forgotten
                    done[place] = _replies(answers.pop(place))
                    asked[place] = {}
        for place in sorted(asked):
            yield (
                done.pop(place)
                if place in done
                else self._until_right(kind, reply_type, asked[place].get, list(asked[place]), answers[place])
            )

    def _until_right(
        self,
        kind: str,
        reply_type: type[Reply],
        content: Content,
        asked: Sequence[int],
        right_answers: dict[int, NodeReply[Reply]],
    ) -> list[Reply]:
        """Right answers to what was asked of some partitions; right_answers: what these answered."""
        pauses_s, deadline = iter(PAUSES_S), time.monotonic() + self.patience_s
        while True:
            silent = [partition for partition in asked if partition not in right_answers]
            may_come = time.monotonic() < deadline
            if silent and not (may_come and self._may_have_answered(kind)):
                raise EngineError(
                    f"{len(silent)} of {len(asked)} nodes did not answer {kind} within "
                    f"{self.timeout_s:.0f} s; raise engine.reply_timeout_s or look for their errors in the log"
                )
            right_answers |= _disagreeing(kind, right_answers)
            good = {partition: answer for partition, answer in right_answers.items() if answer.error is None}
            failed = [answer for answer in right_answers.values() if answer.error is not None]
            if not failed and not silent:
                return _replies(right_answers)
            waits_for_lost = may_come and kind not in ONCE and all(answer.lost for answer in failed)
            pause_s = PAUSES_S[-1] if waits_for_lost else next(pauses_s, None)
            for answer in failed:
                assert answer.error is not None, "of those that failed"
                if pause_s is None or not self._may_repeat(kind, answer):
                    raise answer.error
                logger.warning("%s; it is asked again", answer.error)
            if silent:
                logger.warning("nodes %s did not answer %s; they are asked again", silent, kind)
            time.sleep(pause_s or 0)
            again, answers = self._exchange(kind, reply_type, _of_others(good, content))
            asked, right_answers = [*good, *again], good | answers

    def _may_repeat(self, kind: str, answer: NodeReply[Reply]) -> bool:
        """Whether a node may be asked the same again: not about a mistake that it would name again."""
        if not isinstance(answer.error, (EngineError, MessageError)):
            return False
        return self._may_have_answered(kind) or (kind not in ONCE and not answer.came)

    def _may_have_answered(self, kind: str) -> bool:
        """Whether a node may be asked the same again that has answered, for all that is known."""
        return kind not in ONCE and not (self.noise_is_drawn and kind in NOISED)

    def ask_some(self, kind: str, reply_type: type[Reply], content: Content) -> dict[int, Reply]:
        """Ask nodes, once; replies by partition, ascending, of those that answer, and rightly.

        Raises:
            ScenarioError: a node names a mistake.
            SecureAggregationError: the devices of all nodes refuse.
        """
        asked, answers = self._exchange(kind, reply_type, content)
        answers |= _disagreeing(kind, answers)
        good = {partition: answer.reply for partition, answer in answers.items() if answer.reply is not None}
        raise_or_log([answer.error for answer in answers.values() if answer.error is not None], nobody=not good)
        if len(answers) < len(asked):
            logger.warning(
                "%d of %d nodes did not answer %s within the deadline", len(asked) - len(answers), len(asked), kind
            )
        return good


@dataclass(frozen=True)
class Hello:
    """The first request to a new node, and how its answer is judged. root: root folder of the server's packages."""

    request: wire.HelloRequest
    root: str

    def ask(self, grid: Grid, nodes: Sequence[int], timeout_s: float) -> Iterable[Message]:
        """Ask some nodes who they are."""
        content = wire.pack(self.request)
        messages = [Message(content, dst_node_id=node, message_type=wire.HELLO) for node in nodes]
        return grid.send_and_receive(messages, timeout=timeout_s) if messages else []

    def checked(self, reply: Message, wanted: int | None) -> wire.HelloReply:
        """Return what a node reported about itself.

        Raises:
            MessageError: it is no such answer, or another number of nodes than others say.
            EngineError: it runs another copy of the packages.
        """
        answer = _hello(reply, wanted)
        if answer.root != self.root and answer.code != code_digest(own_root()):
            raise EngineError(
                f"the node of partition {answer.partition} runs other code, from {answer.root or 'its machine'}, than "
                f"the server, from {self.root}; install the same version, or start the SuperLink in another folder"
            )
        return answer


def _own_range(answer: wire.HelloReply) -> range:
    return range(answer.first, answer.first + answer.hosted)


def _without_gaps(own: Mapping[int, range]) -> tuple[range, ...]:
    """The devices of every partition, which together are numbered from 0 on.

    Raises:
        EngineError: they are not.
    """
    end, last = 0, "nobody"
    for partition, devices in sorted(own.items(), key=lambda one: (one[1].start, len(one[1]))):
        if devices.start != end:
            raise EngineError(
                f"node {partition} hosts {len(devices)} devices from number {devices.start} on, where {last} leaves "
                f"off before {end}; start nodes with first-device in --node-config, so that numbers have no gaps"
            )
        end, last = devices.stop, f"node {partition}"
    return tuple(own[partition] for partition in range(len(own)))


def _by_partition(answers: Iterable[NodeReply[Reply]]) -> dict[int, NodeReply[Reply]]:
    return {answer.partition: answer for answer in sorted(answers, key=lambda answer: answer.partition)}


def _are_right(kind: str, answers: Mapping[int, NodeReply[Reply]]) -> bool:
    return all(answer.error is None for answer in answers.values()) and not _disagreeing(kind, answers)


def _replies(answers: Mapping[int, NodeReply[Reply]]) -> list[Reply]:
    return [answer.reply for _, answer in sorted(answers.items()) if answer.reply is not None]


def _of_others(known: Container[int], content: Content) -> Content:
    """Questions to the partitions whose answers are not known."""
    return lambda partition: None if partition in known else content(partition)


def _hello(reply: Message, wanted: int | None) -> wire.HelloReply:
    """Return what a node reports about itself.

    Raises:
        MessageError: it is no such answer, or another number of nodes than others say.
    """
    who = f"node {reply.metadata.src_node_id} ({wire.HELLO}) gave a wrong answer"
    try:
        answer = wire.unpack(wire.HelloReply, reply.content)
        check(answer, MessageContext())
    except MessageError as error:
        raise MessageError(f"{who}: {error}") from None
    if answer.partition >= answer.num_partitions or wanted not in (None, answer.num_partitions):
        raise MessageError(
            f"{who}: it is partition {answer.partition} of {answer.num_partitions}, where others say "
            f"{wanted or answer.num_partitions} partitions; start all nodes with one num-partitions, counted from 0"
        )
    return answer


def _disagreeing(kind: str, answers: Mapping[int, NodeReply[Reply]]) -> dict[int, NodeReply[Reply]]:
    """Return the answers whose sizes differ from those of most right answers, as errors: all answers, where no sizes
    are the most frequent ones.
    """
    good = {partition: tuple(sorted(one.sizes.items())) for partition, one in answers.items() if one.error is None}
    counts = Counter(good.values()).most_common(2)
    if len(counts) < 2:
        return {}
    most = counts[0][0] if counts[0][1] > counts[1][1] else None
    wrong = {
        partition: MessageError(f"node {partition} ({kind}) gave a wrong answer: {dict(sizes)}, unlike others")
        for partition, sizes in good.items()
        if sizes != most
    }
    return {partition: replace(answers[partition], reply=None, error=error) for partition, error in wrong.items()}


def failure(reply: Message, who: str) -> FlPeelError:
    """The error that an error reply stands for."""
    if reply.error.code == wire.USER_MISTAKE:
        try:
            error = wire.NodeError.from_reason(reply.error.reason or "")
        except MessageError:
            return EngineError(f"{who} failed, and does not say how; look at its log")
        kind = getattr(errors, error.code, EngineError)
        if isinstance(kind, type) and issubclass(kind, FlPeelError):
            return kind(" ".join(error.text.split())[:2000] or _unsaid(kind, error.place, who))
    reason = " ".join((reply.error.reason or "no reason given").split())
    return EngineError(f"{who} failed: {reason[-500:]}")


def _unsaid(kind: type[FlPeelError], place: str, who: str) -> str:
    """Return the error line for a node's mistake of which only the class and the place are known."""
    what = " ".join((kind.__doc__ or "").split()).rstrip(".")
    return f"{' '.join(place.split())[:200] or who}: {what}; {who} has the whole line in its log"


def raise_or_log(errors: Iterable[FlPeelError], *, nobody: bool = False) -> None:
    """Raise what every node would report again; log what befell some. nobody: no node did any better."""
    for error in errors:
        if isinstance(error, ScenarioError) or (nobody and isinstance(error, SecureAggregationError)):
            raise error
        logger.warning("%s", error)
