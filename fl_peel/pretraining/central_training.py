"""Central training of item tables, and its cache.

Base recommenders: matrix factorization and LightGCN (He et al., SIGIR 2020). Losses: BPR and sampled
softmax. A diversity regularizer between an item's slices, as in PEEL (arXiv 2306.10532, section
"diversity-driven regularizer").

LightGCN as published propagates for every small batch over hundreds of epochs, which takes hours on a CPU.
Here the tables start from a truncated SVD (:mod:`fl_peel.pretraining.spectral`), a step takes thousands of whole users
against many shared negatives (:mod:`fl_peel.pretraining.losses`), and so a few hundred propagations are enough.

Tables and their user groups are cached by content: studies that differ only in their federated part pretrain and
cluster once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel import __version__
from fl_peel.cpu_dispatch import code_paths
from fl_peel.data.interactions import UserItems, check_collected
from fl_peel.errors import ScenarioError
from fl_peel.pretraining.clusters import UserGroups
from fl_peel.pretraining.losses import BatchLoss, InteractionGraph, UserBatch, evenly_drawn, propagate, slice_diversity
from fl_peel.pretraining.spectral import spectral_tables
from fl_peel.randomness import seed_for
from fl_peel.scenario.settings import PretrainingConfig
from fl_peel.store import Store
from fl_peel.training.adam import EagerAdam
from fl_peel.training.workers import Workers, own_threads, threads_for

FloatArray = NDArray[np.float32]
_DIVERSITY_SAMPLE = 4096  # items per step that the diversity regularizer looks at


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch did: its number (from 1) and its mean loss over the users, regularizers included."""

    epoch: int
    loss: float


@dataclass(frozen=True)
class PretrainedEmbeddings:
    """Global tables; the score of an item is the plain dot product of its row with the user's.

    users: (U, d), zero rows for users who gave no data; items: (I, d);
    temperature: the logits that the loss saw are score / temperature, so a local loss fits with the same
    scale;
    history: figures per epoch.
    """

    users: FloatArray
    items: FloatArray
    temperature: float
    history: tuple[EpochFigures, ...] = ()


def pretrain(
    collected: UserItems,
    num_items: int,
    config: PretrainingConfig,
    *,
    seed: int,
    device: str = "cpu",
    progress: Callable[[EpochFigures], None] | None = None,
) -> PretrainedEmbeddings:
    """Train the global tables. The same arguments give the same tables to the last digit, on processors of
    one code path (:mod:`fl_peel.cpu_dispatch`).

    Raises:
        ScenarioError: training diverged.
        DataError: no interaction was collected.
    """
    check_collected(collected)
    num_threads = config.num_threads or threads_for(collected.num_interactions)
    with own_threads(num_threads) as workers:
        trainer = _Trainer(collected, num_items, config, seed, device, workers)
        history = []
        for figures in trainer.epochs():
            _check_finite(figures.loss)
            history.append(figures)
            if progress is not None:
                progress(figures)
        users, items = trainer.tables()
    with np.errstate(over="ignore"):
        _check_finite(users.astype(np.float16), items)  # devices keep their own in fp16
    return PretrainedEmbeddings(users, items, config.temperature, tuple(history))


def _check_finite(*results: float | FloatArray) -> None:
    """Refuse to go on with numbers that are none.

    Raises:
        ScenarioError: naming the stage and the remedy.
    """
    if not all(np.isfinite(result).all() for result in results):
        raise ScenarioError(
            "pretraining: training diverged; lower pretraining.learning_rate or initial_norm, or raise temperature"
        )


def scaled_tables(
    rows: UserItems, num_items: int, dim: int, norm: float, *, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Spectral tables (U, d), (I, d) of mean row length ``norm`` over items that have data."""
    users, items = spectral_tables(rows, num_items, dim, seed=seed)
    lengths = np.linalg.norm(items, axis=1)
    scale = norm / max(float(lengths[lengths > 0].mean()), 1e-12)
    return (users * scale).astype(np.float32), (items * scale).astype(np.float32)


class _Trainer:
    """Layer-0 tables, their optimizer, and the data on the torch device."""

    def __init__(
        self, collected: UserItems, num_items: int, config: PretrainingConfig, seed: int, device: str, workers: Workers
    ) -> None:
        self._config, self._seed, self._device, self._workers = config, seed, device, workers
        collected = collected.by_item  # tables do not depend on the order of a user's items, to the last bit
        self._rows, self._num_items = collected, num_items
        self._graph = InteractionGraph.build(collected, num_items, device)
        self._num_layers = config.num_layers if config.model == "lightgcn" else 0
        users, items = self._initial()
        self._users = torch.from_numpy(users).to(device).requires_grad_()
        self._items = torch.from_numpy(items).to(device).requires_grad_()
        self._optimizer = EagerAdam([self._users, self._items], lr=config.learning_rate, fused=True)
        self._loss_of = BatchLoss(collected, num_items, config, device, workers)

    def _initial(self) -> tuple[FloatArray, FloatArray]:
        """Layer-0 tables: (U, d), (I, d)."""
        dim, norm = self._config.embedding_dim, self._config.initial_norm
        if self._config.initialization == "spectral":
            return scaled_tables(self._rows, self._num_items, dim, norm, seed=self._seed)
        generator = self._generator("initialization")
        size = (self._rows.num_users + self._num_items, dim)
        both = torch.randn(size, generator=generator).numpy() * np.float32(norm / dim**0.5)
        return both[: self._rows.num_users].copy(), both[self._rows.num_users :].copy()

    def _generator(self, *identity: str | int) -> torch.Generator:
        # manual_seed takes signed 64 bits
        return torch.Generator().manual_seed(seed_for(self._seed, "pretraining", *identity) >> 1)

    def epochs(self) -> Iterator[EpochFigures]:
        config = self._config
        num_steps, step = config.epochs * self._loss_of.num_batches, 0
        for epoch in range(1, config.epochs + 1):
            generator = self._generator("epoch", epoch)
            total = 0.0
            for batch in self._loss_of.batches(generator):
                for group in self._optimizer.param_groups:
                    group["lr"] = config.learning_rate * (1.0 - step / num_steps)
                total += self._step(batch, generator) * len(batch.users)
                step += 1
            yield EpochFigures(epoch, total / len(self._loss_of.active))

    def _step(self, batch: UserBatch, generator: torch.Generator) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        if self._config.l2 > 0:
            loss = loss + self._loss_of.add_penalty(self._users, self._items)
        self._optimizer.step()
        return float(loss)

    def _final(self, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The tables that score: (U, d) or, of the users that are wanted, (B, d); (I, d)."""
        return propagate(self._graph, self._users, self._items, self._num_layers, wanted=wanted, workers=self._workers)

    def _loss(self, batch: UserBatch, generator: torch.Generator) -> Tensor:
        config = self._config
        users, items = self._final(batch.users)
        loss = self._loss_of(users, items, batch, generator)
        if config.diversity_weight > 0:
            chosen = evenly_drawn(self._num_items, _DIVERSITY_SAMPLE, generator, self._device)
            table = items if chosen is None else items[chosen]
            loss = loss + config.diversity_weight * slice_diversity(table, config.num_slices, config.diversity_form)
        return loss

    def tables(self) -> tuple[FloatArray, FloatArray]:
        """Final tables as NumPy: (U, d), (I, d)."""
        with torch.no_grad():
            users, items = self._final()
            users = users.clone()
            users[torch.from_numpy(self._rows.counts() == 0).to(self._device)] = 0.0
        return users.cpu().numpy(), items.detach().clone().cpu().numpy()


logger = logging.getLogger("fl_peel")
NAME, GROUPS, TABLES = "pretrained", "groups", "tables"


def pretraining_key(collected: UserItems, num_items: int, config: PretrainingConfig, seed: int, device: str) -> Any:
    """Return everything that decides the tables: the collected interactions, the settings, the seed, the versions of
    this package, torch, NumPy and SciPy, and the code paths that libraries run.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(collected.indptr).tobytes())
    digest.update(np.ascontiguousarray(collected.items).tobytes())
    return {
        "interactions": digest.hexdigest(),
        "users": collected.num_users,
        "items": num_items,
        "seed": seed,
        "device": device,
        **dataclasses.asdict(config),
        "versions": [__version__, torch.__version__, np.__version__, scipy.__version__, code_paths()],
    }


def read_tables(folder: Path, key: Any) -> PretrainedEmbeddings | None:
    """Return the cached tables, or None where there are none, or, with a warning, where they are damaged."""
    entry = Store(folder, lambda line: logger.warning("%s; pretraining again", line)).read(NAME, key)
    if entry is None:
        return None
    tables, history = entry.arrays(TABLES), enumerate(entry.value["loss"], start=1)
    figures = tuple(EpochFigures(epoch, loss) for epoch, loss in history)
    return PretrainedEmbeddings(tables["users"], tables["items"], entry.value["temperature"], figures)


def write_tables(folder: Path, key: Any, tables: PretrainedEmbeddings) -> None:
    """Cache tables, whole or, with a warning, not at all: a run that has trained them goes on with them."""
    value = {"temperature": tables.temperature, "loss": [figures.loss for figures in tables.history]}
    _write(folder, NAME, key, value, {"users": tables.users, "items": tables.items})


def cached_groups(
    folder: str, key: Any, num_groups: int, min_size: int, cluster: Callable[[], UserGroups]
) -> UserGroups:
    """Return the user groups of pretrained tables from the cache, or make and cache them: scikit-learn alone takes a
    second to import. folder: "" caches nothing; key: of the tables; num_groups, min_size: what ``cluster`` is given.
    """
    if not folder:
        return cluster()
    key = {**key, "user_groups": [num_groups, min_size], "scikit-learn": version("scikit-learn")}
    entry = Store(Path(folder), lambda line: logger.warning("%s; grouping again", line)).read(GROUPS, key)
    if entry is not None:
        return UserGroups(**entry.arrays(TABLES))
    groups = cluster()
    _write(Path(folder), GROUPS, key, None, {"assignment": groups.assignment, "centroids": groups.centroids})
    return groups


def _write(folder: Path, name: str, key: Any, value: Any, arrays: dict[str, NDArray[Any]]) -> None:
    try:
        Store(folder).write(name, key, value, {TABLES: arrays})
    except OSError as error:
        logger.warning("%s: %s tables cannot be cached (%s); the next run makes them again", folder, name, error)
