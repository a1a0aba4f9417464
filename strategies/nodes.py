"""The nodes of a run: who hosts which partition, asking all of them, and what to do when one fails; and the devices of
a federation by user group.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel import errors, wire
from fl_peel.array_specs import MOST, SUM_SCALE, TOTAL, MessageContext, check
from fl_peel.errors import EngineError, FlPeelError, MessageError, SecureAggregationError
from fl_peel.packages import code_digest, own_root
from fl_peel.randomness import rng_for
from fl_peel.ranking.bootstrap import MOST_WEIGHT
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import MessageKind

logger = logging.getLogger("fl_peel")
Reply = TypeVar("Reply")
Result = TypeVar("Result")
PULL_INTERVAL_S = 0.01
"""Seconds between looks for replies in simulation."""
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
    """A node's right reply, with what it must have in common with the others; or else what went wrong. came: whether
    the node sent anything but a failure; lost: whether somebody else said so, as the node is not there; about: as in
    the question.
    """

    partition: int
    reply: Reply | None
    agreed: Mapping[str, int | float | str]
    error: FlPeelError | None = None
    came: bool = True
    lost: bool = False
    about: Collection[int] = ()


Content = Callable[[int], NodeRequest | None]
"""The question to a partition, if there is one."""


@dataclass
class Nodes:
    """Node ids by partition. Node ids are random, partitions are not: everything is ordered by partition. A partition
    belongs to the node that claimed it first, by its id, which on a SuperLink that authenticates nodes stands for its
    key. Another node may take it over once the SuperLink has missed the holder, and not before.

    noise_is_drawn: whether devices draw noise that is new each time, so that they must not be asked twice; hello: what
    a node is asked that comes later, in place of one that was lost; patience_s: how long that is waited for, 0 where
    no node comes later; own: which devices each node hosts, where nodes have their interactions: else they are dealt
    out one by one; excluded: partitions that are not asked any more, each with its failure.

    What a node reports is data about that node: whatever it answers, or names as a mistake, at worst excludes it and
    its devices from the rest of the run. The run ends where at least half of the nodes, or of the devices that they
    host, would be excluded.
    """

    grid: Grid
    ids: tuple[int, ...]
    timeout_s: float
    noise_is_drawn: bool = False
    hello: Hello | None = None
    patience_s: float = 0.0
    own: tuple[range, ...] = ()
    excluded: dict[int, str] = field(default_factory=dict)
    _open: dict[str, _SentRequest] = field(default_factory=dict, repr=False, compare=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)
    _refused: set[int] = field(default_factory=set, repr=False, compare=False)
    _claims: dict[int, int] = field(default_factory=dict, repr=False, compare=False)
    """Partitions that nodes claim while others hold them, by node."""

    @property
    def num_devices(self) -> int:
        """Return the number of devices on all nodes that have their own interactions."""
        return sum(map(len, self.own))

    def hosted(self, partition: int, num_devices: int) -> NDArray[np.int64]:
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

        A node that fails, or whose answer is wrong, is refused; after ``patience_s`` the run goes on without the
        partitions that nobody answers for, as :class:`Nodes` says; where nodes have their own interactions, none may
        be missing.

        Raises:
            EngineError: at least half of the partitions did not answer in time.
            FlPeelError: the failure of the first node that is refused, where as many are.
        """
        patience_s = float(getattr(grid, "start_s", patience_s))  # of a simulation's, whose nodes are all on the way
        deadline = time.monotonic() + patience_s
        if hasattr(grid, "pull_interval"):  # of the simulation's grid, which else looks for replies 10 times a second
            grid.pull_interval = PULL_INTERVAL_S
        returning_s = float(getattr(grid, "patience_s", 0.0))  # of a deployment's
        hello = Hello(wire.HelloRequest(scenario, catalogue=catalogue), root)
        roster = _Roster()
        while True:
            asked = [node for node in grid.get_node_ids() if node not in roster.known]
            for reply in hello.ask(grid, asked, min(timeout_s, patience_s)):
                node = reply.metadata.src_node_id
                if reply.has_error() and returning_s and node not in asked:
                    continue  # one that was lost before the run began
                roster.take(node, hello, reply)
            roster.judge(all_are_needed=bool(catalogue))  # whose devices are numbered without gaps
            # all that there are have answered, so that nobody is on the way
            late = time.monotonic() > deadline or (roster.refused and roster.known >= set(grid.get_node_ids()))
            if roster.are_all or (late and roster.are_most and not catalogue):
                drawn = Scenario.from_json(scenario).privacy
                noise_is_drawn = drawn.noised and drawn.noise_source == "system"
                theirs = _without_gaps(roster.own()) if catalogue else ()
                ids, missing = roster.ids(), roster.missing()
                if missing:
                    logger.warning("the run goes on without nodes %s, which did not answer", [*missing])
                return Nodes(grid, ids, timeout_s, noise_is_drawn, hello, returning_s, theirs, missing)
            if late:
                raise EngineError(
                    f"{len(roster.answers)} of {roster.wanted or 'unknown'} nodes answered within {patience_s:.0f} s; "
                    "start the missing nodes or look for their errors in the log above"
                )
            time.sleep(0.5)

    def begin(self) -> None:
        """Whatever is not answered yet comes too late; nodes that have come in place of lost ones are asked instead."""
        self._open.clear()
        if self.hello is not None and self.patience_s:
            self._adopt(self.hello)

    def _adopt(self, hello: Hello) -> None:
        """A node that comes back without a key has another id, and is known by its partition."""
        online = list(self.grid.get_node_ids())
        self._claims = {node: claimed for node, claimed in self._claims.items() if self.ids[claimed] in online}
        strangers = [node for node in online if node not in {*self.ids, *self._refused, *self._claims}]
        for reply in hello.ask(self.grid, strangers, min(self.timeout_s, HELLO_S)):
            node = reply.metadata.src_node_id
            if reply.has_error() and node not in strangers:
                continue  # it is gone again
            try:
                answer = hello.checked(reply, len(self.ids))
                partition = answer.partition
                if self.own and _own_range(answer) != self.own[partition]:
                    raise EngineError(f"partition {partition} came back with other devices than it had")
            except FlPeelError as error:
                self._refused.add(node)
                logger.warning("a node that joined later is not accepted: %s", error)
                continue
            holder = self.ids[partition]
            if holder in online:
                self._claims[node] = partition
                logger.warning("node %d claims partition %d, which node %d holds: refused", node, partition, holder)
                continue
            logger.warning(
                "node %d takes over partition %d: node %d has been silent for a minute", node, partition, holder
            )
            self.ids = (*self.ids[:partition], node, *self.ids[partition + 1 :])

    def messages(self, kind: MessageKind[Any], content: Content) -> Iterable[Message]:
        """One message for each partition for which ``content`` has a question."""
        for partition, node in enumerate(self.ids):
            asked = None if partition in self.excluded else content(partition)
            if asked is not None:
                # Flower brings the group back with the reply, also with one that the SuperLink makes for a dead node
                number = str(next(self._numbers))
                known = asked.known.with_sizes(**{TOTAL: MOST // len(self.ids)})
                self._open[number] = _SentRequest(partition, node, known, asked.about)
                record: RecordDict = wire.pack(asked.payload)
                yield Message(record, dst_node_id=node, message_type=str(kind), group_id=number)

    def answers(self, kind: MessageKind[Reply], replies: Iterable[Message]) -> Iterator[NodeReply[Reply]]:
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
                reply = wire.unpack(kind.reply, message.content)
                sizes = check(reply, sent.known)
            except MessageError as error:
                wrong = MessageError(f"{who} gave a wrong answer: {error}")
                yield NodeReply(sent.partition, None, {}, wrong, about=sent.about)
            else:
                agreed = {name: sizes[name] if name in sizes else getattr(reply, name) for name in sent.known.agreed}
                yield NodeReply(sent.partition, reply, agreed, about=sent.about)

    def _exchange(self, kind: MessageKind[Reply], content: Content) -> tuple[list[int], dict[int, NodeReply[Reply]]]:
        """Ask nodes once: who was asked; answers by partition, ascending. Silent nodes are not among these."""
        self.begin()
        messages = list(self.messages(kind, content))
        asked = [sent.partition for sent in self._open.values()]
        replies = self.grid.send_and_receive(messages, timeout=self.timeout_s) if messages else []
        return asked, _by_partition(self.answers(kind, replies))

    def ask(self, kind: MessageKind[Reply], content: Content) -> list[Reply]:
        """Ask nodes and wait for all of them; one that fails, or whose answer is wrong, is asked again a few times, and
        then excluded.

        Raises:
            FlPeelError: the failure of one of so many nodes that the run cannot go on without them.
        """
        replies = self._until_right(kind, content, *self._exchange(kind, content))
        return list(replies.values())

    def ask_each(self, kind: MessageKind[Reply], contents: Iterable[Content]) -> Iterator[dict[int, Reply]]:
        """As :meth:`ask` of one content after the other, with replies by partition; nodes work on one while the server
        makes the next.

        Raises:
            FlPeelError: as :meth:`ask`.
        """
        asked: dict[int, dict[int, NodeRequest]] = {}
        answers: dict[int, dict[int, NodeReply[Reply]]] = {}

        def messages() -> Iterator[Message]:
            for place, content in enumerate(contents):
                partitions = (partition for partition in range(len(self.ids)) if partition not in self.excluded)
                each = {partition: content(partition) for partition in partitions}
                asked[place] = {partition: replace(query, about=(place,)) for partition, query in each.items() if query}
                answers[place] = {}
                yield from self.messages(kind, asked[place].get)

        self.begin()
        done: dict[int, dict[int, Reply]] = {}
        for answer in self.answers(kind, self.grid.send_and_receive(messages(), timeout=self.timeout_s)):
            (place,) = answer.about
            answers[place][answer.partition] = answer
            if len(answers[place]) == len(asked[place]):
                answers[place] = _by_partition(answers[place].values())
                right = all(one.error is None for one in answers[place].values())
                if right and not _disagreeing(kind, answers[place]):  # nobody is asked again: it may be forgotten
                    done[place] = _replies(answers.pop(place))
                    asked[place] = {}
        for place in sorted(asked):
            yield (
                done.pop(place)
                if place in done
                else self._until_right(kind, asked[place].get, list(asked[place]), answers[place])
            )

    def settled(self, work: Callable[[], Result]) -> Result:
        """Do work that asks nodes, and do it again whenever one was excluded meanwhile: all answers are then of the
        same nodes.
        """
        while True:
            before = len(self.excluded)
            result = work()
            if len(self.excluded) == before:
                return result

    def _until_right(
        self,
        kind: MessageKind[Reply],
        content: Content,
        asked: Sequence[int],
        right_answers: dict[int, NodeReply[Reply]],
    ) -> dict[int, Reply]:
        """Right answers to what was asked of some partitions; right_answers: what these answered."""
        pauses_s, deadline = iter(PAUSES_S), time.monotonic() + self.patience_s
        while True:
            asked = [partition for partition in asked if partition not in self.excluded]
            silent = [partition for partition in asked if partition not in right_answers]
            may_come = time.monotonic() < deadline
            if silent and not (may_come and self._may_have_answered(kind)):
                self._exclude(kind, dict.fromkeys(silent, self._no_answer(kind, len(silent), len(asked))))
                continue
            right_answers = {partition: right_answers[partition] for partition in asked if partition in right_answers}
            right_answers |= _disagreeing(kind, right_answers)
            good = {partition: answer for partition, answer in right_answers.items() if answer.error is None}
            failed = [answer for answer in right_answers.values() if answer.error is not None]
            if not failed and not silent:
                return _replies(right_answers)
            waits_for_lost = may_come and not kind.remembered and all(answer.lost for answer in failed)
            pause_s = PAUSES_S[-1] if waits_for_lost else next(pauses_s, None)
            hopeless = [one for one in failed if pause_s is None or not self._may_repeat(kind, one)]
            if hopeless:
                self._exclude(kind, {one.partition: one.error for one in hopeless if one.error is not None})
                continue
            for answer in failed:
                logger.warning("%s; it is asked again", answer.error)
            if silent:
                logger.warning("nodes %s did not answer %s; they are asked again", silent, kind)
            time.sleep(pause_s or 0)
            again, answers = self._exchange(kind, _of_others(good, content))
            asked, right_answers = [*good, *again], good | answers

    def _no_answer(self, kind: str, silent: int, asked: int) -> EngineError:
        return EngineError(
            f"{silent} of {asked} nodes did not answer {kind} within {self.timeout_s:.0f} s; raise "
            "engine.reply_timeout_s or look for their errors in the log"
        )

    def _exclude(self, kind: str, failed: Mapping[int, FlPeelError]) -> None:
        """Go on without nodes that failed, and without their devices.

        Raises:
            FlPeelError: the failure of the first, where at least half of the nodes or devices would be excluded.
        """
        lost = {*self.excluded, *failed}
        devices = sum(len(self.own[partition]) for partition in lost) if self.own else 0
        if 2 * len(lost) >= len(self.ids) or (self.own and 2 * devices >= self.num_devices):
            raise failed[min(failed)]
        for partition, error in sorted(failed.items()):
            logger.warning("%s; the run goes on without node %d and its devices", error, partition)
            self.excluded[partition] = f"{kind}: {error}"

    def _may_repeat(self, kind: MessageKind[Any], answer: NodeReply[Reply]) -> bool:
        """Whether a node may be asked the same again: not about a mistake that it would name again."""
        if not isinstance(answer.error, (EngineError, MessageError)):
            return False
        return self._may_have_answered(kind) or (not kind.remembered and not answer.came)

    def _may_have_answered(self, kind: MessageKind[Any]) -> bool:
        """Whether a node may be asked the same again that has answered, for all that is known."""
        return not kind.remembered and not (self.noise_is_drawn and kind.noised)

    def ask_some(self, kind: MessageKind[Reply], content: Content) -> dict[int, Reply]:
        """Ask nodes, once; replies by partition, ascending, of those that answer, and rightly.

        Raises:
            FlPeelError: all nodes name a mistake.
        """
        asked, answers = self._exchange(kind, content)
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
        content = wire.pack(self.request)
        messages = [Message(content, dst_node_id=node, message_type=str(wire.HELLO)) for node in nodes]
        return grid.send_and_receive(messages, timeout=timeout_s) if messages else []

    def checked(self, reply: Message, wanted: int | None) -> wire.HelloReply:
        """Return what a node reported about itself. wanted: how many nodes there are, None if that is not known yet.

        Raises:
            MessageError: it is no such answer, or another number of nodes than others say.
            EngineError: it runs another copy of the packages.
            FlPeelError: the node names a mistake.
        """
        if reply.has_error():
            raise failure(reply, f"node {reply.metadata.src_node_id}")
        answer = _hello(reply, wanted)
        if answer.root != self.root and answer.code != code_digest(own_root()):
            raise EngineError(
                f"the node of partition {answer.partition} runs other code, from {answer.root or 'its machine'}, than "
                f"the server, from {self.root}; install the same version, or start the SuperLink in another folder"
            )
        return answer


@dataclass
class _Roster:
    """Nodes that answered the first request. answers: by partition, with the node's id; refused: nodes whose answer was
    wrong, with what was; second: nodes that claim a partition of another one.
    """

    answers: dict[int, tuple[int, wire.HelloReply]] = field(default_factory=dict)
    refused: dict[int, FlPeelError] = field(default_factory=dict)
    second: set[int] = field(default_factory=set)

    @property
    def known(self) -> set[int]:
        """Return the ids of all nodes that need not be asked again."""
        return {node for node, _ in self.answers.values()} | self.refused.keys() | self.second

    @property
    def wanted(self) -> int | None:
        """Return how many nodes there are, as most say; None before any does."""
        numbers = Counter(answer.num_partitions for _, answer in self.answers.values())
        return numbers.most_common(1)[0][0] if numbers else None

    @property
    def are_all(self) -> bool:
        """Return whether there is a node for every partition."""
        return self.wanted is not None and not self.missing()

    @property
    def are_most(self) -> bool:
        return self.wanted is not None and 2 * len(self.missing()) < self.wanted

    def missing(self) -> dict[int, str]:
        """Return the partitions that have no node, each with the failure that excludes it."""
        return {
            partition: f"{wire.HELLO}: no node answered for it"
            for partition in self._all
            if partition not in self.answers
        }

    def ids(self) -> tuple[int, ...]:
        """Return the node of every partition, 0 for none."""
        return tuple(self.answers[partition][0] if partition in self.answers else 0 for partition in self._all)

    def own(self) -> dict[int, range]:
        """Return the devices that each node says it has."""
        return {partition: _own_range(answer) for partition, (_, answer) in self.answers.items()}

    @property
    def _all(self) -> range:
        return range(self.wanted or 0)

    def take(self, node: int, hello: Hello, reply: Message) -> None:
        """Take a node's answer, or refuse it."""
        try:
            answer = hello.checked(reply, None)
        except FlPeelError as error:
            self.refused[node] = error
            logger.warning("%s; the node is refused", error)
            return
        holder, _ = self.answers.setdefault(answer.partition, (node, answer))
        if holder != node:
            self.second.add(node)
            logger.warning(
                "node %d claims partition %d, which node %d holds: refused; number nodes from 0",
                *(node, answer.partition, holder),
            )

    def judge(self, *, all_are_needed: bool) -> None:
        """Refuse nodes that know of another number of nodes than most.

        Raises:
            FlPeelError: the first failure, where at least half of the nodes are refused, or any where all are needed.
        """
        wanted = self.wanted
        for partition, (node, answer) in list(self.answers.items()):
            if answer.num_partitions != wanted:
                del self.answers[partition]
                self.refused[node] = _other_number(node, answer, wanted)
                logger.warning("%s; the node is refused", self.refused[node])
        if self.refused and (all_are_needed or 2 * len(self.refused) >= (wanted or 1)):
            raise next(iter(self.refused.values()))


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


def _replies(answers: Mapping[int, NodeReply[Reply]]) -> dict[int, Reply]:
    return {partition: answer.reply for partition, answer in sorted(answers.items()) if answer.reply is not None}


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
        raise _other_number(reply.metadata.src_node_id, answer, wanted)
    return answer


def _other_number(node: int, answer: wire.HelloReply, wanted: int | None) -> MessageError:
    return MessageError(
        f"node {node} ({wire.HELLO}) gave a wrong answer: it is partition {answer.partition} of "
        f"{answer.num_partitions}, where others say {wanted or answer.num_partitions} partitions; start all nodes "
        "with one num-partitions, counted from 0"
    )


def _disagreeing(kind: str, answers: Mapping[int, NodeReply[Reply]]) -> dict[int, NodeReply[Reply]]:
    """Return the answers that differ from most right answers in what all must have in common, as errors: all answers,
    where nothing is the most frequent.
    """
    good = {partition: tuple(sorted(one.agreed.items())) for partition, one in answers.items() if one.error is None}
    counts = Counter(good.values()).most_common(2)
    if len(counts) < 2:
        return {}
    most = counts[0][0] if counts[0][1] > counts[1][1] else None
    wrong = {
        partition: MessageError(f"node {partition} ({kind}) gave a wrong answer: {_shown(agreed)}, unlike others")
        for partition, agreed in good.items()
        if agreed != most
    }
    return {partition: replace(answers[partition], reply=None, error=error) for partition, error in wrong.items()}


def _shown(agreed: Iterable[tuple[str, int | float | str]]) -> str:
    return ", ".join(f"{name} {' '.join(str(value).split())[:200]}" for name, value in agreed)


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
    """Log the failures of some nodes. nobody: no node did any better; then a mistake that all name, and would name in
    every round again, is raised. That devices refuse a message of secure aggregation may be one neighbour's doing.
    """
    for error in errors:
        if nobody and not isinstance(error, (EngineError, MessageError, SecureAggregationError)):
            raise error
        logger.warning("%s", error)


@dataclass(frozen=True)
class Members:
    """Members of user groups: devices (N,) ascending, their user groups (N,), and each group's largest budget (G,)."""

    devices: NDArray[np.int64]
    groups: NDArray[np.int32]
    ceilings: NDArray[np.int64]
    class_names: tuple[str, ...]

    def groups_of(self, devices: NDArray[np.int64]) -> NDArray[np.int32]:
        """User groups of some of the devices (N,)."""
        return np.asarray(self.groups[np.searchsorted(self.devices, devices)])


def bounds_of(devices: int) -> dict[str, int]:
    """Return what so many devices can add up to, by the names that messages use: "hosted" for their number, "metrics"
    for recall or the like; "drawn" and "drawn metrics" for these in a replicate of the bootstrap.
    """
    metrics = devices * int(SUM_SCALE)
    return {
        "hosted": devices,
        "metrics": metrics,
        "drawn": devices * MOST_WEIGHT,
        "drawn metrics": metrics * MOST_WEIGHT,
    }


NUM_TRACED = 6
"""Devices whose budgets and kept blocks the report shows over rounds."""


def some_devices(scenario: Scenario, members: Members, what: str, count: int) -> NDArray[np.int64]:
    """A few devices, always the same for a seed."""
    return np.sort(rng_for(scenario.seed, what).permutation(members.devices)[:count])


Item = TypeVar("Item")
EVALUATED_BYTES = 32 << 20
"""Bytes of blocks in one message to a node that evaluates. Flower's simulation delivers at most about ten messages a
second to a node.
"""


def batches(items: Iterable[Item], num_bytes: Callable[[Item], int], most_bytes: int) -> Iterator[list[Item]]:
    """Items in their order, in batches of at most ``most_bytes``; one that is larger is a batch of its own."""
    batch: list[Item] = []
    size = 0
    for item in items:
        mine = num_bytes(item)
        if batch and size + mine > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += mine
    if batch:
        yield batch


def packed_batches(
    groups: Iterable[int], pack: Callable[[int], wire.Arrays], most_bytes: int
) -> Iterator[dict[int, wire.Arrays]]:
    """User groups' blocks, packed one group after the other while batches are sent, as payloads of messages."""
    packed = ((group, *_packed_once(pack(group))) for group in groups)
    for batch in batches(packed, lambda one: one[1], most_bytes):
        yield {group: arrays for group, _, arrays in batch}


def _packed_once(arrays: wire.Arrays) -> tuple[int, wire.Arrays]:
    """Return the size of arrays, and the arrays as a message has them, which is all that memory holds then."""
    return sum(array.nbytes for array in arrays.values()), wire.packed_once(arrays)
