"""Checkpoints that a run keeps as it goes, so that one that was killed continues where it was, to the same figures.

A stage that is done leaves one file: what came of it and, where devices changed, a copy of their disks beside it. A
refinement leaves one such file after every round, in place of the last. A file appears whole or not at all, and holds
its own digest: one that is damaged counts as not there, and its stage is done again.

The content of a file is a value of :mod:`strategies.run.checkpoint_codec`, compressed: statistics of blocks are mostly
nought.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from fl_peel.events import Event, OnEvent, silent
from strategies.run.checkpoint_codec import Live, read_value, write_value
from strategies.run.row_file import RowFile
from strategies.run.run_paths import RunPaths, StageTimes

Result = TypeVar("Result")

MAGIC = b"fl-peel kept 1\n"
DIGEST_BYTES = 16
HEAD_BYTES = len(MAGIC) + DIGEST_BYTES
CODEC = "lz4"
DISKS = ("nodes", "artifacts")
"""Folders of a run in which devices change something."""
STEPS = "step-"
"""Names of what is kept within a stage, until the stage is."""
SECRETS = "secure"
"""Folders within, of secrets that last as long as a round."""
DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError),
    *(MemoryError, OverflowError, RecursionError),
)


@dataclass
class RunCheckpoints:
    """The files of one run. folder: None keeps nothing; run_dir: where devices' disks are; stages: what stages took,
    which goes on, too.
    """

    folder: Path | None
    run_dir: Path
    stages: StageTimes
    on_event: OnEvent = field(default=silent, repr=False)

    @staticmethod
    def from_paths(paths: RunPaths, stages: StageTimes, on_event: OnEvent = silent) -> RunCheckpoints:
        """Build the checkpoints in the folders of a run."""
        return RunCheckpoints(
            Path(paths.checkpoint_dir) if paths.checkpoint_dir else None, Path(paths.run_dir), stages, on_event
        )

    def stage(self, name: str, work: Callable[[], Result], *, disks: bool = False, timed: str | None = None) -> Result:
        """Return the result of a stage that is done, or of ``work``, whose result is then kept. disks: whether devices
        change in it; timed: name under which its seconds count, None where ``work`` sees to it.
        """
        entry = self.read(name)
        if entry is not None:
            self.on_event(Event(name, 1, 1, "resumed from a checkpoint"))
            return entry.value  # type: ignore[no-any-return]
        with nullcontext() if timed is None else self.stages(timed):
            result = work()
        self.write(name, lambda rows: result, disks=disks)
        self._forget_steps()
        return result

    def read(self, name: str, live: Live | None = None, check: Check | None = None) -> Checkpoint | None:
        """Return what was kept under a name, with the devices' disks as they were then; None where nothing complete
        was. check: checks the rows that a value was kept with.
        """
        if self.folder is None:
            return None
        try:
            data = (self.folder / f"{name}.kept").read_bytes()
            content = opened(data, live)
            number, seconds, value = content["number"], content["seconds"], content["value"]
            rows = RowFile(self._rows(name, number or 0))
            if check is not None:
                check(value, rows)
            if number is not None:
                self._restore(self.folder / f"{name}.disks-{number}")
        except FileNotFoundError:
            return None
        except DAMAGED as error:
            self.on_event(Event(name, 0, 1, f"the checkpoint is damaged ({str(error)[:80]}): computed again"))
            return None
        self.stages.seconds.update(seconds)
        return Checkpoint(value, rows)

    def write(
        self, name: str, value: Callable[[RowFile], object], *, disks: bool, number: int = 0, live: Live | None = None
    ) -> None:
        """Keep a value under a name, in place of an earlier one. value: of a file that it may write rows to; number:
        another one each time that disks are kept.
        """
        if self.folder is None:
            return
        try:
            content_value = value(RowFile(self._rows(name, number)))
            content = {
                "number": number if disks else None,
                "seconds": dict(self.stages.seconds),
                "value": content_value,
            }
            if disks:
                self._copy(self.folder / f"{name}.disks-{number}")
            part = self.folder / f".{name}.part"
            seal(part, content, live)
            os.replace(part, self.folder / f"{name}.kept")
            for old in self.folder.glob(f"{name}.disks-*"):
                if not disks or old.name != f"{name}.disks-{number}":
                    shutil.rmtree(old, ignore_errors=True)
        except (OSError, TypeError, RecursionError) as error:
            self.on_event(Event(name, 1, 1, f"the checkpoint cannot be written ({str(error)[:80]})"))

    def _forget_steps(self) -> None:
        """They were of a stage that is done."""
        for one in [] if self.folder is None else list(self.folder.glob(f"{STEPS}*")):
            shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink(missing_ok=True)

    def _rows(self, name: str, number: int) -> Path:
        """Two files in turn: the one that the last value was kept with stays as it is."""
        assert self.folder is not None
        return self.folder / f"{name}.rows-{number % 2}"

    def _copy(self, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for disk in DISKS:
            if (self.run_dir / disk).is_dir():
                shutil.copytree(self.run_dir / disk, target / disk, ignore=shutil.ignore_patterns(SECRETS))

    def _restore(self, source: Path) -> None:
        """Files are replaced, each by a new one: what a process has mapped stays as it was."""
        if not source.is_dir():
            raise FileNotFoundError(f"{source.name} is not there")
        for disk in DISKS:
            if (source / disk).is_dir():
                shutil.rmtree(self.run_dir / disk, ignore_errors=True)
                shutil.copytree(source / disk, self.run_dir / disk)


@dataclass(frozen=True)
class Checkpoint:
    """A value that was kept; there may be one that is None."""

    value: Any
    rows: RowFile


Check = Callable[[Any, RowFile], None]
"""Whether rows are those of a value: a ValueError, where they are not."""


def seal(path: Path, content: object, live: Live | None = None) -> None:
    """Write a content to a file, after its digest.

    Raises:
        OSError: it cannot be written.
        TypeError, RecursionError: it holds something that is no value, or itself.
    """
    with pa.OSFile(os.fspath(path), "wb") as file:
        file.write(MAGIC + bytes(DIGEST_BYTES))
        with pa.CompressedOutputStream(file, CODEC) as stream:
            write_value(stream, content, {} if live is None else live)
    with path.open("r+b") as written:
        written.seek(HEAD_BYTES)
        digest = hashlib.file_digest(written, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
        written.seek(len(MAGIC))
        written.write(digest)


def opened(data: bytes, live: Live | None = None) -> Any:
    """Return the content of what :func:`seal` wrote.

    Raises:
        ValueError: it is none of ours, or damaged.
        Exception: those of ``DAMAGED``: it was sealed by somebody else.
    """
    if len(data) < HEAD_BYTES or not data.startswith(MAGIC):
        raise ValueError("not a kept stage of this version")
    if data[len(MAGIC) : HEAD_BYTES] != _digest(data[HEAD_BYTES:]):
        raise ValueError("its digest does not fit")
    with pa.CompressedInputStream(pa.BufferReader(memoryview(data)[HEAD_BYTES:]), CODEC) as stream:
        return read_value(memoryview(stream.read()), {} if live is None else live)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


__all__ = ["RunCheckpoints"]
