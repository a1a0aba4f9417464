"""What may be imported at all, and what is public. Who may import whom, `lint-imports` checks (pyproject.toml)."""

import ast
import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points

import pytest

import fl_peel
import simulations
from fl_peel.errors import EngineError
from fl_peel.packages import PACKAGES, check_one_root, code_digest, own_root
from tests.helpers.imports import imports, modules
from tests.helpers.light import loaded_by
from tests.helpers.root import ROOT

PUBLIC_FLWR = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.simulation"}


def importers(packages, top):
    """(file, imported name) of every import whose first part is ``top``."""
    return {
        (path.relative_to(ROOT).as_posix(), name)
        for package in packages
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] == top
    }


def nodes_of(path, *words):
    """All nodes of a file that has one of these words somewhere."""
    text = path.read_text()
    return ast.walk(ast.parse(text)) if any(word in text for word in words) else ()


def test_one_place_looks_plug_ins_up():
    looking = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in modules(package)
        for node in nodes_of(path, "entry_points")
        if "entry_points" in (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", ""))
    }
    assert looking == {"fl_peel/plugins.py"}


MODES = {"aggregation", "mechanism", "poisoning", "privacy", "robust", "secure_aggregation", "sums_only"}
KINDS = {
    *(f"{kind}{half}Contents" for kind in ("Open", "Bounded", "Bucketed", "Noised") for half in ("Device", "Server")),
    *("MaskedDeviceChannel", "MaskedServerChannel", "MaskedExchange", "MaskedGroup", "SecureGroup"),
}


@pytest.mark.parametrize(
    "file",
    [
        *(f"strategies/rounds/{name}.py" for name in ("federation", "strategy")),
        "clients/node/channel.py",
    ],
)
def test_what_runs_a_round_knows_neither_modes_nor_kinds(file):
    """Which channel and contents there are is asked in one place on each side; what each does is its own."""
    tree = ast.parse((ROOT / file).read_text())
    assert not MODES & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not KINDS & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_only_public_flower():
    """But for one file, which says why."""
    private = {path for path, name in importers(PACKAGES, "flwr") if name not in PUBLIC_FLWR}
    assert private == {"simulations/engine/passing_grid.py"}


def test_one_place_starts_flowers_engine():
    starting = {path for path, name in importers(PACKAGES, "flwr") if name == "flwr.simulation"}
    assert starting == {"simulations/engine/ray_engine.py"}
    callers = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in modules(package)
        for node in nodes_of(path, "run_simulation")
        if isinstance(node, ast.Name) and node.id == "run_simulation"
    }
    assert callers == {"simulations/engine/ray_engine.py"}


PICKLING = ("torch.load", "torch.save", "pd.read_pickle")
OLD_FLOWER = ("NumPyClient", "FedAvg", "start_client", "start_server")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_pickle_and_no_old_flower_api(package):
    banned_modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in modules(package):
        # a test suite, which checks that profiles survive Ray's own pickling; and what a run's own processes say to one
        # another through sockets that nobody else has, as multiprocessing does
        if path.name in {"contracts.py", "message_pipe.py"}:
            continue
        assert not banned_modules & {name.split(".")[0] for name in imports(path)}, path
        for node in nodes_of(path, *PICKLING, *OLD_FLOWER, "allow_pickle"):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in PICKLING, path
                assert node.attr not in OLD_FLOWER, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", path
            if isinstance(node, ast.Name):
                assert node.id not in OLD_FLOWER, path


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_alone_list_their_names(package):
    files = {path for path in modules(package) if path.name != "__init__.py"}
    assert [path for path in files if "\n__all__" in path.read_text(encoding="utf-8")] == []


FLEETS = {
    *("BudgetContract", "BudgetProcess", "DeviceProfile", "Fleet", "FleetBudgets", "Memory", "PositiveFloat"),
    *("ProfileContract", "ShareFloat", "fleet_from_mapping", "load_fleet"),
}
DEVICE_CONTENTS = {"BoundedDeviceContents", "DeviceContents", "DeviceContentsContract", "OpenDeviceContents"}
SERVER_CONTENTS = {
    "NoisedServerContents",
    "OpenServerContents",
    "ServerContents",
    "ServerContentsContract",
    "mean_update",
}
EXPORTED = {
    "fl_peel": {
        *("BoundedStatistic", "Callback", "Event", "GroupUpdate", "StatisticContract"),
        *("Delta", "Device", "Embedding", "Model", "load", "to_onnx"),
        *DEVICE_CONTENTS,
        *SERVER_CONTENTS,
        *("Attack", "AttackContract", "BlockStatistics", "FlPeelError", "Mechanism", "MechanismContract", "Population"),
        *("Scenario", "SelectorContract", "__version__", "device_uniforms", "rng_for", "load_scenario", "run"),
        *("Chart", "Progress", "Result", "Section", "SectionContract", "TableView"),
        *("Figure", "NoisedPart", "Stage", "StageContract", "SumField"),
        *FLEETS,
    },
    "clients": FLEETS | DEVICE_CONTENTS,
    "strategies": {"PeelStrategy", "RunPaths", "serve", *SERVER_CONTENTS},
    "simulations": {
        *("Chart", "Progress", "Result", "Section", "SectionContract", "TableView"),
        *("load_scenario", "run", "shipped_scenarios"),
    },
}


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("package", PACKAGES)
def test_these_names_are_public_and_no_others(package):
    module = importlib.import_module(package)
    assert set(module.__all__) == EXPORTED[package]
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'runs'"):
        module.runs  # noqa: B018


def test_names_of_other_packages_are_the_same_things(api):
    assert fl_peel.run is simulations.run is importlib.import_module("simulations.workbench").run
    assert api.keys() == fl_peel._OF_OTHER_PACKAGES
    for name, place in api.items():
        assert getattr(fl_peel, name) is getattr(importlib.import_module(place.split(":")[0]), name)


def test_names_of_other_packages_without_an_installation_say_what_to_do(monkeypatch):
    monkeypatch.setattr("fl_peel.plugins.entry_points", lambda group: [])
    with pytest.raises(ImportError, match=r"^fl_peel\.run is found through the installed package, .*; install fl-peel"):
        from fl_peel import run  # noqa: F401


@pytest.mark.skipif(not entry_points(group="fl_peel.api"), reason="not installed, or before it had these names")
def test_what_is_installed_has_the_names_of_pyproject(api):
    assert {point.name: point.value for point in entry_points(group="fl_peel.api")} == api


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_more_than_itself(package):
    assert loaded_by(f"import {package}") <= {package, "fl_peel"}


def test_pyproject_points_at_what_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    components = project["tool"]["flwr"]["app"]["components"]
    targets = [*components.values(), *project["project"]["scripts"].values()]
    assert len(targets) == 3
    for target in targets:
        module, name = target.split(":")
        assert hasattr(importlib.import_module(module), name)
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)


def test_everything_that_runs_travels_with_the_flower_app():
    """A Flower app bundle takes these kinds of files only. Nothing that runs in it reads `py.typed`, nor the reader for
    devices without Python.
    """
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name != "py.typed"}
    left_out = {".pyc", ".nbi", ".nbc", ".compiled", ".mjs"}
    assert kinds - left_out <= {".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl"}


def test_one_root_is_found_and_another_in_the_working_directory_is_refused(tmp_path):
    assert check_one_root() == own_root() == ROOT
    assert check_one_root(tmp_path) == ROOT  # nothing there hides ours
    (tmp_path / "clients").mkdir()
    assert check_one_root(tmp_path) == ROOT  # nor does a folder that is no package
    (tmp_path / "clients" / "__init__.py").touch()
    with pytest.raises(EngineError) as caught:
        check_one_root(tmp_path)
    assert str(caught.value) == (
        f"package clients is found in {tmp_path}, but fl_peel runs from {ROOT}; "
        f"run (or start the SuperLink) in another folder, or rename {tmp_path / 'clients'}"
    )


def test_another_copy_of_the_same_code_is_no_second_program(tmp_path):
    for package in PACKAGES:
        for path in modules(package):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    assert code_digest(tmp_path) == code_digest(ROOT)
    assert check_one_root(tmp_path) == ROOT
    code_digest.cache_clear()
    with (tmp_path / "clients" / "client_app.py").open("a") as file:
        file.write("\n")
    with pytest.raises(EngineError, match="is found in"):
        check_one_root(tmp_path)


def test_a_hidden_package_is_found_before_anything_runs(own_folders):
    code = "import clients; assert clients.MINE; from fl_peel import load_scenario"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=own_folders)
    assert f"package clients is found in {own_folders}, but fl_peel runs from {ROOT}" in ran.stderr
