"""What a folder of results keeps of work that is not finished, and which work it is.

It is a :class:`fl_peel.store.Store` in that folder. That of a run is gone when its results are there. The same command
goes on from it; a run whose scenario, data, fleet or version differs is refused with a line that says what differs. Of
several seeds or settings, those that are done are known by the digests of their results.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fl_peel import __version__
from fl_peel.cpu_dispatch import code_paths
from fl_peel.data.interactions import Splits
from fl_peel.data.timeline import Timeline
from fl_peel.device_storage import device_splits, device_timeline
from fl_peel.errors import ReportError
from fl_peel.files import NO_LOCKS
from fl_peel.json_codec import laid_flat
from fl_peel.packages import code_digest, own_root
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import LOCK, Content, Entry, Store
from simulations.engine.inputs import MODEL, data_folder, run_folder

NAME, RUN = ".unfinished", "run"
"""Folder of what a run keeps until it is finished; name of the entry in it whose key is that run."""
CHECKPOINTS = "checkpoints"
"""Folder of the rows of studies that are done, of seeds and of settings, in that of their results."""
SEED = "seed-"
"""Prefix of the names of the folders of seeds."""
READ_AGAIN = ("report.json", "per-device.parquet", "seeds.json", "timeline.json")
"""Files of results that are read when a seed or a setting is not run again."""


@contextmanager
def owned_store(folder: Path) -> Iterator[Store]:
    """A store in a folder of results, held as by the one process that writes there; the folder is gone afterwards where
    nothing is in it.

    Raises:
        ReportError: another process holds it, or it cannot be written.
    """
    store = Store(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(store.locked())
        except BlockingIOError:
            raise ReportError(
                f"{folder.parent}: another process is writing a run there; wait for it, or give another --out"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ReportError(f"{folder}: cannot write here ({error}); give another --out") from error
        try:
            yield store
        finally:
            if folder.is_dir() and {one.name for one in folder.iterdir()} <= {LOCK}:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def resumable_folder(
    out: Path | None, scenario: Scenario, splits: Splits | Timeline, *, fresh: bool = False
) -> Iterator[str]:
    """The folder ("" where there is no ``out``) of the checkpoints of a run, in which an earlier try may have left
    some; gone when the block ends well, and left as it is when it does not. fresh: what is there is removed first.

    Raises:
        ReportError: another process works there, or it holds what another run has left, or files of somebody else.
    """
    if out is None:
        yield ""
        return
    strangers = [name for name in Store(out / NAME).strangers() if not _is_of_model(name)]
    if strangers:
        raise ReportError(
            f"{out / NAME / strangers[0]}: this version of fl-peel did not write it; move {NAME} elsewhere, or give "
            "another --out"
        )
    with owned_store(out / NAME) as store:
        if fresh:
            store.remove()
        about = about_run(scenario, splits)
        kept = next((entry for entry in store.entries() if entry.name == RUN), None)
        differs = what_differs(kept.key, about) if kept is not None else ""
        if differs:
            raise ReportError(
                f"{out}: holds an unfinished run, with {differs}; give another --out, or --fresh, which discards it"
            )
        try:
            if kept is None:
                store.remove()  # nobody knows what it is of
                store.write(RUN, about)
        except OSError as error:
            raise ReportError(f"{out}: cannot write here ({error}); give another --out") from error
        done = False
        try:
            yield str(store.folder)
            done = True
        finally:
            if done or all(entry.name == RUN for entry in store.entries()):  # or it came to nothing
                store.remove()
                for name in filter(_is_of_model, store.strangers()):
                    shutil.rmtree(store.folder / name, ignore_errors=True)


def _is_of_model(name: str) -> bool:
    """Return whether a folder is the model that a run leaves, whole or as it was being written."""
    return name == MODEL or name.startswith(f".{MODEL}-")


def about_run(scenario: Scenario, splits: Splits | Timeline) -> dict[str, Any]:
    """Everything that decides what a run leaves on the way."""
    content = scenario.model_dump(mode="json")
    for key in ("name", "question"):
        content.pop(key, None)
    content["engine"].pop("backend")  # the same run goes on on another one
    return {
        "scenario": content,
        "data": data_digest(splits),
        "fleet": fleet_digests(scenario),
        "code": code_digest(own_root()),
        "versions": versions(),
    }


def about_seed(scenario: Scenario, data_dir: str | Path | None) -> dict[str, Any]:
    """Return the same of one of several seeds, whose data is read for it."""
    with run_folder() as run_dir:
        read = device_splits if scenario.data.timeline is None else device_timeline
        return about_run(scenario, read(scenario, data_folder(data_dir), str(run_dir)))


def data_digest(splits: Splits | Timeline) -> str:
    """Digest of the three splits of all devices, or of all that they do as time goes by."""
    digest = hashlib.blake2b(digest_size=10)
    if isinstance(splits, Timeline):
        for column in (splits.users, splits.items, splits.times, splits.edges, splits.before):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()
    for part in (splits.train, splits.validation, splits.test):
        digest.update(np.ascontiguousarray(part.indptr).tobytes())
        digest.update(np.ascontiguousarray(part.items).tobytes())
    return f"{splits.num_items}-{digest.hexdigest()}"


def fleet_digests(scenario: Scenario) -> list[list[str]]:
    """Return the digests of the files of a scenario's fleet, one list for each entry."""
    fleet = (scenario.fleet,) if isinstance(scenario.fleet, str) else scenario.fleet
    return [_file_digests(entry) for entry in fleet]


def _file_digests(entry: str) -> list[str]:
    """Return the digests of a fleet file, whole or one class of it (``fleet.yaml:class``), and of the traces and values
    that it names.

    Fleets that ship are found with the sources.
    """
    path = next((Path(text) for text in (entry, entry.rpartition(":")[0]) if Path(text).is_file()), None)
    if path is None:
        return []
    text = path.read_text(encoding="utf-8-sig")
    named = {os.path.join(path.parent, os.path.expanduser(word)) for word in _words(yaml.safe_load(text))}
    files = [path, *(Path(file) for file in sorted(named) if os.path.isfile(file))]
    return [hashlib.blake2b(file.read_bytes(), digest_size=10).hexdigest() for file in files]


def _words(node: object) -> Iterator[str]:
    """Yield every text value of a YAML document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _words(value)
    elif isinstance(node, list):
        for value in node:
            yield from _words(value)


def mark_finished(
    store: Store, results: Path, about: dict[str, Any], value: Any = None, files: Mapping[str, Content] | None = None
) -> None:
    """Keep that a folder has the results of just this run. value, files: as in :meth:`fl_peel.store.Store.write`."""
    with suppress(OSError):  # it will be run again
        store.write(results.name, about, {"results": _digests(results), "value": value}, files)


def read_finished(store: Store, results: Path, about: dict[str, Any]) -> Entry | None:
    """Return what was kept of a run, if its folder has its results as they were written."""
    entry = store.read(results.name, about)
    return entry if entry is not None and entry.value["results"] == _digests(results) else None


def _digests(results: Path) -> dict[str, str]:
    files = [file for file in sorted(results.rglob("*")) if file.name in READ_AGAIN]
    return {
        file.relative_to(results).as_posix(): hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        for file in files
    }


def what_differs(there: dict[str, Any], about: dict[str, Any]) -> str:
    """Return by what another run differs from one, in words; "" where by nothing."""
    for what, mine in json.loads(json.dumps(about)).items():
        theirs = there.get(what)
        if theirs == mine:
            continue
        if not isinstance(mine, dict) or not isinstance(theirs, dict):
            words = {"data": "other data", "fleet": "another fleet file", "code": "the code of another version"}
            return words.get(what, f"no {what}")
        ours, others = laid_flat(mine), laid_flat(theirs)
        keys = [key for key in ours if ours[key] != others.get(key)] or sorted(others.keys() - ours.keys())
        if not keys:  # a newer version has a key of no value that the older one had not
            return f"the {what} of another version"
        return f"{keys[0]}={others.get(keys[0])} and not {ours.get(keys[0])}"
    return ""


# ---- Versions that figures depend on besides scenario and seed: versions of packages, and the code paths that
# libraries run


REQUIREMENTS = "requirements.lock"
"""Name of the lock file in the root of the source: one ``name==version`` a line. It is not in wheels."""


def versions() -> dict[str, str]:
    """Return versions of this package, Python and what figures depend on, whether locked, and the code paths."""
    others = ("flwr", "torch", "numpy", "scikit-learn", "ray", "numba")
    installed = {name: version(name) for name in others}
    lock = environment(own_root() / REQUIREMENTS)
    return {
        "fl-peel": __version__,
        "python": platform.python_version(),
        **installed,
        "lock": lock,
        "code": code_paths(),
    }


def environment(lock: Path) -> str:
    """The environment by a digest of the versions of what is locked, and whether they are those of the lock file."""
    wanted = locked(lock)
    if not wanted:
        return "none here"
    installed = {name: _installed(name) for name in wanted}
    digest = blake2b(
        "\n".join(f"{name}=={installed[name]}" for name in sorted(installed)).encode(), digest_size=8
    ).hexdigest()
    other = [
        f"{name} {installed[name]} for {wanted[name]}" for name in sorted(wanted) if installed[name] != wanted[name]
    ]
    return f"{digest}, {'as locked' if not other else 'not as locked: ' + ', '.join(other)}"


def locked(lock: Path) -> dict[str, str]:
    """Versions by name; none where there is no such file."""
    if not lock.is_file():
        return {}
    lines = [line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==", 1) for line in lines if "==" in line)


@cache
def _installed(name: str) -> str:
    """Version of an installed package, looked up once a process: there are a hundred, and files of each to read."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
