"""Whole runs: the same figures whoever asks, failures counted, nothing but the named payload crosses."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from html import escape

import numpy as np
import psutil
import pytest
from flwr.app import Message

import fl_peel
from fl_peel import wire
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.device_storage import device_splits
from fl_peel.errors import BudgetError, EngineError
from simulations import resumable, run, runner
from simulations.listing import listed
from simulations.report.run_files import read_report
from simulations.scenario_files import load_scenario
from strategies import nodes
from strategies.figures.schema import to_json
from strategies.rounds import strategy as peel
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.conftest import plant
from tests.helpers.loopback import LoopbackGrid, failing
from tests.helpers.runs import figures, report_figures, served
from tests.simulations.conftest import QUICK

FL_PEEL = (sys.executable, "-m", "simulations.cli.main")


def test_same_seed_same_figures_on_1_2_or_8_nodes(tiny_run, tiny_scenario, tmp_path):
    one, _ = served(tiny_scenario, tmp_path / "1", nodes=1)
    eight, _ = served(tiny_scenario, tmp_path / "8", nodes=8)
    assert figures(tiny_run[0]) == figures(one) == figures(eight)


def test_kept_tables_give_the_figures_of_those_trained_now(tiny_scenario, tmp_path):
    """To the last bit: pretraining must leave nothing behind but its tables."""
    paths = [RunPaths("", str(tmp_path / name), str(tmp_path / "cache")) for name in ("cold", "warm")]
    cold, warm = (serve(LoopbackGrid(2), tiny_scenario, each) for each in paths)
    assert figures(cold) == figures(warm)
    assert warm.stages["pretraining"] < cold.stages["pretraining"]


def test_groups_may_come_in_several_messages(tiny_run, tiny_scenario, tmp_path, monkeypatch):
    """One message a user group gives what one message for all of them gives; a lost one costs its group alone."""
    whole, grid = tiny_run
    monkeypatch.setattr(peel, "MESSAGE_BYTES", 1)
    apart, several = served(tiny_scenario, tmp_path / "apart")
    assert figures(apart) == figures(whole)
    rounds = [sum(kind == wire.ROUND for kind, _ in one.crossed) for one in (grid, several)]
    assert rounds[1] == 2 * rounds[0]  # 2 user groups

    lose_group_0 = failing(wire.ROUND, lambda _, request: list(request.groups) == [0])
    lossy, _ = served(tiny_scenario, tmp_path / "lossy", interfere=lose_group_0)
    sizes = [row.devices for row in whole.user_groups]
    assert [(row.devices, row.failures) for row in lossy.rounds] == [(sizes[1], sizes[0])] * 2


def test_another_seed_gives_other_figures(tiny_run, tiny_scenario, tmp_path):
    other, _ = served(tiny_scenario.model_copy(update={"seed": 1}), tmp_path / "1")
    assert figures(tiny_run[0]) != figures(other)


def test_every_device_of_every_class_and_group_is_counted_once(tiny_run):
    result, _ = tiny_run
    assert sum(row.devices for row in result.device_classes.values()) == 40
    assert sum(row.devices for row in result.user_groups) == 40
    assert [(row.devices, row.failures) for row in result.rounds] == [(40, 0), (40, 0)]
    assert len(result.traces) == 6
    assert {len(trace.kept_blocks) for trace in result.traces} == {2}
    assert all(row.budget_violations == 0 for row in result.device_classes.values())


def test_a_node_that_fails_in_a_round_is_counted_and_the_next_round_goes_on(tiny_scenario, tmp_path):
    fail_once = failing(wire.ROUND, lambda partition, request: partition == 1 and request.server_round == 1)
    result, _ = served(tiny_scenario, tmp_path / "run", interfere=fail_once)
    # partition 1 of 2 hosts the odd devices: 20 of 40
    assert [(row.devices, row.failures) for row in result.rounds] == [(20, 20), (40, 0)]


def test_a_node_whose_state_is_damaged_fails_alone_until_it_is_mended(tiny_scenario, tmp_path):
    state = tmp_path / "run" / "nodes" / "3-of-4" / "users.npy"
    kept = []

    def damage(partition, message):
        if message.metadata.message_type == wire.ROUND and partition == 3:
            if kept:
                state.write_bytes(kept[0])
            else:
                kept.append(state.read_bytes())
                state.write_bytes(b"not an array")

    result, _ = served(tiny_scenario, tmp_path / "run", nodes=4, interfere=damage)
    assert [(row.devices, row.failures) for row in result.rounds] == [(30, 10), (40, 0)]


def test_a_round_in_which_every_node_fails_changes_nothing(tiny_scenario, tmp_path):
    result, _ = served(tiny_scenario, tmp_path / "run", interfere=failing(wire.ROUND, lambda *_: True))
    assert [(row.devices, row.failures) for row in result.rounds] == [(0, 40), (0, 40)]
    assert result.full_table.refined == result.full_table.start != result.full_table.globally


def test_a_failure_outside_the_rounds_stops_the_run_with_one_line(tiny_scenario, tmp_path, monkeypatch):
    """When it is there each time."""
    monkeypatch.setattr(nodes, "PAUSES_S", (0.0,))
    fail = failing(wire.EVALUATE, lambda partition, _: partition == 1, "killed\nby the kernel")
    with pytest.raises(EngineError, match=r"^node 1 \(evaluate.budgets\) failed: killed by the kernel$"):
        served(tiny_scenario, tmp_path / "run", interfere=fail)


def test_nodes_that_run_other_code_are_refused(tiny_scenario, tmp_path):
    def older(partition, message):
        if message.metadata.message_type == wire.HELLO and partition == 1:
            return Message(wire.pack(wire.HelloReply(1, 2, "/old/clone", "0123")), reply_to=message)
        return None

    with pytest.raises(EngineError, match="partition 1 runs other code, from /old/clone, than the server, from /"):
        served(tiny_scenario, tmp_path / "run", interfere=older)


def test_a_users_mistake_found_on_a_node_keeps_its_kind_and_its_line(tiny_scenario, tmp_path):
    """A fleet whose devices can never hold a block: only the node that hosts them knows."""
    (tmp_path / "poor.yaml").write_text("profiles: [{name: poor, memory: {table_share: 0.01}}]")
    with pytest.raises(BudgetError, match=r"^device profile poor: budget 18 B is below one block"):
        served(tiny_scenario.model_copy(update={"fleet": "poor.yaml"}), tmp_path / "run")


def test_devices_without_collected_data_join_and_find_their_group(tiny, tmp_path):
    """Half of the users consent. The others choose their group on the device, and it is the planted one."""
    plant(tmp_path / "planted.csv", users_per_group=20, items_per_group=30, per_user=12)
    changes = ["pretraining.collected={mode: users, share: 50%}", "pretraining.diversity_weight=0", "seed=3"]
    result, grid = served(load_scenario(tiny, changes), tmp_path / "run")
    requests = [wire.unpack(wire.JoinRequest, content) for kind, content in grid.crossed if kind == wire.JOIN]
    known = np.concatenate([request.devices for request in requests])
    assert len(known) == 20  # half of 40
    answers = [content for kind, content in grid.crossed if kind == f"reply to {wire.JOIN}"]
    groups = np.full(40, -1)
    for reply in (wire.unpack(wire.JoinReply, content) for content in answers):
        groups[reply.devices] = reply.groups
    taste = np.arange(40) // 20
    assert (groups == taste).all() or (groups == 1 - taste).all()
    assert [row.devices for row in result.rounds] == [40, 40]
    assert sorted(row.devices for row in result.user_groups) == [20, 20]


def test_only_the_named_payload_crosses(tiny, tmp_path):
    """Interactions and user embeddings that a device found or trained are in no message."""
    scenario = load_scenario(tiny, ["pretraining.collected={mode: users, share: 50%}"])
    _, grid = served(scenario, tmp_path / "run")
    kinds = (wire.HELLO, wire.JOIN, wire.ROUND, wire.EVALUATE, wire.MOVING, wire.COMPARE, wire.KEEP)
    sent = {str(kind): (kind.request, kind.reply) for kind in kinds}
    arrays = []
    for kind, content in grid.crossed:
        payload = sent[kind.removeprefix("reply to ")][kind.startswith("reply")]
        fields = {field.name for field in dataclasses.fields(payload)}
        names = set(content.array_records["arrays"]) | set(content.config_records["config"])
        assert {re.split("[/.]", name)[0] for name in names} == fields
        assert set(content) == {"arrays", "config"}
        arrays += [array.numpy() for array in content.array_records["arrays"].values()]
    splits = device_splits(scenario, "", str(tmp_path / "run"))
    for partition in (0, 1):
        folder = tmp_path / "run" / "nodes" / f"{partition}-of-2"
        for user in np.load(folder / "users.npy"):
            for array in arrays:
                if array.dtype == np.float32 and array.size and array.shape[-1] == 8:
                    assert not (array.reshape(-1, 8) == user).all(axis=1).any()
    for part in (splits.train, splits.validation, splits.test):
        whole = np.asarray(part.items)
        assert not any(
            array.size >= len(whole) and array.ravel()[: len(whole)].tolist() == whole.tolist() for array in arrays
        )


@pytest.mark.engine
@pytest.mark.smoke
def test_the_command_line_on_the_engine_equals_the_loopback(tiny, tmp_path):
    """Also: what --out gets."""
    out = tmp_path / "out"
    ran = subprocess.run(
        [*FL_PEEL, "run", str(tiny), "--seed", "7", "--out", str(out), "--nodes", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "refinement 2/2" in ran.stderr
    assert "Elastic embeddings by budget" in ran.stdout
    result = read_report(out / "report.json")  # checks the schema
    wanted, _ = served(load_scenario(tiny, seed=7), tmp_path / "run", nodes=1)
    assert figures(result) == figures(wanted)
    check_issue_keys(to_json(result))
    assert result.seed == 7
    assert result.command == f"fl-peel run {tiny} --seed 7 --nodes 2"
    assert load_scenario(out / "scenario.yaml").model_dump(mode="json") == result.scenario
    check_artifacts(out, result)
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "metrics.csv").is_file()


@pytest.mark.slow
def test_a_run_of_which_little_is_asked_has_its_figures(tiny, tmp_path, monkeypatch):
    """Without an engine, but with the page that tests of what stands around runs leave without figures."""
    monkeypatch.setattr(runner, "simulated", lambda *args, server: server(LoopbackGrid(2), *args))
    result = run(tiny, overrides=QUICK, out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    drawn = list(report_figures(result.measured))
    assert {"budgets", "traces", "bytes", "learning"} <= {plot.name for plot in drawn}
    assert [f'aria-label="{escape(plot.alt)}"' in page for plot in drawn] == [True] * len(drawn)


def check_issue_keys(result):
    top = {"scenario", "seed", "versions", "stages", "full_table", "budgets", "device_classes", "rounds"}
    assert top <= set(result)
    metrics = {"recall@20", "ndcg@20"}
    assert {"global", "refined", "bytes"} <= set(result["full_table"])
    assert metrics <= set(result["full_table"]["global"])
    assert metrics <= set(result["full_table"]["refined"])
    assert len(result["budgets"]) == 2 * 2  # budgets x selectors
    for row in result["budgets"]:
        assert {"share", "budget_bytes", "precision", "selector", "stored_bytes_max", "devices"} | metrics <= set(row)
        assert 0 < row["stored_bytes_max"] <= row["budget_bytes"]
    assert set(result["device_classes"]) == {"small", "large"}
    for row in result["device_classes"].values():
        assert {"devices", "recall@20", "budget_bytes_mean", "reselections", "budget_violations"} <= set(row)
        assert row["budget_violations"] == 0
    for row in result["rounds"]:
        assert {"download_bytes", "upload_bytes", "devices", "failures", "seconds"} <= set(row)
    assert all(seconds >= 0 for seconds in result["stages"].values())


def check_artifacts(out, result):
    files = sorted((out / "artifacts").iterdir())
    assert len(files) == 2 * 2  # evaluation.artifacts devices x budgets
    for path in files:
        budget = int(path.stem.rsplit("-", 1)[1])
        assert budget in {row.budget_bytes for row in result.budgets}
        assert path.stat().st_size <= budget
        assert len(StoredEmbedding.from_bytes(path.read_bytes()).top_n(3)) <= 3
    model = fl_peel.load(out / "model")
    assert model.device(model.catalogue.ids[:3]).embedding(400).top(1)
    assert {f"model/{file.name}" for file in (out / "model").iterdir()} <= listed(out)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("backend", "sent", "code", "events"),
    [
        ("embedded", signal.SIGINT, 130, "interrupted"),
        pytest.param("ray", signal.SIGTERM, 143, "terminated", marks=pytest.mark.engine),
    ],
)
def test_a_signal_ends_the_run_at_once_and_leaves_nothing(tiny, tmp_path, backend, sent, code, events):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # so many rounds that it cannot end by itself
    changes = ["--set", "refinement.rounds=100000", "--set", f"engine.backend={backend}"]
    command = [*FL_PEEL, "run", str(tiny), *changes, "--out", str(tmp_path / "out")]
    environment = os.environ | {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "joining" in line:
            break
    assert list(temporary.glob("fl-peel-*"))
    started = psutil.Process(process.pid).children(recursive=True)
    assert started, "the engine's processes"
    process.send_signal(sent)
    start = time.monotonic()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code
    assert time.monotonic() - start < 180  # 3 s on free cores; the other tests of a suite may have them all
    assert errors.rstrip().splitlines()[-1] == f"fl-peel: {events}"
    assert not re.search("Traceback|stack|SIGTERM", errors)
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert not list(temporary.glob("fl-peel-*"))
    left = {path.name for path in (tmp_path / "out").glob("*")}
    assert left <= {resumable.NAME}  # what is done, for the next one
