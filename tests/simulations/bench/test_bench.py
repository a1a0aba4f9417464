"""The benchmark measures what it says: the rival trains the same, and every figure is there, from one run."""

import json
import sys
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, pack_ranking
from fl_peel.data.datasets import Population
from fl_peel.errors import DataError, EngineError, ScenarioError
from fl_peel.kernels import FIXED_POINT
from fl_peel.randomness import device_seeds
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from simulations.bench import bench as benchmarks
from simulations.bench import bench as module
from simulations.bench import stock_flower
from simulations.bench.bench import BenchPlan, bench, bench_scenario, large, pfl_rate
from strategies.run.run_paths import RunPaths
from tests.helpers import readable_twins as reference
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import connected
from tests.helpers.without_ray import simulated

NUM_ITEMS, DIM = 320, 8


def ask(content: RecordDict, partition: int) -> Message:
    """The stock app's reply, as its node would give it."""
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    config = {"partition-id": partition, "num-partitions": 6}
    return stock_flower.app(message, Context(1, 1, config, RecordDict(), {}))


def test_the_stock_app_trains_devices_as_the_cohort_engine_does(tmp_path):
    """User embeddings, changed rows and their sums: of the compiled cohort, and of the readable twin to 1e-5."""
    LoopbackGrid(1)  # sets what Flower needs before a message can be made
    rng = np.random.default_rng(0)
    train = Population(0, 6, NUM_ITEMS, 2).rows(0, 6)
    users = rng.normal(size=(6, DIM)).astype(np.float32)
    layout = BlockLayout(np.arange(NUM_ITEMS, dtype=np.int32), DIM, 1)
    table = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    blocks = pack_ranking(layout, "int8", rng.random(NUM_ITEMS), table, None)
    ranked = RankedBlocks.unpack(layout, "int8", blocks)
    stock_flower.save_devices(tmp_path, users, train)
    content = stock_flower.train_content(tmp_path, 5, 3, NUM_ITEMS, blocks)
    replies = [ask(content, device) for device in range(6)]
    assert not any(reply.has_error() for reply in replies)

    cutoffs = np.full(6, NUM_ITEMS, np.int64)
    seeds = device_seeds(5, "local-training", 3, devices=np.arange(6))
    trained, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, stock_flower.HOW))
    stored = np.load(tmp_path / "users.npy")
    np.testing.assert_allclose(stored, trained, rtol=1e-5)
    assert (stored != users).any(axis=1).all()
    total = np.zeros_like(update.sums)
    for device, reply in enumerate(replies):
        arrays = reply.content.array_records["update"]
        rows, sums = arrays["rows"].numpy(), arrays["sums"].numpy()
        total[rows] += sums
        user, step, _ = reference.train_device(
            ranked, NUM_ITEMS, users[device], train.row(device), int(seeds[device]), stock_flower.HOW
        )
        np.testing.assert_allclose(stored[device], user, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sums / FIXED_POINT, step[rows], rtol=1e-5, atol=1e-6)
    assert (total == update.sums).all()

    mean = stock_flower.mean_of(NUM_ITEMS, ranked, replies)
    expected = update.sums / np.maximum(update.touched, 1) / FIXED_POINT
    np.testing.assert_allclose(mean[ranked.items], expected, rtol=1e-6)


def test_every_device_of_the_bench_trains_on_all_its_items(tmp_path):
    """The full-table fleet leaves nothing out: examples of the round are the train interactions of the population."""
    Population(0, 90, NUM_ITEMS, 4).write(tmp_path / "pop")
    (tmp_path / "full.yaml").write_text(benchmarks.FULL_TABLES)
    plan = BenchPlan(data=str(tmp_path / "pop"), embedding_dim=DIM, user_groups=4, rounds=1)
    scenario = bench_scenario(plan, plan.data, str(tmp_path / "full.yaml"))
    how = scenario.refinement.local.config(1.0)
    assert how == stock_flower.HOW
    run = connected(scenario, tmp_path / "run")
    strategy = benchmarks.make_context(run).strategy()
    before = strategy.states[0].counted_interactions.copy()
    strategy.timed(run.grid, 1)
    assert [record.devices for record in strategy.rounds] == [90, 90]
    assert [record.failures for record in strategy.rounds] == [0, 0]
    splits = benchmarks.device_splits(scenario, "", "")
    mine = np.flatnonzero(strategy.members.groups == 0)
    per_round = splits.train.select(mine).popularity(NUM_ITEMS)
    assert (strategy.states[0].counted_interactions - before == 2 * per_round).all()
    assert list(strategy.marks[0]) == ["server_select_and_pack", "nodes_and_messages", "server_aggregate"]
    stages = sum(strategy.marks[-1].values())
    assert stages == pytest.approx(strategy.rounds[-1].seconds, rel=0.2, abs=0.05)


def test_cohorts_on_a_gpu_are_refused_in_one_line():
    with pytest.raises(ScenarioError, match="cuda"):
        bench("", None, BenchPlan(device="cuda"))


def test_the_plan_follows_the_arguments(monkeypatch, tmp_path):
    """Where it is to be quick no population is made; ``stock_devices`` goes to the plan."""
    plans = []

    def enough(scenario, place, on_event, **_):
        plans.append(scenario)
        raise ScenarioError("enough")

    monkeypatch.setattr(benchmarks, "simulated", enough)
    monkeypatch.setattr(benchmarks, "require_dataset", lambda *_: None)
    with pytest.raises(ScenarioError, match="enough"):
        bench("", tmp_path, BenchPlan(stock_devices=7, device="torch-cpu").quick())
    assert plans[0].data.name == "gowalla"
    assert (plans[0].engine.nodes, plans[0].engine.device) == (2, "torch-cpu")
    assert not (tmp_path / "bench.json").exists()


def test_a_data_set_that_cannot_be_had_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    """The last thing that is measured needs another one than the first."""

    def nowhere(name, **_):
        raise DataError(f"{name}: could not be downloaded")

    Population(0, 40, NUM_ITEMS, 2).write(tmp_path / "pop")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("fl_peel.data.datasets.load_dataset", nowhere)
    monkeypatch.setattr(benchmarks, "simulated", lambda *_, **__: pytest.fail("started all the same"))
    for plan, name in ((BenchPlan(sizes=()), "gowalla"), (BenchPlan(data=str(tmp_path / "pop"), sizes=()), "ml-100k")):
        with pytest.raises(DataError, match=f"^{name}: could not be downloaded"):
            bench(tmp_path / "data", tmp_path, plan)


def test_a_python_without_pfl_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "require_dataset", lambda *_: None)
    monkeypatch.setattr(benchmarks, "simulated", lambda *_, **__: pytest.fail("started all the same"))
    with pytest.raises(EngineError, match=r"^--pfl-python \S+none: cannot be started .*; name a Python$"):
        bench("", tmp_path, BenchPlan().quick(), pfl_python=tmp_path / "none")
    (tmp_path / "python").write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'pfl'\" >&2; exit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(EngineError, match=r"No module named 'pfl'; install pfl and torch there: .*$"):
        bench("", tmp_path, BenchPlan().quick(), pfl_python=tmp_path / "python")


def test_pfl_gets_the_devices_and_the_table_and_its_answer_is_read(tmp_path):
    """A stand-in for the interpreter, which tells what it was given: pfl itself is not among the dependencies."""
    Population(0, 40, NUM_ITEMS, 2).write(tmp_path / "pop")
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, numpy as np\n"
        "assert os.path.basename(sys.argv[1]) == 'pfl_app.py' and os.path.isfile(sys.argv[1])\n"
        "assert sys.argv[3:] == ['64', '0.05']\n"
        "load = lambda name: np.load(f'{sys.argv[2]}/{name}.npy')\n"
        "assert load('indptr')[-1] == len(load('items')) and len(load('users')) == len(load('indptr')) - 1\n"
        f"assert load('table').shape == ({NUM_ITEMS}, {DIM})\n"
        "print(json.dumps({'devices': len(load('users')), 'seconds': 2.0, 'version': '9'}))\n"
    )
    (tmp_path / "python").chmod(0o755)
    plan = BenchPlan(data=str(tmp_path / "pop"), embedding_dim=DIM, user_groups=2, pfl_devices=10)
    base = bench_scenario(plan, plan.data, "default")
    result = pfl_rate(str(tmp_path / "python"), base, RunPaths("", str(tmp_path)), plan, tmp_path / "pfl")
    assert result == {"pfl_devices_per_second": 5.0, "pfl_devices": 10, "pfl_version": "9"}


@pytest.mark.engine
def test_a_small_bench_has_every_figure(tmp_path):
    Population(0, 300, 3000, 4).write(tmp_path / "pop")
    plan = BenchPlan(
        data=str(tmp_path / "pop"),
        embedding_dim=16,
        user_groups=4,
        rounds=2,
        stock_devices=8,
        sizes=(100, 200),
        num_items=2400,
        main_job_runs=0,
    )
    events = []
    result = bench("", tmp_path / "out", plan, on_event=events.append)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == json.loads(json.dumps(result))
    for key in ("devices_per_second", "stock_flower_devices_per_second", "speedup_vs_stock", "same_devices_per_second"):
        assert result[key] > 0, key
    assert result["devices"] == 300
    assert result["stock_flower_devices"] == 8
    assert len(result["round_seconds"]) == 2
    assert result["devices_per_second"] == pytest.approx(300 / min(result["round_seconds"]))
    ratio = result["devices_per_second"] / result["stock_flower_devices_per_second"]
    assert result["speedup_vs_stock"] == pytest.approx(ratio)
    assert [one["devices"] for one in result["scaling"]] == [100, 200]
    assert all(one["seconds_per_device"] > 0 for one in result["scaling"])
    assert result["million"]["seconds"] >= result["million"]["round_seconds"][0]
    assert result["million"]["peak_rss_bytes"] > 100_000_000  # an interpreter with NumPy, Flower and Ray
    assert {"server_select_and_pack", "nodes_and_messages", "server_aggregate"} <= set(result["stages"])
    flagship = result["flagship"]
    assert (flagship["scenario"], flagship["devices"]) == ("gowalla", 300)
    assert flagship["devices_per_second"] == pytest.approx(300 / min(flagship["round_seconds"]))
    for one in (flagship, result):
        ratio = min(one["round_seconds"]) / one["training_alone_seconds"]
        assert one["round_to_training_alone"] == pytest.approx(ratio)
        assert ratio > 1
    assert any("devices/s" in event.text and "s left" in event.text for event in events)


@pytest.mark.slow
def test_every_device_is_in_the_round_and_what_it_took_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "simulated", simulated)
    monkeypatch.setattr(module, "DEVICES_PER_GROUP", 200)
    events = []
    result = large(600, tmp_path / "out", on_event=lambda event: events.append(event.text))
    assert (result["devices"], result["user_groups"]) == (600, 3)
    (round_s,) = result["round_seconds"]
    assert result["seconds"] == pytest.approx(
        sum(result["stages"][name] for name in ("write_population", "join")) + round_s
    )
    assert result["devices_per_second"] == pytest.approx(600 / round_s)
    assert result["peak_rss_bytes"] > 100_000_000
    assert events[0] == "600 devices written"
    assert json.loads((tmp_path / "out" / "population.json").read_text()) == result


@pytest.mark.parametrize(("memory", "disk", "output"), [(8, 100, r"8\.7 GB of memory"), (100, 8, r"17\.0 GB of disk")])
def test_what_cannot_be_held_is_refused_at_the_start(monkeypatch, tmp_path, memory, disk, output):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * 10**9))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * 10**9))
    monkeypatch.setattr(module, "simulated", lambda *_, **__: pytest.fail("nothing may be made"))
    with pytest.raises(EngineError, match=output):
        large(10_000_000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
