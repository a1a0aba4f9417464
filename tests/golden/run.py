"""Run every entry, and compare its report with the golden one, or record it as such.

With ``--base COMMIT`` the golden reports are those of another commit: this folder is copied into a checkout of it, and
the same entries run there first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.golden.entries import COMMITTED, Entry, Session, entries, open_session
from tests.golden.values import differences, folded, kept, text_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPORTS = HERE / "reports"
"""The golden reports that are committed."""
MADE_WITH = "made-with.json"
"""File beside reports: what figures depend on besides the code."""
PACKAGES = ("dp-accounting", "faiss-cpu", "numba", "numpy", "scikit-learn", "scipy", "torch")
"""Packages whose versions may change a digit."""
MOST_LINES = 20
"""Differences of an entry that are printed."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 1 where something differs or fails, 2 where it cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the golden files anew")
    parser.add_argument("--base", metavar="COMMIT", help="compare with what this commit gives, not with golden files")
    parser.add_argument("--data-dir", type=absolute, metavar="DIR", help="folder of data sets, of which all are run")
    parser.add_argument("--only", metavar="'A B'", help="only these entries")
    parser.add_argument("--nodes", type=int, help="Flower nodes of each run, instead of the scenarios' own")
    parser.add_argument("--reports", type=absolute, default=REPORTS, metavar="DIR", help="folder of the golden files")
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        folder = Path(temporary)
        if asked.base:
            asked.reports = folder / "base"
            if record_base(asked):
                return 2
        session = open_session(asked.data_dir, folder / "runs", asked.nodes)
        wanted = set(asked.only.split()) if asked.only else None
        known = list(entries())
        if wanted is not None and (unknown := wanted - {entry.name for entry in known}):
            print(f"--only: no {', '.join(sorted(unknown))}; choose from {', '.join(entry.name for entry in known)}")
            return 2
        chosen = [entry for entry in known if wanted is None or entry.name in wanted]
        return run(
            [entry for entry in chosen if is_possible(entry, asked)], session, asked.reports, record=asked.record
        )


def absolute(folder: str) -> Path:
    """Return a folder by a name that is good in every working directory."""
    return Path(folder).absolute()


def is_possible(entry: Entry, asked: argparse.Namespace) -> bool:
    """Return whether an entry's data set is here; of one that is not, or of which nothing is committed, say so."""
    if entry.dataset == COMMITTED:
        return True
    if asked.data_dir is None or not (asked.data_dir / entry.dataset).is_dir():
        reason = f"needs {entry.dataset} in a folder that is given"
    elif asked.reports == REPORTS:
        reason = f"nothing of {entry.dataset} is committed; compare with a commit"
    else:
        return True
    print(f"{entry.name:28} skipped: {reason}", flush=True)
    return False


def run(chosen: Iterable[Entry], session: Session, reports: Path, *, record: bool) -> int:
    """Run entries, a line each, with what differs below it; return 1 where something differs or fails, else 0.

    Reports that are committed have digests in place of what is large.
    """
    reports.mkdir(parents=True, exist_ok=True)
    if record:
        (reports / MADE_WITH).write_text(json.dumps(made_with(), indent=1) + "\n", encoding="utf-8")
    for line in other_versions(reports):
        print(line, flush=True)
    start, failed = used_s(), 0
    for entry in chosen:
        before, file = used_s(), reports / entry.file
        verdict, lines = "equal", []
        try:
            report = kept(entry.report(session))
        except Exception as error:  # the other entries are run all the same
            verdict, lines = "failed", [f"{type(error).__name__}: {error}"]
        else:
            if record and not entry.golden:
                file.write_text(text_of(folded(report) if reports == REPORTS else report), encoding="utf-8")
                verdict = "recorded"
            elif not file.is_file():
                verdict, lines = "failed", [f"there is no {file}: record it"]
            elif lines := list(differences(json.loads(file.read_text(encoding="utf-8")), report)):
                verdict = f"{len(lines)} differences"
        print(f"{entry.name:28} {took(before)}  {verdict}", *lines[:MOST_LINES], sep="\n    ")
        if len(lines) > MOST_LINES:
            print(f"    and {len(lines) - MOST_LINES} more")
        sys.stdout.flush()
        failed += bool(lines)
    print(f"{'in all':28} {took(start)}  {f'{failed} not equal' if failed else 'all is well'}")
    return int(failed > 0)


def used_s() -> tuple[float, float]:
    """Return a moment's seconds of wall time, and CPU-seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)


def took(before: tuple[float, float]) -> str:
    """Return the seconds since a moment, in words."""
    wall_s, cpu_s = (now - then for now, then in zip(used_s(), before, strict=True))
    return f"{wall_s:6.1f} s {cpu_s:6.1f} CPU-s"


def made_with() -> dict[str, str]:
    """Return what figures depend on besides the code."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"machine": platform.machine(), "python": ".".join(platform.python_version_tuple()[:2]), **versions}


def other_versions(reports: Path) -> list[str]:
    """Return a line for each package that is of another version than when the reports were recorded."""
    file = reports / MADE_WITH
    then = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = made_with()
    return [
        f"recorded with {name} {then[name]}; here is {now.get(name)}" for name in then if then[name] != now.get(name)
    ]


def record_base(asked: argparse.Namespace) -> int:
    """Record what another commit gives; return the exit code of that."""
    words = ["--record", "--reports", str(asked.reports)]
    for option, value in {"--data-dir": asked.data_dir, "--only": asked.only, "--nodes": asked.nodes}.items():
        words += [] if value is None else [option, str(value)]
    try:
        with checkout(asked.base) as root:
            print(f"{asked.base}:", flush=True)
            environment = os.environ | {"PYTHONPATH": str(root)}
            command = [sys.executable, "-m", "tests.golden", *words]
            code = subprocess.run(command, cwd=root, env=environment, check=False).returncode
    except subprocess.CalledProcessError as error:  # of git, which has said why
        return error.returncode
    print("working tree:", flush=True)
    return code


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary folder, with this folder in it."""
    with tempfile.TemporaryDirectory(prefix="golden-base-") as temporary:
        root = Path(temporary) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", root, commit], cwd=ROOT, check=True)
        try:
            shutil.rmtree(root / "tests" / "golden", ignore_errors=True)
            shutil.copytree(HERE, root / "tests" / "golden", ignore=shutil.ignore_patterns("__pycache__", "reports"))
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", root], cwd=ROOT, check=True)
