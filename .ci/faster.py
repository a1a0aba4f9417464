"""What makes mutation testing faster, or patient, and changes nothing of what it finds.

Tests are collected once, and not again for every mutant: a mutant is a fork, and has what was collected before. pytest
reads, orders and sets up what it is asked to run each time it is called, which takes longer than most tests.

What is not mutated keeps its time, so that loops that were compiled for it are not compiled again.

What a mutant computes is limited, and not how long it waits for a processor; so is the memory that it asks for.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import _prepareconfig
from mutmut import __main__ as mutmut
from mutmut import configuration
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.utils.file_utils import change_cwd
from mutmut.workers import isolation, timeout
from mutmut.workers.isolation import ForkRunner

FOLDER = Path("mutants")
"""Where mutmut has the mutants, and starts tests."""
PATIENCE = 20
"""How much longer a mutant may take by the clock than mutmut allows: a machine that is busy with something else must
not make a survivor look as if it had run too long. The limit of what it computes stays as it is.
"""
MEMORY_BYTES = 2 << 30
"""What a mutant may ask for besides what was there before: one that takes a number for a length asks for more than any
machine has.
"""
SUSPICIOUS = 35
"""mutmut's exit code for a mutant of which nothing can be said."""


class Collected:
    """Tests of a group as pytest has them before it runs the first."""

    def __init__(self, arguments: list[str], scratch: Path) -> None:
        """Collect; scratch: where each mutant has temporary files in a folder of its own, which goes with it."""
        self.scratch = scratch
        with change_cwd(FOLDER):
            self.config = _prepareconfig(["--rootdir=.", "--tb=no", "-x", "-q", "--capture=no", *arguments])
            self.session = pytest.Session.from_config(self.config)
            self.config._do_configure()
            self.config.hook.pytest_sessionstart(session=self.session)
            self.items = {item.nodeid: item for item in self.session.perform_collect()}

    def run(self, names: Iterable[str]) -> int:
        """Run these tests in their order, up to the first that fails; to be called once, in a fork."""
        _limit_memory()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        items = [self.items[name] for name in names]
        own = tempfile.mkdtemp(dir=self.scratch)
        factory: Any = self.config._tmp_path_factory  # type: ignore[attr-defined]
        factory._given_basetemp, factory._basetemp = Path(own), None
        try:
            with change_cwd(FOLDER):
                for place, item in enumerate(items):
                    following = items[place + 1] if place + 1 < len(items) else None
                    self.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if self.session.shouldfail or self.session.shouldstop:
                        return pytest.ExitCode.TESTS_FAILED
        except KeyboardInterrupt:
            return pytest.ExitCode.INTERRUPTED
        except BaseException:
            return pytest.ExitCode.INTERNAL_ERROR
        finally:
            shutil.rmtree(own, ignore_errors=True)
        return pytest.ExitCode.TESTS_FAILED if self.session.testsfailed else pytest.ExitCode.OK


def _limit_memory() -> None:
    """Of this process; where the system does not tell what it has, there is no limit."""
    memory = Path("/proc/self/statm")
    if memory.exists():
        limit = int(memory.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def make_faster() -> None:
    """Have mutmut collect tests once, and keep the times of what it copies."""
    start, stop, run = ForkRunner.startup, ForkRunner.shutdown, PytestRunner.run_tests
    collected: list[Collected] = []

    def startup(self: ForkRunner) -> None:
        given = configuration.config()
        arguments = [*given.pytest_add_cli_args, *given.pytest_add_cli_args_test_selection]
        collected.append(Collected(arguments, Path(tempfile.mkdtemp())))
        unknown = sorted(state().duration_by_test.keys() - collected[-1].items.keys())
        if unknown:
            raise RuntimeError(f"{unknown[0]}: has another name where tests are collected anew; give it plain ids")
        start(self)

    def shutdown(self: ForkRunner) -> None:
        stop(self)
        shutil.rmtree(collected[-1].scratch, ignore_errors=True)

    def run_tests(self: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        if not collected:
            return run(self, mutant_name=mutant_name, tests=tests)
        try:
            return collected[0].run(tests)
        except BaseException:  # to be counted neither as killed nor as survived; and no fork tidies up for all
            os._exit(SUSPICIOUS)

    ForkRunner.startup = startup  # type: ignore[method-assign]
    ForkRunner.shutdown = shutdown  # type: ignore[method-assign]
    PytestRunner.run_tests = run_tests  # type: ignore[method-assign]
    mutmut.create_file_mutants = _made


def make_patient() -> None:
    """Have mutmut wait longer for a mutant."""

    def patient(pid: int, timeout_s: float) -> None:
        timeout.register_timeout(pid, PATIENCE * timeout_s)

    setattr(isolation, "register_timeout", patient)  # noqa: B010 - not among what the module says that it exports


_make = mutmut.create_file_mutants


def _made(path: Path) -> mutmut.FileMutationResult:
    if configuration.config().should_mutate(path):
        return _make(path)
    (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, FOLDER / path)
    return mutmut.FileMutationResult(ignored=True)


__all__ = ["Collected", "make_faster", "make_patient"]
