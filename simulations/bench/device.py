"""Does a GPU give the figures of the processor? The same round on both, and what devices then recommend."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.device_storage import device_splits
from fl_peel.kernels import FIXED_POINT
from fl_peel.pretraining.central_training import pretrain
from fl_peel.randomness import device_seeds
from fl_peel.ranking.top import MetricSums, evaluate
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.group import train_group
from fl_peel.training.work import LocalWork
from strategies.rounds.sampling import sample_cohort
from strategies.run.run_paths import RunPaths

TOP_N = 20
MOST_DEVICES = 4000
"""Devices of the comparison, drawn where there are more: it is no measure of speed."""


def compared_metrics(scenario: Scenario, paths: RunPaths, device: str) -> dict[str, Any]:
    """One round of devices, from tables that know something of their tastes, on ``cpu`` and on ``device``.

    All are one user group and hold the whole table in int8. ``metrics``: means over devices with test items, by where;
    ``metrics_difference``: the largest absolute difference between the two.
    """
    splits = device_splits(scenario, paths.data_dir, paths.run_dir)
    everybody = np.arange(splits.num_users)
    share = min(1.0, MOST_DEVICES / max(splits.num_users, 1))
    devices = sample_cohort(scenario.seed, 1, everybody, share)
    splits = splits.select(devices)
    num_devices, num_items, train = len(devices), splits.num_items, splits.train
    pretrained = pretrain(train, num_items, scenario.pretraining.config(), seed=scenario.seed)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), scenario.pretraining.embedding_dim, 1)
    weights = train.popularity(num_items).astype(np.float64)
    sent = rank_blocks(layout, "int8", weights, pretrained.items)
    everything = np.full(num_devices, len(sent.blocks), np.int64)
    seeds = device_seeds(scenario.seed, "bench", devices=devices)
    how = scenario.refinement.local.config(pretrained.temperature)
    seen = train.merged(splits.validation)
    metrics: dict[str, dict[str, float]] = {}
    for where in ("cpu", device):
        users, update = train_group(LocalWork(sent, everything, pretrained.users, train, seeds, how, where))
        table = pretrained.items.copy()
        table[sent.items] += (update.sums / np.maximum(update.touched, 1) / FIXED_POINT).astype(np.float32)
        new = rank_blocks(layout, "int8", weights, table)
        per_device = evaluate(new, everything, users, seen, splits.test, TOP_N, where)
        counted = splits.test.counts() > 0
        recall, ndcg = MetricSums.from_devices(np.zeros(num_devices, np.int64), 1, *per_device, counted).mean()
        metrics[where] = {f"recall@{TOP_N}": float(recall[0]), f"ndcg@{TOP_N}": float(ndcg[0])}
    differences = [abs(metrics[device][name] - value) for name, value in metrics["cpu"].items()]
    return {"metrics": metrics, "metrics_difference": max(differences)}


__all__ = ["compared_metrics"]
