"""The disks of the simulated devices: every device's train, validation and test items, prepared once per run.

The data set is read and split once and laid in the run's folder as plain arrays, which server and nodes map into
memory. The server takes the collected interactions from there (:func:`fl_peel.data.interactions.collected`), a node its
own devices' rows; a real device would have its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from fl_peel.data.datasets import load_dataset
from fl_peel.data.interactions import PARTS, Interactions, Splits, UserItems, split
from fl_peel.data.population import SAID, read_splits
from fl_peel.data.readers import read_interactions
from fl_peel.data.timeline import Timeline
from fl_peel.errors import DataError
from fl_peel.scenario.scenario import Scenario

ITEM_IDS = "item-ids.json"
"""Beside the splits: the data's own ids of items, by number; not there where the numbers are the ids."""


def load_interactions(scenario: Scenario, data_dir: str) -> Interactions:
    """The scenario's interactions, from a named data set or a file of the user's.

    Raises:
        DataError: not found, not readable or malformed.
    """
    data = scenario.data
    if data.name is not None:
        return load_dataset(data.name, data_dir=Path(data_dir) if data_dir else None, min_rating=data.min_rating)
    assert data.path is not None
    test_path = Path(data.test_path) if data.test_path else None
    return read_interactions(
        Path(data.path), format=data.format, test_path=test_path, min_rating=data.min_rating, name=scenario.name
    )


def device_splits(scenario: Scenario, data_dir: str, run_dir: str) -> Splits:
    """Splits of all devices, mapped from the run's folder; prepared there by whoever comes first.

    ``data.path`` may also name a folder that holds such splits already (:class:`fl_peel.data.population.Population`).

    Raises:
        DataError: the data set is not found, not readable or malformed.
    """
    return read_splits(_folder(scenario, data_dir, run_dir), beyond=scenario.data.timeline is not None)


def item_ids(scenario: Scenario, data_dir: str, run_dir: str) -> tuple[str, ...]:
    """The data's own ids of items, by number, as they were when the splits were made; none where the numbers are the
    ids, and in a timeline, whose numbers are its own.

    Raises:
        DataError: as for :func:`device_splits`.
    """
    file = _folder(scenario, data_dir, run_dir) / ITEM_IDS
    if not file.is_file():
        return ()
    try:
        ids = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no ids of items ({str(error)[:80]}); write the folder again") from error
    num_items = device_splits(scenario, data_dir, run_dir).num_items
    if not isinstance(ids, list) or len(ids) != num_items or not all(isinstance(one, str) for one in ids):
        raise DataError(f"{file}: not a list of {num_items} ids; write the folder again")
    return tuple(ids)


def _folder(scenario: Scenario, data_dir: str, run_dir: str) -> Path:
    """Where the splits lie, prepared."""
    folder = Path(scenario.data.path or "")
    if not (scenario.data.path and (folder / f"{PARTS[-1]}-items.npy").is_file()):
        key = json.dumps([scenario.seed, data_dir, scenario.data.model_dump(mode="json")], sort_keys=True)
        folder = Path(run_dir) / f"devices-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
        if not folder.is_dir():
            _prepare(scenario, data_dir, folder)
    return folder


def device_timeline(scenario: Scenario, data_dir: str, run_dir: str) -> Timeline:
    """All interactions in the order of time, as ``data.timeline`` cuts them: what no device and no server has, but the
    rivals that see everything. run_dir: of the run, in which data does not change.

    Raises:
        DataError: the data set is not found, not readable or malformed, has no timestamps, or is too small.
    """
    part = scenario.data.timeline
    assert part is not None, "the scenario has a timeline"
    # wherever in it the run is, it is the same timeline: read and cut once in a process
    anywhere = scenario.data.model_copy(update={"timeline": part.model_copy(update={"period": 0, "phase": "learn"})})
    return _cut(scenario.model_copy(update={"data": anywhere}).to_json(), data_dir, run_dir)


@lru_cache(maxsize=1)
def _cut(scenario_json: str, data_dir: str, run_dir: str) -> Timeline:
    scenario = Scenario.from_json(scenario_json)
    part = scenario.data.timeline
    assert part is not None, "the scenario has a timeline"
    found = load_interactions(scenario, data_dir)
    return Timeline.of(
        found, start=part.start, periods=part.periods, share=part.share, days=part.days, leaving=part.leaving
    )


def _splits(scenario: Scenario, data_dir: str, run_dir: str) -> tuple[Splits, tuple[str, ...]]:
    """Splits, and own ids of items."""
    data = scenario.data
    if data.timeline is not None:
        return device_timeline(scenario, data_dir, run_dir).splits(data.timeline.period, data.timeline.phase), ()
    found = load_interactions(scenario, data_dir)
    return splits_of(scenario, found), found.item_labels


def splits_of(scenario: Scenario, interactions: Interactions) -> Splits:
    """Every device's items, as the scenario cuts interactions that no timeline does."""
    data = scenario.data
    return split(
        interactions,
        seed=scenario.seed,
        validation_share=data.validation_share,
        test_share=data.test_share,
        order=data.split_order,
    )


def _prepare(scenario: Scenario, data_dir: str, folder: Path) -> None:
    splits, ids = _splits(scenario, data_dir, str(folder.parent))
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".devices-"))
    try:
        for part in (*PARTS, SAID):
            items: UserItems | None = getattr(splits, part)
            if items is None:
                continue
            np.save(unfinished / f"{part}-indptr.npy", items.indptr)
            np.save(unfinished / f"{part}-items.npy", items.items)
        np.save(unfinished / "num_items.npy", np.int64(splits.num_items))
        if ids:
            (unfinished / ITEM_IDS).write_text(json.dumps(ids), encoding="utf-8")
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # otherwise somebody else was faster, with the same content
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
