"""What is kept is listed with what made it, its size and its age, and cleared by name or as a whole."""

import json

import numpy as np
import pytest

from fl_peel.store import Store
from simulations.engine.folders import default_cache_dir
from simulations.resumable import CHECKPOINTS, NAME, owned_store


@pytest.fixture
def entries(tmp_path, tmp_path_factory, monkeypatch):
    """Two in the cache, one of an unfinished run, one of a study."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    made = []
    for folder in (default_cache_dir(), default_cache_dir(), tmp_path / NAME, tmp_path / CHECKPOINTS):
        Store(folder).write("it", {"seed": len(made), "digest": "0" * 32}, None, {"tables": {"x": np.zeros(500_000)}})
        made.append(Store(folder).entries()[-1].folder.name)
    return made


def test_entries_are_listed_with_what_made_them(entries, tmp_path, command_line):
    code, output, _ = command_line("cache")
    assert code == 0
    first, _, *lines = output.splitlines()
    assert first == f"{default_cache_dir()}: 2 entries, 8.0 MB"
    assert [line.split() for line in lines] == [
        [name, "4.0", "MB", "0", "seconds", f"seed={seed}"] for seed, name in enumerate(entries[:2])
    ]
    listed = json.loads(command_line("cache", str(tmp_path), "--json")[1])
    assert [(one["name"], one["made_by"]["seed"]) for one in listed["entries"]] == [(entries[2], 2), (entries[3], 3)]
    assert all(one["num_bytes"] > 4_000_000 and 0 <= one["age_s"] < 60 for one in listed["entries"])


def test_one_is_cleared_by_its_name_or_all(entries, tmp_path, command_line):
    code, _, error = command_line("cache", "--clear", "other")
    assert code == 2
    assert "--clear: no entry 'other' in" in error
    assert command_line("cache", "--clear", entries[0])[1].startswith(f"{default_cache_dir()}: 1 entries")
    assert command_line("cache", "--clear", "all")[1].startswith(f"{default_cache_dir()}: 0 entries")
    with owned_store(tmp_path / NAME):
        code, _, error = command_line("cache", str(tmp_path), "--clear", "all")
        assert (code, "another process is writing a run there" in error) == (2, True)
    assert Store(tmp_path / NAME).entries()
    assert command_line("cache", str(tmp_path), "--clear", "all")[0] == 0
    assert not list(tmp_path.iterdir())
