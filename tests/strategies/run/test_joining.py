"""Devices take part: what is known once they have."""

import dataclasses
import logging

import numpy as np
import pytest

from fl_peel import mmap_arrays, wire
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.data import interactions
from fl_peel.errors import FlPeelError
from simulations.scenario_files import load_scenario
from strategies import nodes as nodes_module
from strategies.nodes import Members
from strategies.run import refinement
from strategies.run.refinement import warn_of_small_groups
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid, let_through
from tests.strategies.run.test_checkpoints import figures


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        (["secure_aggregation.enabled=true"], 1),
        (["secure_aggregation={enabled: true, min_devices: 4}"], 0),
        (["secure_aggregation.enabled=true", "refinement.rounds=0"], 0),
        ([], 0),
    ],
)
def test_rounds_that_every_group_would_sit_out_are_told_before_they_begin(tiny, caplog, changes, output):
    groups = np.array([0, 1, 1, 1, 1, 2], np.int32)
    members = Members(np.arange(6), groups, np.zeros(3, np.int64), ("phone",))
    with caplog.at_level(logging.WARNING, "fl_peel"):
        warn_of_small_groups(load_scenario(tiny, changes), members)
    assert len(caplog.messages) == output
    assert all("min_devices is 8 and the largest user group has 4 devices" in message for message in caplog.messages)


QUICK = ("refinement.rounds=1", "elasticity={rounds: 0, falls: []}", "fairness.tiers=[]", "data.validation_share=20%")


@pytest.mark.parametrize("collected", [1, 0.5])
def test_devices_that_join_a_few_at_a_time_are_those_that_join_at_once(collected, tiny, tmp_path, monkeypatch):
    """Forty on three nodes; and memory holds no more than what is used."""
    scenario = load_scenario(tiny, [*QUICK, f"pretraining.collected.share={collected}", "engine.nodes=3"])
    whole = serve(LoopbackGrid(3), scenario, RunPaths("", str(tmp_path / "whole")))
    monkeypatch.setattr(refinement, "AT_ONCE", 5)
    monkeypatch.setattr(interactions, "SELECTED", 3)
    monkeypatch.setattr(mmap_arrays, "MOST_IN_MEMORY", 0)
    grid = LoopbackGrid(3)
    parts = serve(grid, scenario, RunPaths("", str(tmp_path / "parts")))
    assert figures(parts) == figures(whole)
    requests = [wire.unpack(wire.JoinRequest, content) for kind, content in grid.crossed if kind == wire.JOIN]
    assert {(one.first, one.count) for one in requests} == {(0, 5), (5, 5), (10, 4), (10, 3)}
    assert all(len(one.devices) <= 5 for one in requests)
    for one, other in zip(*(sorted((tmp_path / name).rglob("*.npy")) for name in ("whole", "parts")), strict=True):
        assert one.name == other.name
        assert (np.load(one) == np.load(other)).all()


@pytest.mark.parametrize(
    ("part", "output"),
    [((35, 10), "that do not exist, of 40"), ((41, 0), "do not exist"), ((0, 20), "in another part")],
)
def test_a_part_of_devices_that_are_not_there_is_refused(part, output, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes_module, "PAUSES_S", (0.0,))
    scenario = load_scenario(tiny, QUICK)

    def spoilt(partition, message):
        if message.metadata.message_type == wire.JOIN:
            request = wire.unpack(wire.JoinRequest, message.content)
            message.content = wire.pack(dataclasses.replace(request, first=part[0], count=part[1]))
        return let_through(partition, message)

    with pytest.raises(FlPeelError, match=output):
        serve(LoopbackGrid(1, spoilt), scenario, RunPaths("", str(tmp_path / "run")))


@pytest.mark.parametrize("collected", [1, 0.5])
def test_on_principal_axes_devices_score_as_before(collected, tiny, tmp_path):
    """Those whose embedding the server has and those that find theirs, by tables of groups and by the global one; the
    first slice of the groups' tables has more energy than the second.
    """
    keys = [*QUICK, f"pretraining.collected.share={collected}", "refinement.rounds=0", "blocks.precision=fp16"]
    results = {}
    for form in ("axes", "none"):
        scenario = load_scenario(tiny, [*keys, f"pretraining.diversity_form={form}", "evaluation.artifacts=40"])
        results[form] = serve(LoopbackGrid(2), scenario, RunPaths("", str(tmp_path / form)))
    turned, plain = (one.full_table for one in results.values())
    for name in ("globally", "start", "refined"):
        mine, its = getattr(turned, name), getattr(plain, name)
        assert mine.recall.value == pytest.approx(its.recall.value, abs=0.02), name  # but for ties of fp16
    artifacts = [sorted((tmp_path / form / "artifacts").glob("*.peel")) for form in results]
    of_slices = np.zeros(2)
    for one, other in zip(*artifacts, strict=True):
        stored, before = (StoredEmbedding.from_bytes(path.read_bytes()) for path in (one, other))
        if len(stored.blocks) == len(before.blocks) == 12:  # all blocks of all items
            np.testing.assert_allclose(stored.scores()[1], before.scores()[1], atol=5e-3)
            slices = np.repeat(stored.blocks % 2, stored.counts)
            of_slices += [(stored.codes[slices == s] ** 2).sum() for s in (0, 1)]
            assert not np.array_equal(stored.user, before.user)
    assert of_slices[0] > 2 * of_slices[1] > 0
