"""Pretrained tables kept by content: what changes the key, and what a damaged file does."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fl_peel.pretraining.cache import DIGEST, _digest, pretraining_key, read_tables, write_tables
from fl_peel.pretraining.central_training import EpochFigures, PretrainedEmbeddings
from tests.helpers.blocks import rows_of
from tests.helpers.settings import PRETRAINING

COLLECTED = rows_of([0, 1], [2], [])
CONFIG = PRETRAINING
TABLES = PretrainedEmbeddings(
    np.arange(6, dtype=np.float32).reshape(3, 2) / 7,
    np.arange(8, dtype=np.float32).reshape(4, 2) / 3,
    0.15,
    (EpochFigures(1, 0.1), EpochFigures(2, 1 / 3)),
)


def key(collected=COLLECTED, num_items=4, config=CONFIG, seed=0, device="cpu") -> str:
    return pretraining_key(collected, num_items, config, seed, device)


def test_the_same_content_has_the_same_key():
    assert key() == key(rows_of([0, 1], [2], []), config=PRETRAINING)
    assert len(key()) == 32
    assert set(key()) <= set("0123456789abcdef")


def test_everything_that_decides_the_tables_changes_the_key():
    changed = [
        key(rows_of([0, 1], [3], [])),
        key(rows_of([1, 0], [2], [])),
        key(rows_of([0], [1, 2], [])),
        key(rows_of([0, 1], [2])),
        key(num_items=5),
        key(seed=1),
        key(device="cuda"),
    ]
    for field in dataclasses.fields(CONFIG):
        value = getattr(CONFIG, field.name)
        other = value + 1 if isinstance(value, int | float) else f"{value}-other"
        changed.append(key(config=dataclasses.replace(CONFIG, **{field.name: other})))
    assert len({key(), *changed}) == 1 + len(changed)


@pytest.mark.parametrize("name", ["code_paths", "np.__version__", "scipy.__version__", "torch.__version__"])
def test_so_does_what_computes_them(name, monkeypatch):
    before = key()
    other = "another"
    monkeypatch.setattr(f"fl_peel.pretraining.cache.{name}", (lambda: other) if name == "code_paths" else other)
    assert key() != before


def test_tables_come_back_bit_for_bit(tmp_path):
    write_tables(tmp_path / "new" / "folder", "k", TABLES)
    again = read_tables(tmp_path / "new" / "folder", "k")
    assert again is not None
    for name in ("users", "items"):
        assert (getattr(again, name) == getattr(TABLES, name)).all()
        assert getattr(again, name).dtype == np.float32
    assert again.temperature == TABLES.temperature
    assert again.history == TABLES.history
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["k.safetensors"]


def test_tables_without_epochs(tmp_path):
    write_tables(tmp_path, "k", dataclasses.replace(TABLES, history=()))
    again = read_tables(tmp_path, "k")
    assert again is not None
    assert again.history == ()


def test_slices_of_larger_arrays_are_kept_as_they_read(tmp_path):
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_tables(tmp_path, "k", dataclasses.replace(TABLES, items=wide[:, ::3], users=np.asfortranarray(wide)))
    again = read_tables(tmp_path, "k")
    assert again is not None
    assert (again.items == wide[:, ::3]).all()
    assert (again.users == wide).all()


def test_there_may_be_none(tmp_path):
    assert read_tables(tmp_path, "k") is None
    assert read_tables(tmp_path / "no folder", "k") is None


def test_a_damaged_file_is_as_good_as_none_and_told_in_one_line(tmp_path, caplog):
    """Zeroed numbers, a flipped bit anywhere, even in the shape: not only what safetensors finds."""
    write_tables(tmp_path, "k", TABLES)
    path = tmp_path / "k.safetensors"
    whole = path.read_bytes()
    damages = [b"", b"not at all", whole[:-1], whole[:20], b"\xff" * len(whole), whole[:-24] + bytes(24)]
    damages += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(8, len(whole))]
    for damaged in damages:
        path.write_bytes(damaged)
        caplog.clear()
        kept = read_tables(tmp_path, "k")
        if kept is None:
            (record,) = caplog.records
            assert record.getMessage().startswith(f"{path}: cached tables are damaged (")
            assert record.getMessage().endswith("); pretraining again")
            assert "\n" not in record.getMessage()
        else:  # spaces that safetensors pads its header with
            assert all((getattr(kept, name) == getattr(TABLES, name)).all() for name in ("users", "items"))
            assert (kept.temperature, kept.history) == (TABLES.temperature, TABLES.history)
    path.write_bytes(whole)
    assert read_tables(tmp_path, "k") is not None


def test_a_file_without_a_digest_is_written_anew(tmp_path):
    write_tables(tmp_path, "k", TABLES)
    save_file(load_file(tmp_path / "k.safetensors"), tmp_path / "k.safetensors")
    assert read_tables(tmp_path, "k") is None
    write_tables(tmp_path, "k", TABLES)
    assert read_tables(tmp_path, "k") is not None


def test_several_that_write_at_once_leave_one_whole_file(tmp_path):
    """As runs that find the same cache cold; whoever reads meanwhile finds nothing or all of it."""
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write_tables, tmp_path, "k", TABLES) for _ in range(40)]
        reading = [pool.submit(read_tables, tmp_path, "k") for _ in range(40)]
    assert all(done.exception() is None for done in writing)
    result = [done.result() for done in reading] + [read_tables(tmp_path, "k")]
    assert all((kept.items == TABLES.items).all() for kept in result if kept is not None)
    assert result[-1] is not None
    assert [path.name for path in tmp_path.iterdir()] == ["k.safetensors"]


@pytest.mark.parametrize("name", ["users", "items", "temperature", "loss"])
def test_a_file_that_lacks_something_is_as_good_as_none(tmp_path, name):
    write_tables(tmp_path, "k", TABLES)
    tensors = load_file(tmp_path / "k.safetensors")
    fewer = {other: tensor for other, tensor in tensors.items() if other != name}
    save_file(fewer, tmp_path / "k.safetensors", {DIGEST: _digest(fewer)})
    assert read_tables(tmp_path, "k") is None


def test_an_empty_temperature_is_as_good_as_none(tmp_path):
    write_tables(tmp_path, "k", TABLES)
    tensors = load_file(tmp_path / "k.safetensors")
    tensors["temperature"] = np.zeros(0)
    save_file(tensors, tmp_path / "k.safetensors", {DIGEST: _digest(tensors)})
    assert read_tables(tmp_path, "k") is None


def test_a_write_that_fails_leaves_what_was_there_and_stops_nobody(tmp_path, monkeypatch, caplog):
    write_tables(tmp_path, "k", TABLES)

    def full(tensors, name, metadata):
        raise OSError("no space left")

    monkeypatch.setattr("fl_peel.pretraining.cache.save_file", full)
    write_tables(tmp_path, "k", dataclasses.replace(TABLES, temperature=9.0))
    assert "pretrained tables cannot be cached (no space left); the next run pretrains again" in caplog.text
    again = read_tables(tmp_path, "k")
    assert again is not None
    assert again.temperature == 0.15
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file")
    assert read_tables(tmp_path / "taken" / "deeper", "k") is None
    write_tables(tmp_path / "taken" / "deeper", "k", TABLES)
    assert "deeper: pretrained tables cannot be cached" in caplog.text
