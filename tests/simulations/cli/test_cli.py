"""The command line: what it prints, and honest exit codes; every mistake is one line on stderr."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fl_peel import __version__
from fl_peel.errors import EngineError, FlPeelError
from fl_peel.events import Event
from fl_peel.store import Store
from simulations.cli import console
from simulations.cli import main as cli
from simulations.engine.inputs import default_cache_dir
from simulations.report.fleet_view import bars
from simulations.resumable import CHECKPOINTS, NAME, owned_store
from tests.helpers.light import loaded_by

ERROR = "fl-peel: error: "


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_version(fl_peel):
    assert fl_peel("--version") == (0, f"fl-peel {__version__}\n", "")


@pytest.mark.parametrize(
    "args",
    [
        ("run", "--help"),
        ("scenarios",),
        ("run", "ml-100k", "--set", "selector=popularty"),
        ("run", "ml-100k", "--set", "data={path: nowhere.csv}"),
        ("compare", "ml-100k", "--budgets", "much"),
        ("audit", "ml-100k", "--set", "refinement.roundz=3"),
    ],
    ids=" ".join,
)
def test_help_lists_and_mistakes_in_keys_answer_at_once(args):
    """Nothing that computes is loaded, not even NumPy."""
    assert loaded_by(f"import sys; sys.argv[1:] = {args!r}; from simulations.cli.main import main; main()") == {
        "fl_peel",
        "simulations",
    }


def test_scenarios_lists_names_and_questions(fl_peel):
    code, out, _ = fl_peel("scenarios")
    assert code == 0
    assert any(line.startswith("ml-100k ") and line.rstrip().endswith("?") for line in out.splitlines())


def test_data_list_says_what_is_where(fl_peel, tmp_path):
    (tmp_path / "gowalla").mkdir()
    for name in ("train.txt", "test.txt"):
        (tmp_path / "gowalla" / name).write_text("0 1\n")
    code, out, _ = fl_peel("data", "list", "--data-dir", tmp_path)
    lines = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert code == 0
    assert set(lines) == {"ml-100k", "ml-1m", "gowalla", "yelp2018", "amazon-book", "amazon-electronics-timed"}
    assert lines["gowalla"][1:] == ["29,858", "40,981", "1,027,370", str(tmp_path / "gowalla")]
    assert "not downloaded" in " ".join(lines["ml-1m"])


def test_profiles_list_show_validate(fl_peel, tmp_path):
    code, out, _ = fl_peel("profiles", "list")
    assert code == 0
    assert {"default", "phones", "wearables"} <= {line.split(" ")[0] for line in out.splitlines()}
    code, out, _ = fl_peel("profiles", "show", "default")
    assert code == 0
    assert "low-end" in out.splitlines()[1]
    assert "30.00%" in out.splitlines()[1]
    assert "population_share: 0.30" in out  # the file's own text
    fleet = tmp_path / "mine.yaml"
    fleet.write_text("profiles: [{name: a, memory: {table_share: 0.5}}, {name: b, memory: {table_share: 0.1}}]")
    assert fl_peel("profiles", "validate", fleet, "default")[:2] == (
        0,
        f"{fleet}: 2 device classes (a, b)\ndefault: 3 device classes (low-end, mid-range, high-end)\n",
    )


def test_profiles_sample_draws_a_table_and_a_figure(fl_peel, tmp_path):
    fleet = tmp_path / "mine.yaml"
    fleet.write_text(
        "profiles:\n"
        "  - {name: half, population_share: 1.0, memory: {table_share: 0.5}, network: {uplink_mbps: 3}}\n"
        "  - {name: never, population_share: 0.0, memory: {table_share: 0.1}}\n"
    )
    figure = tmp_path / "new" / "fleet.svg"
    code, out, _ = fl_peel(
        *("profiles", "sample", fleet, "--devices", 50, "--full-table-bytes", 4000, "--out", figure, "--wide")
    )
    assert code == 0
    drawn, _, _ = out.partition("Budgets over time")
    cells = {line.split()[0]: line.split() for line in drawn.splitlines() if line.strip()}
    # half of 4000 bytes at all times: 2 KB at every percentile, no change
    assert cells["half"][1:] == [
        *("50", "2.00", "KB", "2.00", "KB", "2.00", "KB", "50%", "0.00", "5,000", "3", "20", "100%")
    ]
    assert cells["never"][1] == "0"
    assert out.rstrip().endswith(str(figure))
    assert figure.read_text().startswith("<svg ")
    assert [path.name for path in figure.parent.iterdir()] == ["fleet.svg"]


def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_drawn(fl_peel, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, out, err = fl_peel("profiles", "sample", "phones", "--out", tmp_path / "taken" / "fleet.svg")
    assert (code, out) == (2, "")
    assert err == f"{ERROR}{tmp_path / 'taken'}: is a file; give --out a folder\n"


def test_profiles_sample_plots_budgets_in_the_terminal(fl_peel, tmp_path):
    fleet = tmp_path / "mine.yaml"
    fleet.write_text(
        "clock: {steps_per_round: 1}\n"
        "shocks: [{at_round: 2, factor: 0.25, until_round: 3}, {at_round: 4, factor: 0}]\n"
        "profiles: [{name: half, memory: {table_share: 0.5}}]\n"
    )
    code, out, _ = fl_peel(*("profiles", "sample", fleet, "--devices", 5, "--rounds", 6, "--full-table-bytes", 8000))
    assert code == 0
    # 4000 bytes; 1000 of them in round 2, two eighths; nothing from round 4 on, as blanks
    line = next(line for line in out.splitlines() if "█" in line)
    assert " ".join(line.split()) == "half 0 B 4.00 KB ██▂█"
    assert any(line.rstrip().endswith("round 0 to 5") for line in out.splitlines())


def test_bars_keep_a_short_fall():
    values = np.full(480, 800)
    values[123] = 1  # in the 13th of 48 stretches of ten
    assert bars(values) == "█" * 12 + "▁" + "█" * 35
    assert bars(np.zeros(3, np.int64)) == "   "


def test_what_a_terminal_would_obey_is_written_out(fl_peel, tmp_path):
    fleet = tmp_path / "mine.yaml"
    fleet.write_text('profiles: [{name: a, memory: {"\\e[31mred": 1}}]')
    code, _, err = fl_peel("profiles", "validate", fleet)
    assert code == 2
    assert "profiles[0].memory.\\x1b[31mred: unknown key" in err
    assert "\x1b" not in err


def test_the_same_fleet_and_seed_give_the_same_figure(fl_peel, tmp_path):
    for name in ("a.svg", "b.svg"):
        fl_peel("profiles", "sample", "mixed", "--devices", 40, "--rounds", 6, "--out", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


RECORDING = "100\nMemTotal: 9 kB\nMemAvailable: 4 kB\n105\nMemTotal: 9 kB\nMemAvailable: 2 kB\n"
TRACE = "device,time_s,memory_bytes\nphone,0,4096\nphone,5,2048\n"


def test_profiles_from_meminfo_prints_a_trace(fl_peel, tmp_path):
    phone = tmp_path / "phone.txt"
    phone.write_text(RECORDING)
    assert fl_peel("profiles", "from-meminfo", phone) == (0, TRACE, "")
    half = fl_peel("profiles", "from-meminfo", phone, "--recommender-share", 0.5)
    assert half == (0, "device,time_s,memory_bytes\nphone,0,2048\nphone,5,1024\n", "")
    (tmp_path / "untimed.txt").write_text("MemAvailable: 4 kB\nMemAvailable: 2 kB\n")
    untimed = fl_peel("profiles", "from-meminfo", tmp_path / "untimed.txt", "--every", 5)
    assert untimed == (0, TRACE.replace("phone", "untimed"), "")


def test_profiles_from_meminfo_writes_a_trace_that_a_fleet_replays(fl_peel, tmp_path):
    for name in ("phone", "tablet"):
        (tmp_path / f"{name}.txt").write_text(RECORDING)
    out = tmp_path / "new" / "memory.csv"
    code, printed, _ = fl_peel(
        *("profiles", "from-meminfo", tmp_path / "phone.txt", tmp_path / "tablet.txt", "--out", out)
    )
    assert code == 0
    cells = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert cells["tablet"] == ["tablet", "2", "5", "s", "2.05", "KB", "4.10", "KB"]
    assert printed.rstrip().endswith(str(out))
    assert out.read_text() == TRACE + "tablet,0,4096\ntablet,5,2048\n"
    assert [path.name for path in out.parent.iterdir()] == ["memory.csv"]
    (out.parent / "mine.yaml").write_text(
        "profiles: [{name: recorded, budget: {process: trace, file: memory.csv, scale: absolute}}]"
    )
    assert fl_peel("profiles", "validate", out.parent / "mine.yaml")[0] == 0


def test_a_bad_recording_is_one_line_and_leaves_nothing(fl_peel, tmp_path):
    good, bad, out = tmp_path / "good.txt", tmp_path / "bad.txt", tmp_path / "new" / "memory.csv"
    good.write_text(RECORDING)
    bad.write_text(RECORDING.replace("105", "95"))
    code, printed, err = fl_peel("profiles", "from-meminfo", good, bad, "--out", out)
    assert (code, printed) == (2, "")
    assert err == f"{ERROR}{bad}:4: time must rise (got 95 after 100); remove this snapshot, or wait longer\n"
    assert not out.parent.exists()
    out.parent.mkdir()
    out.write_text("what was there")
    assert fl_peel("profiles", "from-meminfo", bad, "--out", out)[0] == 2
    assert out.read_text() == "what was there"


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("phone.csv", "phone.csv: is one of the recordings; give --out another name"),
        ("memory.parquet", "memory.parquet: not a CSV file; give --out a name that ends in .csv"),
        ("folder.csv", "folder.csv: is a folder; give --out a file"),
        ("phone.csv/memory.csv", "phone.csv: is a file; give --out a folder"),
    ],
)
def test_a_trace_that_cannot_be_written_is_refused(fl_peel, tmp_path, out, expected):
    phone = tmp_path / "phone.csv"
    phone.write_text(RECORDING)
    (tmp_path / "folder.csv").mkdir()
    code, printed, err = fl_peel("profiles", "from-meminfo", phone, "--out", tmp_path / out)
    assert (code, printed) == (2, "")
    assert err.startswith(ERROR)
    assert expected in err
    assert err.count("\n") == 1
    assert phone.read_text() == RECORDING


def bad_line(tmp_path):
    (tmp_path / "bad.csv").write_text("user,item\nu1,i1\nu2\n")
    return ["--set", "data.path=bad.csv"]


MISTAKES = {
    "missing file": (lambda _: ["--set", "data.path=nowhere.csv"], "nowhere.csv: no such file or folder; correct"),
    "malformed line": (bad_line, "bad.csv:3: 1 field where 2 belong (user, item), split at commas"),
    "unknown data set": (
        lambda _: ["--set", "data.path=null", "--set", "data.name=ml-100"],
        "ml-100: no such data set; did you mean 'ml-100k'? known: ml-100k, ml-1m, ",
    ),
    "data folder that is nowhere": (
        lambda tmp: ["--set", "data={name: ml-100k}", "--data-dir", str(tmp / "nowhere")],
        "nowhere: no such folder; correct --data-dir",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_the_engine_starts(fl_peel, tiny, tmp_path, monkeypatch, mistake):
    monkeypatch.setattr("simulations.engine.engine.run_embedded", None)  # would fail loudly
    args, line = MISTAKES[mistake]
    code, out, err = fl_peel("run", tiny, "--out", tmp_path / "out", *args(tmp_path))
    assert (code, out) == (2, "")
    *before, last = err.splitlines()
    assert last.startswith(ERROR)
    assert line in last
    assert all("] start: tiny" in one for one in before)  # a run says at once what it is
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_cannot_be_downloaded_is_one_line(fl_peel):
    code, out, err = fl_peel("data", "fetch", "gowalla")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith(f"{ERROR}gowalla: could not be downloaded (nowhere: no route); ")


def test_fetching_an_unknown_data_set_is_one_line(fl_peel):
    code, out, err = fl_peel("data", "fetch", "../ml-100k")
    assert (code, out) == (2, "")
    assert "no such data set" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_to_a_disk_that_is_full_is_one_line():
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-m", "simulations.cli.main", "scenarios"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = "fl-peel: error: output: No space left on device; make some room, or write elsewhere\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_what_we_did_not_foresee_keeps_its_traceback(tiny, monkeypatch):
    """A bug of ours must not look like a mistake of the user's."""
    code = (
        "import sys; from simulations.cli import main as cli; import simulations.scenario_files\n"
        "def broken(*args, **kwargs): raise ZeroDivisionError('ours')\n"
        f"simulations.scenario_files.load_scenario = broken; sys.argv = ['fl-peel', 'run', {str(tiny)!r}]\n"
        "cli.main()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Traceback")
    assert ran.stderr.rstrip().endswith("ZeroDivisionError: ours")


@pytest.mark.parametrize(
    "args",
    [
        ("run", "--bogus"),
        ("run", "--seed", "-3"),
        ("machines", "x"),
        ("profiles", "sample"),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(fl_peel, args):
    code, _, err = fl_peel(*args)
    assert code == 2
    assert err.startswith(ERROR)
    assert re.search(r"; see fl-peel[a-z -]* --help\n$", err)
    assert err.count("\n") == 1
    assert err.count("id you mean") <= 1


def test_run_passes_everything_on(fl_peel, tiny, tmp_path, monkeypatch):
    asked = {}

    def fake(scenario, options):
        asked.update(vars(options), scenario=scenario)
        raise FlPeelError("two\nlines")

    monkeypatch.setattr("simulations.runner.run", fake)
    code, _, err = fl_peel(
        *("run", tiny, "--set", "refinement.rounds=9", "--seed", 5, "--nodes", 3),
        *("--profiles", "phones", "--out", tmp_path / "out", "--data-dir", tmp_path, "--no-cache"),
    )
    assert (code, err.splitlines()[-1]) == (2, f"{ERROR}two lines")
    scenario = asked["scenario"]
    assert (scenario.refinement.rounds, scenario.seed, scenario.engine.nodes, scenario.fleet) == (9, 5, 3, "phones")
    assert scenario.data.path == str(tmp_path / "planted.csv")  # absolute: workers have their own working directory
    assert asked["out"] == tmp_path / "out"
    assert asked["data_dir"] == tmp_path
    assert asked["cache_dir"] is None
    assert asked["command"] == (
        f"fl-peel run {tiny} --set refinement.rounds=9 --data-dir {tmp_path} --seed 5 --profiles phones --nodes 3"
    )


def test_runs_keep_pretrained_tables_unless_told_otherwise(fl_peel, tiny, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("simulations.runner.run", lambda scenario, options: asked.update(vars(options)))
    assert fl_peel("run", tiny, "--quiet") == (0, "", "")
    assert asked["cache_dir"] == tmp_path / "cache" / "fl-peel" / "pretrained"


def test_a_run_is_served_while_it_lasts_where_that_is_asked_for(fl_peel, tiny, monkeypatch):
    seen = []

    def run(scenario, options):
        options.on_event(Event("data", 1, 1))
        seen.append([thread.name for thread in threading.enumerate() if "serve_forever" in thread.name])

    monkeypatch.setattr("simulations.runner.run", run)
    status, out, err = fl_peel("run", tiny, "--quiet", "--live-port", "0")
    assert (status, out) == (0, "")
    assert re.fullmatch(r"live: http://127\.0\.0\.1:\d+/\n", err)
    assert fl_peel("run", tiny, "--quiet") == (0, "", "")
    assert [len(names) for names in seen] == [1, 0]


def test_a_port_that_is_taken_is_told_before_anything_is_done(fl_peel, tiny, monkeypatch):
    monkeypatch.setattr("simulations.runner.run", lambda *_, **__: pytest.fail("it ran"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = fl_peel("run", tiny, "--live-port", str(port))
    assert status == 2
    assert re.fullmatch(rf"fl-peel: error: --live-port {port}: the port cannot be opened .*\n", err)


def test_lines_are_few_and_say_where_a_run_stands():
    now = iter([100.0, 101.5, *range(102, 200)])
    written = []
    lines = console.ProgressLines(written.append, clock=lambda: next(now))
    lines(Event("start", 1, 1, "2 nodes"))
    for epoch in range(1, 31):
        lines(Event("pretraining", epoch, 30, f"loss {epoch}"))
    lines(Event("pretraining", 30, 30, "told twice"))
    for server_round in range(1, 4):
        lines(Event("refinement", server_round, 3))
    assert written == [
        "[   1.5 s] start: 2 nodes",
        *(f"[{2 + i:6.1f} s] pretraining {6 * (i + 1)}/30: loss {6 * (i + 1)}" for i in range(5)),  # 30 / 5 lines
        *(f"[{7 + i:6.1f} s] refinement {i + 1}/3" for i in range(3)),
    ]


def test_a_stage_of_one_step_that_was_skipped_is_told_once():
    written = []
    lines = console.ProgressLines(written.append)
    lines(Event("pretraining", 30, 30, "loaded from the cache"))
    assert len(written) == 1
    assert written[0].endswith("pretraining 30/30: loaded from the cache")


def test_bars_show_every_stage_on_a_terminal():
    terminal = Console(force_terminal=True, width=100, record=True)
    with console.shown(terminal) as tell:
        for stage in console.STAGES:
            tell(Event(stage, 1, 2, f"half of {stage}"))
            tell(Event(stage, 2, 2, f"all of {stage}"))
    text = terminal.export_text()
    for stage in console.STAGES:
        assert f"all of {stage}" in text


def test_quiet_shows_nothing():
    terminal = Console(force_terminal=True, record=True)
    with console.shown(terminal, quiet=True) as tell:
        tell(Event("start", 1, 1))
    assert terminal.export_text() == ""


def test_no_command_shows_help_and_fails():
    result = CliRunner().invoke(cli.app, [])
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_error_text_that_spans_lines_is_printed_as_one(fl_peel, monkeypatch):
    def fail(*args, **kwargs):
        raise EngineError("a\n  b")

    monkeypatch.setattr("simulations.scenario_files.load_scenario", fail)
    assert fl_peel("run")[2] == f"{ERROR}a b\n"


@pytest.mark.parametrize(
    "args",
    [
        *(("run", "--out"), ("compare", "--out"), ("ablate", "--out"), ("audit", "--out"), ("bench", "--out")),
        *(("diff", "a", "b", "--json-file"), ("diff", "a", "b", "--html"), ("profiles", "sample", "phones", "--out")),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(fl_peel, args):
    code, out, err = fl_peel(*args, "")
    assert (code, out) == (2, "")
    assert err == f"{ERROR}{args[-1]}: is empty; give a path, or . for the current folder\n"


IN_DESTRUCTOR = """
import time, typer
from simulations.cli import main as cli

class Slow:
    def __del__(self):
        print("on", flush=True)
        time.sleep(20)

cli.app = typer.Typer()

@cli.app.command()
def ends():
    Slow()
    time.sleep(20)

cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_comes_within_a_destructor_ends_the_command_all_the_same(number, code):
    with subprocess.Popen(
        [sys.executable, "-c", IN_DESTRUCTOR],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    ) as running:
        assert running.stdout.readline() == "on\n"
        running.send_signal(number)
        _, errors = running.communicate(timeout=15)
    assert running.returncode == code
    assert errors == f"fl-peel: {cli.STOPPED[code]}\n"


# --- What is kept is listed with what made it, its size and its age, and cleared by name or as a whole.


@pytest.fixture
def entries(tmp_path, tmp_path_factory, monkeypatch):
    """Two in the cache, one of an unfinished run, one of a study."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    made = []
    for folder in (default_cache_dir(), default_cache_dir(), tmp_path / NAME, tmp_path / CHECKPOINTS):
        Store(folder).write("it", {"seed": len(made), "digest": "0" * 32}, None, {"tables": {"x": np.zeros(500_000)}})
        made.append(Store(folder).entries()[-1].folder.name)
    return made


def test_entries_are_listed_with_what_made_them(entries, tmp_path, command_line):
    code, output, _ = command_line("cache")
    assert code == 0
    first, _, *lines = output.splitlines()
    assert first == f"{default_cache_dir()}: 2 entries, 8.0 MB"
    assert [line.split() for line in lines] == [
        [name, "4.0", "MB", "0", "seconds", f"seed={seed}"] for seed, name in enumerate(entries[:2])
    ]
    listed = json.loads(command_line("cache", str(tmp_path), "--json")[1])
    assert [(one["name"], one["made_by"]["seed"]) for one in listed["entries"]] == [(entries[2], 2), (entries[3], 3)]
    assert all(one["num_bytes"] > 4_000_000 and 0 <= one["age_s"] < 60 for one in listed["entries"])


def test_one_is_cleared_by_its_name_or_all(entries, tmp_path, command_line):
    code, _, error = command_line("cache", "--clear", "other")
    assert code == 2
    assert "--clear: no entry 'other' in" in error
    assert command_line("cache", "--clear", entries[0])[1].startswith(f"{default_cache_dir()}: 1 entries")
    assert command_line("cache", "--clear", "all")[1].startswith(f"{default_cache_dir()}: 0 entries")
    with owned_store(tmp_path / NAME):
        code, _, error = command_line("cache", str(tmp_path), "--clear", "all")
        assert (code, "another process is writing a run there" in error) == (2, True)
    assert Store(tmp_path / NAME).entries()
    assert command_line("cache", str(tmp_path), "--clear", "all")[0] == 0
    assert not list(tmp_path.iterdir())
