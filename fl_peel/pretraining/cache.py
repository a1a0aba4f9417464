"""Pretrained tables and their user groups, cached by content: studies that differ only in their federated part
pretrain and cluster once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from fl_peel import __version__
from fl_peel.cpu_dispatch import code_paths
from fl_peel.data.interactions import UserItems
from fl_peel.grouping.clusters import UserGroups
from fl_peel.pretraining.central_training import EpochFigures, PretrainedEmbeddings
from fl_peel.scenario.pretraining_settings import PretrainingConfig
from fl_peel.store import Store

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
