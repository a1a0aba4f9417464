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
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.datasets import dataset_folder, dataset_titles, load_dataset, read_splits
from fl_peel.data.interactions import PARTS, Interactions, Splits, UserItems, split
from fl_peel.data.readers import (
    checked_catalogue,
    read_catalogue,
    read_interactions,
    read_titles,
    restrict_to_catalogue,
)
from fl_peel.data.timeline import Timeline
from fl_peel.errors import DataError
from fl_peel.scenario.scenario import Scenario

ITEM_IDS = "item-ids.json"
"""Beside the splits: the data's own ids of items, by number; not there where the numbers are the ids."""
CATALOGUE, ENROLLED = "catalogue.txt", "enrolled.json"
"""What a node that has its own data is told, and what the server is, in their folders of the run."""
MOST_OF_ITS_OWN = 16 << 20
"""Bytes of items that every process which answers for a node has in memory of its own."""


def load_interactions(scenario: Scenario, data_dir: str) -> Interactions:
    """The scenario's interactions, from a named data set or a file of the user's, with the items of its catalogue.

    Raises:
        DataError: not found, not readable or malformed.
    """
    interactions, catalogue = _read(scenario, data_dir), scenario.data.catalogue
    return (
        interactions
        if catalogue is None
        else restrict_to_catalogue(interactions, read_catalogue(catalogue), interactions.name)
    )


def _read(scenario: Scenario, data_dir: str) -> Interactions:
    data = scenario.data
    if data.name is not None:
        return load_dataset(data.name, data_dir=Path(data_dir) if data_dir else None, min_rating=data.min_rating)
    assert data.path is not None, "data that nodes hold is read by them"
    test_path = Path(data.test_path) if data.test_path else None
    return read_interactions(
        Path(data.path),
        format=data.format,
        test_path=test_path,
        min_rating=data.min_rating,
        name=scenario.name,
        dialect=data.dialect,
    )


def device_splits(scenario: Scenario, data_dir: str, run_dir: str) -> Splits:
    """Splits of all devices, mapped from the run's folder; prepared there by whoever comes first, and anew when the
    files have changed. Of data that nodes hold it is nothing, of as many devices as they have.

    ``data.path`` may also name a folder that holds such splits already (:class:`fl_peel.data.datasets.Population`).

    Raises:
        DataError: the data set is not found, not readable or malformed.
    """
    if scenario.data.held_by_nodes:
        return _nothing(scenario, Path(run_dir))
    return read_splits(_folder(scenario, data_dir, run_dir), beyond=scenario.data.timeline is not None)


def item_ids(scenario: Scenario, data_dir: str, run_dir: str) -> tuple[str, ...]:
    """The data's own ids of items, by number, as they were when the splits were made; none where the numbers are the
    ids, and in a timeline, whose numbers are its own.

    Raises:
        DataError: as for :func:`device_splits`.
    """
    if scenario.data.held_by_nodes:
        assert scenario.data.catalogue is not None, "a scenario without data has a catalogue"
        return read_catalogue(scenario.data.catalogue)
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


def item_titles(scenario: Scenario, ids: Sequence[str], data_dir: str) -> dict[str, str]:
    """Return the titles of items by their ids, of those that have one in ``data.titles``, or beside a named data set.

    Raises:
        DataError: the file cannot be read, or has no title of these items.
    """
    data = scenario.data
    file: str | Path | None = data.titles
    if file is None and data.name is not None:
        file = dataset_titles(data.name, Path(data_dir) if data_dir else None)
    if file is None or data.timeline is not None:  # a timeline has numbers of its own
        return {}
    titles, known = read_titles(file), set(ids)
    shown = {item: title for item, title in titles.items() if item in known}
    if not shown:
        raise DataError(f"{file}: has a title of none of the {len(known)} items; correct data.titles")
    return shown


def _folder(scenario: Scenario, data_dir: str, run_dir: str) -> Path:
    """Where the splits lie, prepared."""
    folder = Path(scenario.data.path or "")
    if not (scenario.data.path and (folder / f"{PARTS[-1]}-items.npy").is_file()):
        data = scenario.data.model_dump(mode="json")
        folder = _prepared_folder(run_dir, scenario.seed, data_dir, data, _stamps(scenario, data_dir))
        if not folder.is_dir():
            splits, ids = _splits(scenario, data_dir, run_dir)  # may download the files first
            folder = _prepared_folder(run_dir, scenario.seed, data_dir, data, _stamps(scenario, data_dir))
            _keep(folder, splits.num_items, splits.parts(), ids)
    return folder


def hosted_splits(
    scenario: Scenario, data_dir: str, run_dir: str, devices: NDArray[np.int64], host: Sequence[int]
) -> Splits:
    """Splits of the devices (N,) that a node of a simulation hosts, renumbered 0..N-1. Many lie in the run's folder,
    mapped: whichever process answers for the node has them from there, and memory holds them once. host: what tells
    the node from others.

    Raises:
        DataError: as for :func:`device_splits`.
    """
    everybody = device_splits(scenario, data_dir, run_dir)
    share = len(devices) / max(everybody.num_users, 1)
    if share * sum(items.items.nbytes for _, items in everybody.parts()) <= MOST_OF_ITS_OWN:
        mine = everybody.select(devices)
    else:
        data = scenario.data.model_dump(mode="json")
        folder = _prepared_folder(run_dir, scenario.seed, data_dir, data, _stamps(scenario, data_dir), *host)
        if not folder.is_dir():
            _keep(folder, everybody.num_items, ((name, items.select(devices)) for name, items in everybody.parts()))
        mine = read_splits(folder, beyond=scenario.data.timeline is not None)
    everybody.drop_pages()
    return mine


def own_splits(scenario: Scenario, data: Path, first: int, folder: Path) -> Splits:
    """Splits of the devices of a node that has their interactions in a file of its own, the first of which has the
    number ``first``; folder: of this node and run, with the catalogue that it was told (:func:`keep_catalogue`). The
    node sees its data as it was when the run began.

    Raises:
        DataError: the file is not found, not readable or malformed, or has no item of the catalogue; or the node was
            told no catalogue.
    """
    part = scenario.data
    prepared = _prepared_folder(str(folder), scenario.seed, first, part.model_dump(mode="json"))
    if not prepared.is_dir():
        interactions = read_interactions(data, format=part.format, dialect=part.dialect)
        interactions = restrict_to_catalogue(interactions, read_catalogue(folder / CATALOGUE), str(data))
        splits = split(
            interactions,
            seed=scenario.seed,
            validation_share=part.validation_share,
            test_share=part.test_share,
            order=part.split_order,
            first=first,
        )
        _keep(prepared, splits.num_items, splits.parts())
    return read_splits(prepared)


def keep_catalogue(catalogue: str, folder: Path) -> None:
    """Remember the items, one a line, that a run is of.

    Raises:
        DataError: it is none.
    """
    checked_catalogue(catalogue, "the server's catalogue")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{CATALOGUE}-{os.getpid()}"
    part.write_text(catalogue, encoding="utf-8")
    os.replace(part, folder / CATALOGUE)


def enrol(num_devices: int, run_dir: str) -> None:
    """Remember how many devices the nodes of a deployment have, whose data they hold."""
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    (Path(run_dir) / ENROLLED).write_text(json.dumps(num_devices), encoding="utf-8")


def _nothing(scenario: Scenario, run_dir: Path) -> Splits:
    try:
        num_devices = int(json.loads((run_dir / ENROLLED).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(
            "data: has only a catalogue, for a deployment whose nodes hold their own interactions (docs/deploy.md); "
            "give data.name or data.path"
        ) from error
    assert scenario.data.catalogue is not None, "a scenario without data has a catalogue"
    nobody = UserItems(np.zeros(num_devices + 1, np.int64), np.zeros(0, np.int32))
    return Splits(nobody, nobody, nobody, len(read_catalogue(scenario.data.catalogue)))


def _prepared_folder(place: str, *of: object) -> Path:
    key = json.dumps(of, sort_keys=True)
    return Path(place) / f"devices-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"


def _stamps(scenario: Scenario, data_dir: str) -> list[tuple[str, int, int]]:
    """Size and time of what the interactions are read from: whether a folder that is kept has those of today."""
    data = scenario.data
    where = [Path(path) for path in (data.path, data.test_path, data.catalogue) if path is not None]
    if data.name is not None:
        where.append(dataset_folder(data.name, Path(data_dir) if data_dir else None))
    files = [file for path in where for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


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
    interactions = load_interactions(scenario, data_dir)
    return Timeline.from_interactions(
        interactions,
        start=part.start,
        periods=part.periods,
        share=part.share,
        days=part.days,
        leaving=part.inactivity_half_life,
    )


def _splits(scenario: Scenario, data_dir: str, run_dir: str) -> tuple[Splits, tuple[str, ...]]:
    """Splits, and own ids of items."""
    data = scenario.data
    if data.timeline is not None:
        return device_timeline(scenario, data_dir, run_dir).splits(data.timeline.period, data.timeline.phase), ()
    interactions = load_interactions(scenario, data_dir)
    return splits_of(scenario, interactions), interactions.item_labels


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


def _keep(folder: Path, num_items: int, parts: Iterable[tuple[str, UserItems]], ids: tuple[str, ...] = ()) -> None:
    """Lay splits in a folder, whole or not at all. parts: by name, one after the other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".devices-"))
    try:
        for part, items in parts:
            np.save(unfinished / f"{part}-indptr.npy", items.indptr)
            np.save(unfinished / f"{part}-items.npy", items.items)
        np.save(unfinished / "num_items.npy", np.int64(num_items))
        if ids:
            (unfinished / ITEM_IDS).write_text(json.dumps(ids), encoding="utf-8")
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # otherwise somebody else was faster, with the same content
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
