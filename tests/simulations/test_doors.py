"""Within simulations/: rooms open one way. That no two files import each other is tested for all packages at once."""

import subprocess
import sys

import pytest

from simulations.studies.sources import imported_names
from tests.helpers.imports import dotted, import_graph, modules
from tests.helpers.root import ROOT

FILES = modules("simulations")
GRAPH = import_graph({dotted(path): path.read_text() for path in FILES})


def test_the_walk_sees_imports():
    assert "simulations.workbench.run" in GRAPH["simulations"]  # within a function
    assert "simulations.studies.frame" in GRAPH["simulations.cli.studies"]  # TYPE_CHECKING


@pytest.mark.parametrize(
    ("room", "closed"),
    [
        ("engine", {"report", "studies", "bench", "cli", "fleet", "runner", "flower"}),
        ("report", {"engine", "studies", "bench", "cli", "runner", "flower"}),
        ("bench", {"studies", "cli", "flower"}),
        ("studies", {"bench", "cli", "runner", "flower"}),
    ],
)
def test_rooms_open_one_way(room, closed):
    opened = {
        (name, other)
        for name, others in GRAPH.items()
        if name.split(".")[1:2] == [room]
        for other in others
        if other.split(".")[1] in closed
    }
    assert opened == set()


def test_the_runner_is_a_door_for_these_names_alone():
    """What else the engine has is imported from where it is."""
    import simulations.runner

    assert simulations.runner.__all__ == ["MODEL", "finished", "keeping", "run", "run_seeds", "save"]
    taken = {
        name
        for path in [*FILES, *(ROOT / "tests").rglob("*.py")]
        for name in imported_names(path.read_text(), dotted(path).rpartition(".")[0])
        if name.startswith("simulations.runner.")
    }
    assert taken <= {f"simulations.runner.{name}" for name in simulations.runner.__all__}


def test_a_user_does_not_wait_for_torch_and_pages_before_ray_starts():
    """They are imported beside Ray's start."""
    program = "import simulations.runner, sys; print({'torch', 'sklearn', 'matplotlib', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
