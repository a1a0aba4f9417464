"""What one device or one node does against the protocol of secure aggregation: the run goes on, without it if need be.

Each fault is tried in rounds of refinement and in the steps of stage 1. docs/threats.md has the table.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, Error, Message

from fl_peel import wire
from fl_peel.secure.keys import _SMALL_ORDER
from simulations.scenario_files import load_scenario
from strategies import nodes as nodes_module
from strategies.rounds.masked_exchange import MaskedExchange, VoidSumError
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.mutating import parts_of, put_together, replying
from tests.helpers.root import ROOT
from tests.strategies.test_wrong_answers import MODES

DEVICE, NODE, NODES = 5, 1, 4
ROUNDS = 8
MASKED = {
    "rounds": [*MODES["secure"], f"refinement.rounds={ROUNDS}"],
    "steps": MODES["masked steps"],
    "noised steps": [
        *MODES["masked steps"],
        "privacy={mechanism: central-gaussian, noise_multiplier: 0.02, group_epsilon: 9, clipping: {kind: flat}}",
    ],
}
FAULTS = {
    "keys of small order": (wire.SECURE_KEYS, wire.SECURE_STEP),
    "another mask key than its own": (wire.SECURE_KEYS, wire.SECURE_STEP),
    "shares that nobody can open": (wire.SECURE_SHARES,),
    "a share that one neighbour cannot open": (wire.SECURE_SHARES,),
    "a vector of random words": (wire.SECURE_OWNERS, wire.SECURE_ROUND, wire.SECURE_SUMS),
    "wrong shares of others": (wire.SECURE_UNMASK,),
    "no shares of others": (wire.SECURE_UNMASK,),
    "no vector": (wire.SECURE_OWNERS, wire.SECURE_ROUND, wire.SECURE_SUMS),
}
"""Kinds of the replies in which each fault is made."""
SPOIL = ("another mask key than its own", "a vector of random words", "wrong shares of others")
"""Those that nobody notices before a sum is opened."""
OF_NODES = "no vector"
"""Of a device that is what tests of dropouts try."""


class Faulty(LoopbackGrid):
    """Node 1 makes a fault, in all that its device 5, or every device of it, sends."""

    def __init__(self, fault: str, whole_node: bool) -> None:
        super().__init__(NODES)
        self._fault, self._whole, self._rng = fault, whole_node, np.random.default_rng(0)
        self.made = 0
        self.times = {}
        """Time of the step that each masked sum is of."""

    def _answer(self, message: Message) -> Message:
        reply, kind = super()._answer(message), message.metadata.message_type
        if kind == wire.SECURE_SUMS:
            request = wire.unpack(wire.SecureSumsRequest, message.content)
            self.times[request.server_round] = request.time
        if (
            self._partition[message.metadata.dst_node_id] != NODE
            or reply.has_error()
            or kind not in FAULTS[self._fault]
        ):
            return reply
        if self._fault == OF_NODES:
            self.made += 1
            return Message(Error(0, "worker died"), reply_to=message)
        arrays, config = parts_of(reply.content)
        for name in [name for name in arrays if name.rpartition("/")[2].rpartition(".")[2] == "devices"]:
            devices = arrays[name].numpy()
            rows = np.flatnonzero((devices == DEVICE) | self._whole)
            if len(rows):
                self.made += 1
                self._change(arrays, name.removesuffix("devices"), rows)
        return replying(reply, put_together(arrays, config))

    def _change(self, arrays, prefix, rows) -> None:
        def changed(name, value):
            array = arrays[prefix + name].numpy().copy()
            array[rows] = value
            arrays[prefix + name] = Array(array)

        def random(name, some=slice(None)):
            array = arrays[prefix + name].numpy()
            info = np.iinfo(array.dtype)
            return self._rng.integers(info.min, info.max, array[some].shape, array.dtype, endpoint=True)

        match self._fault:
            case "keys of small order":
                number = _SMALL_ORDER[self.made % len(_SMALL_ORDER)]
                key = np.frombuffer(number.to_bytes(32, "little"), np.uint8)
                changed(("channel_keys", "mask_keys")[self.made % 2], key)
            case "another mask key than its own":
                changed("mask_keys", random("mask_keys", rows))
            case "shares that nobody can open":
                changed("sealed", random("sealed", rows))
            case "a share that one neighbour cannot open":
                array = arrays[prefix + "sealed"].numpy().copy()
                array[rows, 0] ^= 1
                arrays[prefix + "sealed"] = Array(array)
            case "a vector of random words":
                for name in ("narrow", "wide"):
                    arrays[prefix + name] = Array(random(name))
            case "wrong shares of others":
                changed("shares", random("shares", rows))
            case "no shares of others":
                changed("index", 0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(nodes_module, "PAUSES_S", (0.0, 0.0))


@pytest.fixture(autouse=True)
def counted(request, trial):
    if "caplog" in request.fixturenames:
        who = "a node" if "node" in request.function.__name__ else "a device"
        trial("faults in secure aggregation, in rounds and in stage 1", who, 2)


def tried(tiny, folder, mode, fault, whole_node):
    grid = Faulty(fault, whole_node)
    neighbours = f"secure_aggregation.neighbours={12 if whole_node else 4}"
    result = serve(grid, load_scenario(tiny, [*MASKED[mode], neighbours]), RunPaths("", str(folder)))
    assert grid.made
    return result, grid


def table() -> dict[str, list[str]]:
    """Rows of docs/threats.md by fault: rounds that are void, times that a step is asked again, devices left out."""
    lines = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows if row[0] in FAULTS}


def test_the_table_has_all_faults():
    assert list(table()) == list(FAULTS)


def check_rounds(tiny, folder, fault, whole_node):
    result, _ = tried(tiny, folder, "rounds", fault, whole_node)
    void = Counter(group.group for row in result.secure_aggregation.rounds for group in row.void)
    most = max(void.values(), default=0)
    there = result.secure_aggregation.rounds[-1].counts.devices
    assert result.secure_aggregation.rounds[-1].counts.void_groups == 0
    return most, 40 - there


def check_steps(tiny, folder, fault, whole_node, caplog):
    caplog.clear()
    result, _ = tried(tiny, folder, "steps", fault, whole_node)
    assert not result.environment.excluded_nodes
    return sum("it is asked again" in record.getMessage() for record in caplog.records)


@pytest.mark.hostile
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("a vector of random words", OF_NODES)])
def test_what_a_device_does_costs_its_group_few_rounds(tiny, tmp_path, fault, caplog):
    """And a step of stage 1 is asked again a few times, the steps after it are not."""
    check_device(tiny, tmp_path, fault, caplog)


@pytest.mark.slow
def test_a_device_that_sends_anything_is_searched_and_left_out(tiny, tmp_path, caplog):
    check_device(tiny, tmp_path, "a vector of random words", caplog)


def check_device(tiny, folder, fault, caplog):
    most, left_out = check_rounds(tiny, folder / "rounds", fault, whole_node=False)
    again = check_steps(tiny, folder / "steps", fault, False, caplog)
    assert [str(most), str(again), str(left_out)] == table()[fault][:3]


@pytest.mark.hostile
@pytest.mark.parametrize("fault", list(FAULTS))
def test_nor_does_a_node_whose_devices_all_do_it_void_every_round(tiny, tmp_path, fault, caplog):
    most, left_out = check_rounds(tiny, tmp_path / "rounds", fault, whole_node=True)
    again = check_steps(tiny, tmp_path / "steps", fault, True, caplog)
    assert [str(most), str(again), str(left_out)] == table()[fault][3:]


def void_sums(tiny, folder, fault, whole_node, monkeypatch) -> Counter[str]:
    """Spoiled sums of each step under a mechanism. No device is in two sums of a step that are opened."""
    opened, real = [], MaskedExchange.opened

    def opening(self, group, survived, *arguments):
        devices = self.groups[group].devices[survived].tolist()
        try:
            sums = real(self, group, survived, *arguments)
        except VoidSumError as error:
            opened.extend((self.server_round, device) for device in devices if error.opened)
            raise
        opened.extend((self.server_round, device) for device in devices)
        return sums

    monkeypatch.setattr(MaskedExchange, "opened", opening)
    result, grid = tried(tiny, folder, "noised steps", fault, whole_node)
    assert set(Counter((grid.times[number], device) for number, device in opened).values()) == {1}
    assert not result.environment.excluded_nodes
    return Counter({step.step: step.void for step in result.stage1.steps if step.void})


@pytest.mark.hostile
@pytest.mark.parametrize("whole_node", [False, True], ids=["a device", "a node"])
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != SPOIL[1]])
def test_under_a_mechanism_no_device_pays_twice(tiny, tmp_path, fault, whole_node, monkeypatch, trial):
    trial("faults in noised steps", "a node" if whole_node else "a device")
    void = void_sums(tiny, tmp_path / "run", fault, whole_node, monkeypatch)
    assert bool(void) == (fault in SPOIL)


@pytest.mark.slow
def test_under_a_mechanism_a_device_that_spoils_every_sum_costs_one_step(tiny, tmp_path, monkeypatch):
    """All are in the first sum. Later ones have a part of them each, of which but one is spoiled."""
    void = void_sums(tiny, tmp_path / "run", SPOIL[1], False, monkeypatch)
    assert void["counts"] == 1
    assert void == {"counts": 1, "pass": 2}
