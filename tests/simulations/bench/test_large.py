"""One round of a population: every device is in it, and what cannot be held is refused before anything is made."""

import json
from types import SimpleNamespace

import pytest

from fl_peel.errors import EngineError
from simulations.bench import large as module
from simulations.bench.large import DEVICES_PER_GROUP, large
from tests.helpers.loopback import LoopbackGrid


def loopback(scenario, place, on_event, *, server):
    return server(LoopbackGrid(2), scenario, place, on_event)


@pytest.mark.slow
def test_every_device_is_in_the_round_and_what_it_took_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "simulated", loopback)
    monkeypatch.setattr(module, "DEVICES_PER_GROUP", 200)
    told = []
    found = large(600, tmp_path / "out", on_event=lambda event: told.append(event.text))
    assert (found["devices"], found["user_groups"]) == (600, 3)
    assert found["seconds"] == pytest.approx(
        sum(found["stages"][name] for name in ("write_population", "join", "round"))
    )
    assert found["stages"]["round"] >= found["round_seconds"] > 0
    assert found["peak_rss_bytes"] > 100_000_000
    assert told[0] == "600 devices written"
    assert json.loads((tmp_path / "out" / "population.json").read_text()) == found


def test_groups_are_as_large_as_those_of_a_million():
    assert 1_000_000 / DEVICES_PER_GROUP == 16


@pytest.mark.parametrize(("memory", "disk", "said"), [(8, 100, r"8\.7 GB of memory"), (100, 8, r"17\.0 GB of disk")])
def test_what_cannot_be_held_is_refused_at_the_start(monkeypatch, tmp_path, memory, disk, said):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * 10**9))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * 10**9))
    monkeypatch.setattr(module, "simulated", lambda *_, **__: pytest.fail("nothing may be made"))
    with pytest.raises(EngineError, match=said):
        large(10_000_000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
