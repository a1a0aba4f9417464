"""Within simulations/: rooms open one way. That no two files import each other is tested for all packages at once."""

import subprocess
import sys

import pytest

from tests.helpers.imports import dotted, import_graph, modules, statements
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

    assert simulations.runner.__all__ == ["MODEL", "finished", "run", "run_seeds", "save", "with_checkpoints"]
    taken = {
        name
        for path in [*FILES, *(ROOT / "tests").rglob("*.py")]
        for module, _, names in statements(path.read_text())
        for name in (f"{module}.{one}" for one in names or ())
        if name.startswith("simulations.runner.")
    }
    assert taken <= {f"simulations.runner.{name}" for name in simulations.runner.__all__}


LATER = {"torch", "sklearn", "matplotlib", "jinja2", "ray"}
"""What is imported when something trains, groups are made, a page is drawn, or never on one machine."""


def test_a_user_does_not_wait_for_what_comes_later(tiny, tmp_path):
    """Until the nodes answer; and without --out no page is drawn."""
    program = f"""if True:
        import sys
        from simulations.cli import progress_lines
        from simulations.cli.main import main
        def tell(lines, event, write=progress_lines.ProgressLines.__call__):
            print(event.stage, event.done, sorted({LATER!r} & set(sys.modules)))
            write(lines, event)
        progress_lines.ProgressLines.__call__ = tell
        sys.argv = ["fl-peel", "run", {str(tiny)!r}, "--no-cache", *sys.argv[1:]]
        main()
    """
    for more in ([], ["--out", str(tmp_path / "out")]):
        done = subprocess.run([sys.executable, "-c", program, *more], capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if line.endswith("]")]
        assert lines[:3] == ["start 0 []", "start 1 []", "data 1 []"]
        assert "heterogeneity 1 ['sklearn', 'torch']" in lines
