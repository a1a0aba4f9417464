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
    events = []
    result = large(600, tmp_path / "out", on_event=lambda event: events.append(event.text))
    assert (result["devices"], result["user_groups"]) == (600, 3)
    assert result["seconds"] == pytest.approx(
        sum(result["stages"][name] for name in ("write_population", "join", "round"))
    )
    assert result["stages"]["round"] >= result["round_seconds"] > 0
    assert result["peak_rss_bytes"] > 100_000_000
    assert events[0] == "600 devices written"
    assert json.loads((tmp_path / "out" / "population.json").read_text()) == result


def test_groups_are_as_large_as_those_of_a_million():
    assert 1_000_000 / DEVICES_PER_GROUP == 16


@pytest.mark.parametrize(("memory", "disk", "output"), [(8, 100, r"8\.7 GB of memory"), (100, 8, r"17\.0 GB of disk")])
def test_what_cannot_be_held_is_refused_at_the_start(monkeypatch, tmp_path, memory, disk, output):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * 10**9))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * 10**9))
    monkeypatch.setattr(module, "simulated", lambda *_, **__: pytest.fail("nothing may be made"))
    with pytest.raises(EngineError, match=output):
        large(10_000_000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
