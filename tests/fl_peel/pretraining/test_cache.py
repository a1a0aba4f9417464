"""Pretrained tables kept by content: what changes the key, and what a damaged file does."""

import dataclasses
import json

import numpy as np
import pytest

from fl_peel.pretraining.central_training import (
    EpochFigures,
    PretrainedEmbeddings,
    cached_groups,
    pretraining_key,
    read_tables,
    write_tables,
)
from fl_peel.pretraining.clusters import UserGroups
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


def key(collected=COLLECTED, num_items=4, config=CONFIG, seed=0, device="cpu"):
    return pretraining_key(collected, num_items, config, seed, device)


def test_the_same_content_has_the_same_key():
    assert key() == key(rows_of([0, 1], [2], []), config=PRETRAINING)


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
    assert len({json.dumps(one) for one in (key(), *changed)}) == 1 + len(changed)


@pytest.mark.parametrize("name", ["code_paths", "np.__version__", "scipy.__version__", "torch.__version__"])
def test_so_does_what_computes_them(name, monkeypatch):
    before = key()
    other = "another"
    monkeypatch.setattr(
        f"fl_peel.pretraining.central_training.{name}", (lambda: other) if name == "code_paths" else other
    )
    assert key() != before


def test_tables_come_back_bit_for_bit(tmp_path):
    assert read_tables(tmp_path / "new" / "folder", key()) is None
    for tables in (TABLES, dataclasses.replace(TABLES, history=())):
        write_tables(tmp_path / "new" / "folder", key(), tables)
        again = read_tables(tmp_path / "new" / "folder", key())
        assert again is not None
        for name in ("users", "items"):
            assert (getattr(again, name) == getattr(tables, name)).all()
            assert getattr(again, name).dtype == np.float32
        assert again.temperature == tables.temperature
        assert again.history == tables.history


def test_a_damaged_file_is_as_good_as_none_and_told_in_one_line(tmp_path, caplog):
    write_tables(tmp_path, key(), TABLES)
    (folder,) = tmp_path.iterdir()
    largest = max(folder.iterdir(), key=lambda file: file.stat().st_size if file.name != "entry" else 0)
    data = largest.read_bytes()
    largest.write_bytes(data[:-1] + bytes([data[-1] ^ 128]))  # another sign
    assert read_tables(tmp_path, key()) is None
    (record,) = caplog.records
    assert record.getMessage() == f"{folder}: damaged (a digest does not fit); pretraining again"


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file")
    assert read_tables(tmp_path / "taken" / "deeper", key()) is None
    write_tables(tmp_path / "taken" / "deeper", key(), TABLES)
    assert "deeper: pretrained tables cannot be cached" in caplog.text


def test_groups_are_made_once_of_the_same_tables_and_the_same_settings(tmp_path):
    made = []

    def groups(folder, num_groups, **changed):
        def cluster():
            made.append(UserGroups(np.array([0, -1, len(made)], np.int32), np.ones((2, 2), np.float32) / 3))
            return made[-1]

        return cached_groups(str(folder) if folder else "", key(**changed), num_groups, 5, cluster)

    first, again = groups(tmp_path, 2), groups(tmp_path, 2)
    assert len(made) == 1
    for name in ("assignment", "centroids"):
        assert (getattr(again, name) == getattr(first, name)).all()
        assert getattr(again, name).dtype == getattr(first, name).dtype
    for place, num_groups, seed in ((tmp_path, 3, 0), (tmp_path, 2, 1), ("", 2, 0)):
        assert groups(place, num_groups, seed=seed) is made[-1]
    assert len(made) == 4
