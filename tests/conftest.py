"""Shared by the tests: planted taste groups as a file, a scenario that runs on them in a second, a quiet place."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

# read when Flower, Ray, torch and NumPy are imported, so before any test module is
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# threads of one small product wait for one another, at full speed, while the other tests have their processor
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from fl_peel import plugins
from fl_peel.data import datasets
from fl_peel.errors import DataError
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import load_scenario
from tests.helpers.examples import register_profiles
from tests.helpers.planted import planted_interactions
from tests.helpers.root import ROOT

register_profiles()

FLEET = """
profiles:
  - name: small
    population_share: 0.5
    memory: {table_share: 0.42}
    budget:
      process: markov
      states: {foreground: 1.0, background: 0.57}
      transitions_per_step: {foreground: [0.5, 0.5], background: [0.5, 0.5]}
  - {name: large, population_share: 0.5, memory: {table_share: 1.0}}
"""

SCENARIO = """
question: Does a tiny run work?
data: {path: planted.csv, test_share: 0.25}
pretraining: {embedding_dim: 8, num_layers: 1, epochs: 3, num_negatives: 16, diversity_slices: 2}
user_groups: {count: 2, min_size: 4}
blocks: {item_groups: contiguous, count: 6, num_slices: 2}
selector: controller
refinement: {rounds: 2, local: {batch_size: 4}}
fleet: fleet.yaml
evaluation: {budgets: [50%, 1.0], selectors: [controller, popularity], artifacts: 2}
"""


LONGEST = tuple(
    f"tests/{name}.py"
    for name in (
        *("hostile/test_kills", "hostile/test_liars"),  # beside busy processes, nothing that has a time limit
        *("simulations/deployment/test_deployment", "golden/test_reports", "test_first_hour"),
        *("simulations/studies/test_frame", "simulations/test_run", "simulations/test_killed"),
        *("simulations/engine/test_flwr_run", "fl_peel/kernels/test_lanes", "simulations/studies/test_compare"),
        *("hostile/test_masked_faults", "strategies/rounds/test_channels", "fl_peel/attacks/test_canary"),
    )
)
"""Files of half a minute and more in ``make test-all``, the longest first."""
DAMAGED = tuple(
    f"tests/{name}.py"
    for name in (
        *("fl_peel/blocks/test_vectors", "fl_peel/data/test_readers", "fl_peel/model/test_model_files"),
        "simulations/test_fuzzed_inputs",
    )
)
"""Files whose properties are of damaged files and bad inputs, which ``make hostile`` tries more often."""
SLOW_KINDS = ("engine", "faults", "deployment", "hostile")
"""Markers of tests that only ``make test-all`` runs, but for those that are marked ``smoke`` besides."""


def pytest_configure(config: pytest.Config) -> None:
    """Compile the loops once before there are workers, each of which would compile all of them."""
    if getattr(config.option, "numprocesses", None):
        from fl_peel.kernels import compile_ahead

        if not compile_ahead.is_compiled():
            subprocess.run([sys.executable, "-m", "fl_peel.kernels.compile_ahead"], cwd=ROOT, check=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow by its kind. Files that take long come first, so that no worker is left with one of them at
    the end: those above, then what starts an engine. All tests of a file stay together, in their order.
    """
    for item in items:
        if is_hostile(config) and item.nodeid.startswith(DAMAGED) and hasattr(item.function, "hypothesis"):
            item.add_marker("hostile")
        if any(map(item.get_closest_marker, SLOW_KINDS)) and not item.get_closest_marker("smoke"):
            item.add_marker("slow")
    files = [item.nodeid.partition("::")[0] for item in items]
    starting = {file for file, item in zip(files, items, strict=True) if item.get_closest_marker("engine")}
    rank = {file: (LONGEST.index(file) if file in LONGEST else len(LONGEST), file not in starting) for file in files}
    items.sort(key=lambda item: rank[item.nodeid.partition("::")[0]])


def pytest_collection_finish() -> None:
    """What is imported stays: half a million objects need not be looked through whenever something is let go."""
    gc.collect()
    gc.freeze()


def is_hostile(config: pytest.Config) -> bool:
    """Whether this is a part of ``make hostile``."""
    return bool(config.option.markexpr == "hostile")


@pytest.fixture
def trial(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Counts a trial that begins, or so many, of something that is tried, as ``make hostile`` shows in the end."""
    return lambda what, how, times=1: record_property("trial", (what, how, times))


@pytest.fixture(autouse=True)
def counted_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of a property are trials."""
    handle = getattr(request.function, "hypothesis", None)
    if handle is None or not is_hostile(request.config):
        return
    inner, trials = handle.inner_test, [request.path.stem, request.function.__name__, 0]

    @functools.wraps(inner)
    def counted(*args: Any, **kwargs: Any) -> None:
        trials[-1] += 1
        inner(*args, **kwargs)

    monkeypatch.setattr(handle, "inner_test", counted)
    request.node.user_properties.append(("trial", trials))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Of ``make hostile``: how often each thing was tried. The last trial of a test that fails is the one that went
    wrong.
    """
    if not is_hostile(config):
        return
    tried, wrong = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        properties = report.user_properties if getattr(report, "when", "") == "call" else []  # and of no warning
        trials = [value for name, value in properties if name == "trial"]
        for what, how, times in trials:
            tried[what, how] += times
        if trials and report.failed:
            wrong[tuple(trials[-1][:2])] += 1
    terminalreporter.section("trials")
    for what in sorted({what for what, _ in tried}):
        rows = [place for place in sorted(tried) if place[0] == what]
        terminalreporter.line(f"{what}: {sum(map(tried.get, rows))}, wrong: {sum(wrong[place] for place in rows)}")
        for place in rows:
            terminalreporter.line(f"  {tried[place]:6} {place[1]}" + f", wrong: {wrong[place]}" * (wrong[place] > 0))


class Nowhere:
    """A source of data files that cannot be reached."""

    where = "nowhere"

    def fetch(self, folder: Path, progress: datasets.ProgressCallback) -> None:
        """Refuse."""
        raise DataError("no route")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("FL_PEEL_DATA", raising=False)


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of a name come from nowhere: a test that needs one fails on every machine, or on none."""
    known = tuple(replace(dataset, sources=(Nowhere(),)) for dataset in datasets.DATASETS)
    monkeypatch.setattr(datasets, "DATASETS", known)


@pytest.fixture(scope="session")
def compiled_for_others(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where loops lie that are compiled for other processors: one folder for all tests of a session, whose workers have
    theirs beside one another.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled-for-others"
    folder.mkdir(exist_ok=True)
    return str(folder)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The names that ``fl_peel`` takes from other packages, as pyproject.toml has them, whatever is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named: dict[str, str] = project["entry-points"]["fl_peel.api"]
    points = [EntryPoint(name, value, "fl_peel.api") for name, value in named.items()]
    real = plugins.entry_points
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "fl_peel.api" else real(group=group))
    return named


@pytest.fixture(scope="session")
def planted_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny scenario, its fleet and its data, for what several tests share; nobody writes there."""
    folder = tmp_path_factory.mktemp("planted")
    plant(folder / "planted.csv", users_per_group=20, items_per_group=30, per_user=12, noise=0.1)
    (folder / "fleet.yaml").write_text(FLEET)
    (folder / "tiny.yaml").write_text(SCENARIO)
    return folder


@pytest.fixture(scope="session")
def tiny_run(planted_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The tiny scenario on two nodes, and the nodes: for tests that look at a run without a wish of their own."""
    from tests.helpers.runs import served  # torch and Flower, which the process that starts workers does without

    with chdir(planted_home):
        return served(load_scenario("tiny.yaml"), tmp_path_factory.mktemp("tiny-run"))


@pytest.fixture
def tiny(planted_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scenario file of 40 devices in 2 taste groups and 60 items; relative names in it start at its own folder."""
    for file in planted_home.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tiny.yaml"


@pytest.fixture
def own_folders(tmp_path: Path) -> Path:
    """A folder in which somebody has packages with the names of ours."""
    for name in ("clients", "strategies", "simulations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    return tmp_path


@pytest.fixture
def tiny_scenario(tiny: Path) -> Scenario:
    """The same, read."""
    return load_scenario(tiny)


def plant(path: Path, **shape: Any) -> None:
    """Write two taste groups as CSV: user u belongs to group u // users_per_group; items likewise."""
    data = planted_interactions(1, groups=2, **shape)
    lines = [f"u{user:04},i{item:04}" for user in range(data.num_users) for item in data.pairs.row(user)]
    path.write_text("user,item\n" + "\n".join(lines) + "\n")
