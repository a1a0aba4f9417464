"""What an engine of our own takes from Flower without a public name, as the installed Flower has it."""

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from simulations.engine.embedded_engine import RUN_ID, identify_server, number_message


def test_messages_can_be_made_and_a_reply_names_its_message(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    identify_server()
    content = RecordDict({"config": ConfigRecord({"a": 1})})
    one, other = (Message(content, dst_node_id=node, message_type="query") for node in (3, 4))
    numbers = [number_message(one), number_message(other)]
    assert [one.metadata.message_id, other.metadata.message_id] == numbers
    assert len(set(numbers)) == 2
    reply = Message(content, reply_to=one)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (numbers[0], 3)
    assert (one.metadata.run_id, reply.metadata.run_id) == (RUN_ID, RUN_ID)
