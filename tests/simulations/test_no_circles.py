"""Within simulations/: no two files import each other, however far around, and rooms open one way."""

import pytest

from simulations.studies.sources import imported_names, module_file
from tests.helpers.root import ROOT

FILES = sorted((ROOT / "simulations").rglob("*.py"))


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def targets(path):
    """Files of simulations/ that a file's import statements name: of ``from a import b`` b, where b is a module."""
    name = dotted(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names = imported_names(path.read_text(), package)
    modules = {one for one in names if module_file(one, ROOT) is not None}
    longest = {one for one in modules if not any(other.startswith(f"{one}.") for other in modules)}
    found = {module_file(one, ROOT) for one in longest if one.partition(".")[0] == "simulations"}
    return {one for one in found if one is not None and one != path}


GRAPH = {path: targets(path) for path in FILES}


def circle(graph):
    """A circle of the graph as a list of its nodes; empty where there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if found := visit(other):
                return found
        path.pop()
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node))), [])


def test_the_search_finds_circles():
    assert circle({1: {2}, 2: {3}, 3: set()}) == []
    assert circle({1: {2}, 2: {3}, 3: {2}}) == [2, 3]
    assert circle({1: {2, 3}, 2: {4}, 3: {4}, 4: set()}) == []


def test_the_walk_sees_imports():
    assert ROOT / "simulations/runner.py" in GRAPH[ROOT / "simulations/__init__.py"]  # within a function
    assert ROOT / "simulations/studies/frame.py" in GRAPH[ROOT / "simulations/cli/studies.py"]  # TYPE_CHECKING


def test_no_circle_of_files():
    assert [dotted(path) for path in circle(GRAPH)] == []


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
        (dotted(path), dotted(other))
        for path, others in GRAPH.items()
        if dotted(path).split(".")[1:2] == [room]
        for other in others
        if dotted(other).split(".")[1] in closed
    }
    assert opened == set()


def test_the_runner_is_a_door_for_three_names():
    """What else the engine has is imported from where it is."""
    import simulations.runner

    assert simulations.runner.__all__ == ["finished", "run", "save"]
    taken = {
        name
        for path in [*FILES, *(ROOT / "tests").rglob("*.py")]
        for name in imported_names(path.read_text(), dotted(path).rpartition(".")[0])
        if name.startswith("simulations.runner.")
    }
    assert taken <= {f"simulations.runner.{name}" for name in simulations.runner.__all__}
