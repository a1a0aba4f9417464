"""The folder of a run that is not finished: what it has done so far, and which run it is.

It lies in the folder that results go to and is gone when they are there. The same command goes on from it; one whose
scenario, data, fleet or version differs is refused with a line that says what differs. Of several seeds, those that are
done are marked with the same description, until all are.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fl_peel.data.interactions import Splits
from fl_peel.data.timeline import Timeline
from fl_peel.errors import FlPeelError, ReportError
from fl_peel.json_codec import laid_flat
from fl_peel.package_check import code_digest, own_root
from fl_peel.scenario.scenario import Scenario
from simulations.engine.folders import OWNER, Owner
from simulations.engine.versions import versions
from simulations.report.result_files import json_bytes, write_files
from simulations.studies.checkpoints import data_digest, fleet_digests

Done = TypeVar("Done")
NAME = ".unfinished"
ABOUT = "about.json"
DONE = ".done.json"


@contextmanager
def resumable_folder(
    out: Path | None, scenario: Scenario, splits: Splits | Timeline, *, fresh: bool = False
) -> Iterator[str]:
    """The folder ("" where there is no ``out``), in which an earlier try of the same run may have left something; gone
    when the block ends well, and left as it is when it does not. fresh: what is there is removed first.

    Raises:
        ReportError: another run is at work there, or it holds what another run has left.
    """
    if out is None:
        yield ""
        return
    folder = out / NAME
    _refuse_a_second(folder)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    about = about_run(scenario, splits)
    differs = what_differs(folder, about)
    if differs:
        raise ReportError(
            f"{out}: holds an unfinished run, with {differs}; give --fresh to start from scratch, or another --out"
        )
    owner = dataclasses.asdict(Owner.from_process(psutil.Process()))
    write_files(folder, {ABOUT: json_bytes(about), OWNER: json_bytes(owner)})
    try:
        yield str(folder)
    except BaseException:
        (folder / OWNER).unlink(missing_ok=True)
        if {one.name for one in folder.iterdir()} <= {ABOUT}:  # it came to nothing
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


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


def mark_completed(out: Path, about: dict[str, Any]) -> None:
    """Mark a folder of results with the run that it is of."""
    write_files(out, {DONE: json_bytes(about)})


def is_completed(out: Path, about: dict[str, Any]) -> bool:
    """Return whether a folder is marked as having the results of just this run."""
    try:
        described = json.loads((out / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(described == json.loads(json.dumps(about)))


def read_completed(out: Path, about: dict[str, Any], read: Callable[[], Done]) -> Done | None:
    """Read a folder with the results of just this run; return None where it has none, or its files are damaged."""
    if not is_completed(out, about):
        return None
    try:
        return read()
    except FlPeelError:
        return None


def what_differs(folder: Path, about: dict[str, Any]) -> str:
    """Return what differs from the folder, in words; "" where nothing does, or nothing readable was left."""
    try:
        there = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if not isinstance(there, dict) or not there.keys() >= about.keys():
        return ""
    for what, mine in json.loads(json.dumps(about)).items():
        theirs = there.get(what)
        if theirs == mine:
            continue
        if not isinstance(mine, dict) or not isinstance(theirs, dict):
            words = {"data": "other data", "fleet": "another fleet file", "code": "the code of another version"}
            return words.get(what, f"no {what}")
        ours, others = laid_flat(mine), laid_flat(theirs)
        keys = [key for key in ours if ours[key] != others.get(key)] or sorted(others.keys() - ours.keys())
        return f"{keys[0]}={others.get(keys[0])} and not {ours.get(keys[0])}"
    return ""


def _refuse_a_second(folder: Path) -> None:
    try:
        owner = Owner(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
        at_work = not owner.is_gone() and owner != Owner.from_process(psutil.Process())
    except (OSError, ValueError, TypeError):
        return
    if at_work:
        raise ReportError(
            f"{folder.parent}: process {owner.pid} of {owner.machine.split()[0]} is writing a run there; wait for it, "
            f"or give another --out (if that machine is gone, remove {folder})"
        )


__all__ = [
    "DONE",
    "NAME",
    "about_run",
    "is_completed",
    "mark_completed",
    "read_completed",
    "resumable_folder",
    "what_differs",
]
