"""`flwr run .`: Flower's own command on Flower's own engine gives what `fl-peel run` gives, and fails as clearly."""

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import warnings
import zipfile
from pathlib import Path

import psutil
import pytest
from flwr.cli.build import build_fab_from_files

from fl_peel.errors import FlPeelError
from simulations.flower import command, read_config
from simulations.report.run_files import read_report
from simulations.scenario_files import load_scenario
from tests.helpers.root import ROOT
from tests.helpers.runs import figures, served
from tests.simulations.test_run import check_artifacts

CONFIG = {"scenario": "ml-100k", "seed": -1, "data-dir": "", "out": "", "set": ""}


def test_the_run_config_is_read(tiny, tmp_path):
    config = CONFIG | {
        "scenario": str(tiny),
        "seed": 4,
        "data-dir": "/data",
        "out": str(tmp_path / "out"),
        "set": f" refinement.rounds=3; data.path={tmp_path / 'planted.csv'};fleet=default ;",
    }
    scenario, data_dir, out = read_config(config)
    assert (scenario.seed, scenario.refinement.rounds, scenario.fleet) == (4, 3, "default")
    assert (data_dir, out) == ("/data", tmp_path / "out")
    assert read_config(CONFIG)[0].seed == load_scenario("ml-100k").seed  # -1: the scenario's own


def test_the_data_folder_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("FL_PEEL_DATA", "/somewhere")
    assert read_config(CONFIG)[1:] == ("/somewhere", None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": -2}, "seed: -2 is not a seed; give 0, 1, 2, ... or -1"),
        ({"scenario": "ml-10k"}, "ml-10k: no such scenario or file"),
        ({"set": "refinement.roundz=3"}, "ml-100k: unknown key refinement.roundz"),
        ({"data-dir": "data"}, "data-dir: data is a relative path; give an absolute path under flwr run"),
        ({"out": "out/x"}, "out: out/x is a relative path"),
        ({"set": "data={path: my.csv}"}, "data.path: my.csv is a relative path"),
        ({"set": "fleet=./mine.yaml"}, "fleet: ./mine.yaml is a relative path"),
        ({"set": "fleet=phonez"}, "phonez: no such fleet file or name"),
        ({"out": str(Path(__file__))}, f"{__file__}: is a file; give out a folder"),
    ],
)
def test_a_bad_run_config_is_one_line(changes, line):
    with pytest.raises(FlPeelError) as caught:
        read_config(CONFIG | changes)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_plain_keys_stand_for_keys_of_the_scenario():
    config = CONFIG | {
        "num-server-rounds": 3,
        "local-epochs": 2,
        "learning-rate": 0.5,
        "selector": "energy",
        "fleet": "",
    }
    scenario, _, _ = read_config(config)
    assert (scenario.refinement.rounds, scenario.refinement.local.epochs, scenario.selector) == (3, 2, "energy")
    assert scenario.refinement.local.learning_rate == 0.5
    assert scenario.fleet == load_scenario("ml-100k").fleet
    assert "num-server-rounds=3 local-epochs=2 learning-rate=0.5 selector='energy'" in command(config)
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert read_config(shipped)[0] == load_scenario("ml-100k"), "the defaults change nothing"


def test_the_package_is_within_the_limits_of_the_hub(app):
    files = [file for file in app.rglob("*") if file.is_file()]
    sizes = [file.stat().st_size for file in files]
    assert len(files) <= 1000
    assert max(sizes) <= 10**6
    assert sum(sizes) <= 10**7
    assert not (app / "tests").exists()
    components = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "fl_peel.server_app:app", "clientapp": "fl_peel.client_app:app"}
    for place in components.values():
        module, name = place.split(":")
        assert type(getattr(importlib.import_module(module), name)).__name__ in ("ServerApp", "ClientApp")


def test_the_command_that_gives_the_report_again():
    assert command(CONFIG | {"seed": 3, "set": "refinement.rounds=2", "out": "/x"}) == (
        "flwr run . --stream --run-config \"scenario='ml-100k' seed=3 set='refinement.rounds=2'\""
    )


@pytest.fixture
def superlink(tmp_path):
    """A Flower home of its own; the SuperLink that `flwr run` leaves behind is ended by its pid."""
    home = tmp_path / "flower"
    folder = Path(sys.executable).parent
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_ADDRESS": "local",  # not a cluster that an earlier `ray start` left the address of
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
    yield environment
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]
    for process in ours:
        process.send_signal(signal.SIGTERM)
    psutil.wait_procs(ours, timeout=20)


def flwr(environment, *args, folder=ROOT):
    return subprocess.run(
        ["flwr", *args], env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """What `flwr build` makes of the repository, unpacked: what the hub would hand out."""
    folder = tmp_path_factory.mktemp("app")
    files = {file: (ROOT / file).read_bytes() for file in tracked_files()}
    with warnings.catch_warnings():  # Flower's, of its pathspec
        warnings.simplefilter("ignore", DeprecationWarning)
        content, _ = build_fab_from_files(files)
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        package.extractall(folder)
    return folder


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [file for file in listed.splitlines() if (ROOT / file).is_file()]


def run_app(environment, folder, app, **config):
    text = " ".join(f"{key}={value}" if isinstance(value, int) else f"{key}='{value}'" for key, value in config.items())
    federation = "num-supernodes=2 client-resources-num-cpus=1"
    return flwr(
        environment,
        "run",
        str(app),
        "--stream",
        "--federation-config",
        federation,
        "--run-config",
        text,
        folder=folder,
    )


def with_absolute_paths(tiny):
    """The same scenario, with paths that hold anywhere."""
    text, place = tiny.read_text(), tiny.parent
    text = text.replace("planted.csv", f"{place}/planted.csv").replace("fleet.yaml", f"{place}/fleet.yaml")
    (place / "absolute.yaml").write_text(text)


@pytest.mark.engine
@pytest.mark.hostile
def test_flwr_run_beside_fl_peel_run_on_the_same_engine(tiny, tmp_path, superlink, app, trial):
    """Each has a Ray of its own."""
    trial("two at once", "flwr run and fl-peel run")
    with_absolute_paths(tiny)
    words = ["run", str(tiny), "--set", "engine.backend=ray", "--nodes", "2", "--seed", "8", "--out", "mine"]
    with subprocess.Popen([sys.executable, "-m", "simulations.cli.main", *words], cwd=tmp_path) as mine:
        ran = run_app(
            superlink, tmp_path, app, scenario=f"{tmp_path}/absolute.yaml", seed=7, out=str(tmp_path / "theirs")
        )
    assert mine.returncode == 0
    for seed, out in ((7, "theirs"), (8, "mine")):
        wanted, _ = served(load_scenario(tiny, seed=seed), tmp_path / f"run-{seed}")
        assert figures(read_report(tmp_path / out / "report.json")) == figures(wanted), ran.stdout + ran.stderr


@pytest.mark.engine
def test_flwr_run_equals_fl_peel_run_and_fails_clearly(tiny, tmp_path, superlink, app):
    with_absolute_paths(tiny)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    ran = run_app(superlink, elsewhere, app, scenario=str(tmp_path / "absolute.yaml"), seed=7, out=str(out))
    assert "refinement 2/2" in ran.stdout, ran.stdout + ran.stderr
    assert "Elastic embeddings by budget" in ran.stdout, ran.stdout + ran.stderr
    result = read_report(out / "report.json")
    wanted, _ = served(load_scenario(tiny, seed=7), tmp_path / "run")
    assert figures(result) == figures(wanted)
    check_artifacts(out, result)
    assert (out / "report.html").is_file()

    failed = run_app(superlink, elsewhere, app, scenario=str(tmp_path / "absolute.yaml"), set="refinement.roundz=7")
    assert "unknown key refinement.roundz; did you mean 'rounds'?" in failed.stdout + failed.stderr
    for _ in range(50):
        runs = json.loads(flwr(superlink, "ls", "--format", "json").stdout)["runs"]
        if runs and all(row["status"].startswith("finished") for row in runs):
            break
        time.sleep(0.2)
    by_status = {row["status"]: row["status-details"] for row in runs}
    assert set(by_status) == {"finished:completed", "finished:failed"}
    assert "unknown key refinement.roundz; did you mean 'rounds'?" in by_status["finished:failed"]
