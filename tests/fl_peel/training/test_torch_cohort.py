"""Cohorts in torch do what the compiled loops do, here on torch's processor backend: draws alike, sums to rounding.

On a machine with a GPU, the tests that need one run as well.
"""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.node import poisoning as poison
from fl_peel import kernels
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.data.datasets import Population
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ScenarioError
from fl_peel.kernels import FIXED_POINT
from fl_peel.ranking import torch_ranking
from fl_peel.ranking.top import top_rows
from fl_peel.scenario.settings import LocalTraining, pretraining_device, require_device, torch_device
from fl_peel.training import torch_cohort
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork, in_two_parts
from simulations.bench import bench as bench_device
from simulations.bench.bench import BenchPlan, bench_scenario
from simulations.engine import ray_engine as engine
from simulations.engine.inputs import checked
from simulations.scenario_files import load_scenario
from strategies.figures.schema import to_json
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.fl_peel.training.test_twins import small_world
from tests.helpers.examples import examples
from tests.helpers.loopback import LoopbackGrid

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")
SAME_WHOLE_NUMBERS = ("touched", "row_examples", "holders", "examples", "touched_pieces")


def seeds_of(cutoffs, seed=0):
    return np.arange(len(cutoffs), dtype=np.uint64) + np.uint64(seed)


def assert_same(trained, update, other_trained, other):
    """Counts, which follow from what was drawn, to the last digit; figures to the rounding of float32."""
    for name in SAME_WHOLE_NUMBERS:
        np.testing.assert_array_equal(getattr(update, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(trained, other_trained, rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(update.sums / FIXED_POINT, other.sums / FIXED_POINT, rtol=1e-5, atol=5e-6)
    for name in ("loss", "norms"):
        np.testing.assert_allclose(getattr(update, name), getattr(other, name), rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(update.row_loss / FIXED_POINT, other.row_loss / FIXED_POINT, rtol=1e-5, atol=1e-5)


def both(ranked, cutoffs, users, train, seeds, how, device="torch-cpu"):
    compiled = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how))
    in_torch = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how, device))
    assert_same(*in_torch, *compiled)
    return in_torch


how_devices_train = st.builds(
    LocalTraining,
    epochs=st.integers(1, 3),
    batch_size=st.sampled_from([1, 3, 64]),
    num_negatives=st.integers(1, 4),
    learning_rate=st.just(0.05),
    user_learning_rate=st.sampled_from([0.0, 0.03]),
    l2=st.sampled_from([0.0, 0.01]),
    loss=st.sampled_from(["bpr", "sampled-softmax"]),
    temperature=st.sampled_from([0.7, 1.0]),
    max_norm=st.sampled_from([float("inf"), 0.5, 0.05]),
    clip_blocks=st.booleans(),
    clip_l1=st.booleans(),
)
worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "num_slices": st.sampled_from([1, 2, 4]),
        "groups": st.sampled_from([None, 5]),
        "precision": st.sampled_from(["fp32", "int4"]),
        "budget": st.sampled_from([None, 700]),
    }
)


@examples(80)
@given(world=worlds, how=how_devices_train)
def test_training_in_torch_equals_the_compiled_loop(world, how):
    """Devices keep any part of what was sent, some nothing; train items are drawn with repetition, some have none."""
    _, ranked, cutoffs, users, train = small_world(**world, num_devices=6)
    both(ranked, cutoffs, users, train, seeds_of(cutoffs, world["seed"]), how)


@examples(20)
@given(seed=st.integers(0, 10_000), chunk_floats=st.sampled_from([1, 300, 3000]), how=how_devices_train)
def test_how_devices_are_cut_into_chunks_changes_nothing(seed, chunk_floats, how):
    _, ranked, cutoffs, users, train = small_world(seed, num_devices=9)
    work = LocalWork(ranked, cutoffs, users, train, seeds_of(cutoffs), how)
    whole, parts = (torch_cohort.train_devices(work, CPU, chunk_floats=size) for size in (1 << 25, chunk_floats))
    np.testing.assert_allclose(parts.users, whole.users, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(parts.sums, whole.sums, atol=1e-6 * FIXED_POINT)
    np.testing.assert_array_equal(parts.tallies[:, 1:], whole.tallies[:, 1:])
    np.testing.assert_array_equal(parts.touched_pieces, whole.touched_pieces)


def test_chunks_hold_what_they_may_and_one_device_at_least():
    # examples 5, 0, 9, 1, 2 of 10 floats each, at most 60 at a time: 9 alone, 5 alone (7 would be 70), then 2 and 1
    chunks = list(torch_cohort._chunks(np.array([5, 0, 9, 1, 2]), 10, 60))
    assert [chunk.tolist() for chunk in chunks] == [[2], [0], [4, 3]]


def test_devices_that_learn_nothing_and_items_that_repeat():
    """All items, none, no block; one item many times in a batch and over batches."""
    _, ranked, _, users, _ = small_world(0, num_items=6, num_slices=1, num_devices=4)
    train = UserItems(np.array([0, 6, 6, 8, 15]), np.array([0, 1, 2, 3, 4, 5, 1, 2, *[3] * 7], np.int32))
    cutoffs = np.array([6, 6, 0, 6])
    for batch_size in (2, 64):
        how = LocalTraining(epochs=2, batch_size=batch_size, num_negatives=2)
        trained, update = both(ranked, cutoffs, users, train, seeds_of(cutoffs), how)
        assert update.examples.tolist() == [0, 0, 0, 7]
        assert (trained[:3] == users[:3]).all()
        assert (trained[3] != users[3]).any()
        assert update.row_examples[ranked.row_of_item[3]] == 14


def test_no_devices_and_no_rows():
    _, ranked, cutoffs, users, train = small_world(1)
    nobody = np.zeros(0, np.int64)
    _, update = both(ranked, cutoffs[:0], users[:0], train.select(nobody), seeds_of(nobody), LocalTraining())
    assert not update.sums.any()
    none_sent = rank_blocks(ranked.layout, "fp32", np.ones(ranked.layout.num_blocks), ranked.table, 0)
    assert none_sent.table.shape == (0, 8)
    both(none_sent, np.zeros(5, np.int64), users, train, seeds_of(cutoffs), LocalTraining())
    best = top_rows(none_sent, np.zeros(5, np.int64), users, train, 3, "torch-cpu")
    assert (best == -1).all()


def test_sums_that_32_bits_do_not_hold_are_wide():
    _, ranked, cutoffs, users, train = small_world(5, num_slices=1)
    how = LocalTraining(epochs=1, learning_rate=5000.0, user_learning_rate=0.0)
    compiled = train_group(LocalWork(ranked, cutoffs, users, train, seeds_of(cutoffs), how))[1]
    update = train_group(LocalWork(ranked, cutoffs, users, train, seeds_of(cutoffs), how, "torch-cpu"))[1]
    assert update.is_wide.any()  # an update beyond 2^31 units, 128
    np.testing.assert_allclose(update.sums, compiled.sums, rtol=1e-5, atol=5000)
    changed = update.changed()
    total = np.zeros(ranked.table.shape, np.int64)
    total[changed["rows"]] += changed["sums"]
    total[changed["wide_rows"]] += changed["wide_sums"]
    assert (total == update.sums).all()


def test_two_parts_add_up_at_the_edge_of_32_bits():
    sums = np.array([[2**31 - 1, -5], [2**31, 1], [-(2**31), 0], [-(2**31) + 1, 0]])
    narrow, wide, is_wide = in_two_parts(sums)
    assert is_wide.tolist() == [False, True, True, False]
    assert (narrow.astype(np.int64) + wide == sums).all()


def test_training_that_diverges_is_one_line():
    _, ranked, cutoffs, users, train = small_world(2)
    how = LocalTraining(epochs=3, batch_size=1, learning_rate=1e30, user_learning_rate=1e30)
    with pytest.raises(ScenarioError, match="diverged"):
        train_group(LocalWork(ranked, cutoffs, users, train, seeds_of(cutoffs), how, "torch-cpu"))


@examples(60)
@given(
    seed=st.integers(0, 10_000),
    num_slices=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([None, 6]),
    whole=st.booleans(),
    n=st.sampled_from([1, 3, 50]),
    block_rows=st.sampled_from([1, 5, 8192]),
    block_scores=st.sampled_from([1, 40, 1 << 23]),
)
def test_ranking_in_torch_equals_the_compiled_loop(seed, num_slices, groups, whole, n, block_rows, block_scores):
    """With whole numbers scores are exact, and many are equal; else ties are of devices that like nothing."""
    rng, ranked, cutoffs, users, train = small_world(seed, num_slices=num_slices, groups=groups)
    users[0] = 0
    if whole:
        ranked = replace(ranked, table=rng.integers(-1, 2, ranked.table.shape).astype(np.float32))
        users = rng.integers(-1, 2, users.shape).astype(np.float32)
    expected = top_rows(ranked, cutoffs, users, train, n)
    result = torch_ranking.top_rows(
        ranked, cutoffs, users, train, n, CPU, block_rows=block_rows, block_scores=block_scores
    )
    np.testing.assert_array_equal(result, expected)


@pytest.fixture
def calls(monkeypatch):
    """How often cohorts trained and ranked, in torch and by the compiled loops."""
    counts = dict.fromkeys(("train", "rank", "compiled train", "compiled rank"), 0)

    def counted(name, work):
        def count(*arguments, **options):
            counts[name] += 1
            return work(*arguments, **options)

        return count

    monkeypatch.setattr(torch_cohort, "train_devices", counted("train", torch_cohort.train_devices))
    monkeypatch.setattr(torch_ranking, "top_rows", counted("rank", torch_ranking.top_rows))
    monkeypatch.setattr(kernels, "train_devices", counted("compiled train", kernels.train_devices))
    monkeypatch.setattr(kernels, "top_rows", counted("compiled rank", kernels.top_rows))
    return counts


def on(scenario, device):
    return scenario.model_copy(update={"engine": scenario.engine.model_copy(update={"device": device})})


def every_metric(result):
    """Losses and metrics of a run, by where they stand in its report."""
    results = {}

    def walk(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        elif isinstance(node, list):
            for i, value in enumerate(node):
                walk(value, f"{path}/{i}")
        elif isinstance(node, float) and ("recall" in path or "ndcg" in path or "loss" in path):
            results[path] = node

    plain = to_json(result)
    for key in ("full_table", "budgets", "device_classes", "user_groups", "rounds", "history", "elasticity"):
        walk(plain[key], key)
    return results


@pytest.mark.slow
def test_a_run_in_torch_gives_the_same_metrics(tiny, tmp_path, calls):
    """From the scenario file to the report, nodes included: every metric to 1e-3, and the same bits on other nodes."""
    scenario = load_scenario(tiny)
    results = {}
    for name, device, nodes in (("cpu", "cpu", 2), ("torch", "torch-cpu", 2), ("three", "torch-cpu", 3)):
        paths = RunPaths("", str(tmp_path / name))
        calls.update(dict.fromkeys(calls, 0))
        results[name] = every_metric(serve(LoopbackGrid(nodes), on(scenario, device), paths))
        if device == "cpu":
            assert calls["train"] == calls["rank"] == 0
        else:
            assert calls["train"] > 0
            assert calls["rank"] > 0
            assert calls["compiled train"] == 0
            assert calls["compiled rank"] == 2  # the server's own: one of each user group
    assert len(results["cpu"]) > 50
    assert any(value > 0.2 for name, value in results["cpu"].items() if "recall" in name)
    assert results["torch"] == pytest.approx(results["cpu"], abs=1e-3)
    assert results["three"] == pytest.approx(results["torch"], abs=1e-6)


def test_malicious_devices_train_where_the_others_do(calls):
    _, ranked, cutoffs, users, train = small_world(3)
    adversary = poison.Adversary(np.array([True, False, True, False, False]), load_poisoning(), np.zeros(0, np.int32))
    work = LocalWork(ranked, cutoffs, users, train, seeds_of(cutoffs), LocalTraining(epochs=2))
    compiled = adversary.train(work)
    assert calls["train"] == 0
    assert_same(*adversary.train(dataclasses.replace(work, device="torch-cpu")), *compiled)
    assert calls["train"] == 3  # the honest ones together, each of the others by itself


def load_poisoning():
    return load_scenario("ml-100k", ["poisoning.kind=scaled", "poisoning.share=30%"]).poisoning


def test_names_of_devices():
    assert torch_device("cpu") is None
    assert torch_device("torch-cpu") == CPU
    assert pretraining_device("torch-cpu") == "cpu"
    assert pretraining_device("cuda:1") == "cuda:1"
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", "torch", "cpu:0", ""):
        with pytest.raises(ScenarioError, match=r"engine.device: device .* is unknown; use cpu, cuda, cuda:N or torch"):
            load_scenario("ml-100k", [f"engine.device='{name}'"])
    assert load_scenario("ml-100k", ["engine.device=cuda:1"]).engine.device == "cuda:1"


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_a_gpu_that_is_not_there_is_one_line_at_the_start(tiny_scenario, no_gpu):
    line = "engine.device: torch finds no GPU for 'cuda' on this machine; use cpu"
    with pytest.raises(ScenarioError) as refused:
        checked(on(tiny_scenario, "cuda"), None)
    assert str(refused.value) == line
    _, ranked, cutoffs, users, train = small_world(0)
    with pytest.raises(ScenarioError, match=line):
        train_group(LocalWork(ranked, cutoffs, users, train, seeds_of(cutoffs), LocalTraining(), "cuda"))
    with pytest.raises(ScenarioError, match=line):
        top_rows(ranked, cutoffs, users, train, 3, "cuda")


def test_a_number_beyond_the_gpus_that_are_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert require_device("cuda") == "cuda"
    assert require_device("cuda:0") == "cuda:0"
    with pytest.raises(ScenarioError, match="torch finds 1 GPU for 'cuda:1'"):
        require_device("cuda:1")


def test_nodes_share_a_gpu_and_take_none_where_none_is_used(tiny_scenario):
    def num_gpus(device):
        return engine._backend_config(on(tiny_scenario, device).engine)["client_resources"]["num_gpus"]

    assert num_gpus("cpu") == num_gpus("torch-cpu") == 0
    assert num_gpus("cuda") == num_gpus("cuda:1") == 0.5  # two nodes
    for nodes in [*range(1, 100), 5000]:
        share = engine.gpu_share(nodes)
        assert 0 < share <= 1
        assert int(1 / share) >= nodes  # as Flower counts the workers that fit
        assert round(share * 10_000) == pytest.approx(share * 10_000)  # Ray knows no smaller part


def test_workers_see_all_gpus_where_one_is_named_by_number(tiny_scenario):
    key = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
    for address in (None, "auto"):
        for device, inside in (("cpu", None), ("cuda", None), ("cuda:1", "1")):
            asked = on(tiny_scenario, device).engine.model_copy(update={"ray_address": address})
            assert engine._ray_variables(asked, {}).get(key) == inside


def test_the_bench_measures_how_far_apart_metrics_are(tmp_path, monkeypatch):
    """On planted tastes, well above chance; and a device that trains wrongly would show."""
    Population(0, 200, 320, 4).write(tmp_path / "pop")
    plan = BenchPlan(data=str(tmp_path / "pop"), embedding_dim=8, user_groups=4)
    scenario = bench_scenario(plan, plan.data, "default")
    paths = RunPaths("", str(tmp_path / "run"))
    result = bench_device.compared_metrics(scenario, paths, "torch-cpu")
    assert set(result["metrics"]) == {"cpu", "torch-cpu"}
    assert result["metrics"]["cpu"]["recall@20"] > 2 * 20 / 320
    assert result["metrics_difference"] <= 1e-3

    def wrong(work):
        users, update = train_group(work)
        return (users[::-1] if work.device != "cpu" else users), update

    monkeypatch.setattr(bench_device, "train_group", wrong)
    assert bench_device.compared_metrics(scenario, paths, "torch-cpu")["metrics_difference"] > 1e-3


@gpu
@examples(30)
@given(world=worlds, how=how_devices_train)
def test_training_on_a_gpu_equals_the_compiled_loop(world, how):
    _, ranked, cutoffs, users, train = small_world(**world, num_devices=6)
    both(ranked, cutoffs, users, train, seeds_of(cutoffs, world["seed"]), how, "cuda")


@gpu
def test_ranking_on_a_gpu_equals_the_compiled_loop():
    for seed in range(20):
        _, ranked, cutoffs, users, train = small_world(seed, num_slices=2)
        expected = top_rows(ranked, cutoffs, users, train, 5)
        np.testing.assert_array_equal(top_rows(ranked, cutoffs, users, train, 5, "cuda"), expected)


@gpu
def test_a_run_on_a_gpu_gives_the_same_metrics(tiny_scenario, tmp_path):
    results = [
        every_metric(serve(LoopbackGrid(2), on(tiny_scenario, device), RunPaths("", str(tmp_path / device))))
        for device in ("cpu", "cuda")
    ]
    assert results[1] == pytest.approx(results[0], abs=1e-3)
