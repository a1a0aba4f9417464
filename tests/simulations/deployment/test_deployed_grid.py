"""The Grid of Flower's deployment engine, which reads its messages twice."""

import pytest

from simulations.engine import passing_grid as deployed
from simulations.engine.passing_grid import DeployedGrid, deployment_grid


class Metadata:
    def __init__(self, of):
        self.reply_to_message_id = of


class Reply:
    def __init__(self, of):
        self.metadata = Metadata(of)


class Http:
    """Takes what Flower's takes: messages that can be read twice. Answers at the second look."""

    def __init__(self, answers):
        self.answers, self.pushed, self.looks = answers, [], 0

    def push_messages(self, messages):
        assert list(messages) == list(messages)
        self.pushed.append(list(messages))
        return [None if message == "to nobody" else message for message in messages]

    def pull_messages(self, message_ids):
        self.looks += 1
        return [Reply(one) for one in message_ids if one in self.answers] if self.looks > 1 else []


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(deployed, "REPLIES_POLL_S", 0.001)


def test_messages_may_come_from_a_generator_and_go_one_by_one():
    http = Http({"a", "b"})
    replies = DeployedGrid(http, 1.0).send_and_receive(one for one in ("a", "b"))
    assert sorted(reply.metadata.reply_to_message_id for reply in replies) == ["a", "b"]
    assert http.pushed == [["a"], ["b"]]


def test_who_does_not_answer_or_is_not_there_is_waited_for_no_longer_than_the_timeout():
    http = Http({"a"})
    replies = DeployedGrid(http, 1.0).send_and_receive(["a", "b", "to nobody"], timeout=0.05)
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["a"]
    assert list(DeployedGrid(Http({}), 1.0).send_and_receive(["to nobody"])) == []


def test_the_simulation_keeps_its_own():
    class InMemory(Http):
        pull_interval = 0.1

    memory, http = InMemory({}), Http({})
    assert deployment_grid(memory, 3.0) is memory
    assert deployment_grid(http, 3.0).patience_s == 3.0
