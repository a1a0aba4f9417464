"""Pretrained tables kept by content, so that studies that differ only in their federated part pretrain once.

The key covers everything that decides the tables: the collected interactions, the settings, the seed, the versions of
this package, torch, NumPy and SciPy, and the code paths that libraries run. Files are safetensors with a digest of what
they hold; nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fl_peel import __version__
from fl_peel.cpu_dispatch import code_paths
from fl_peel.data.interactions import UserItems
from fl_peel.pretraining.central_training import EpochFigures, PretrainedEmbeddings
from fl_peel.pretraining.settings import PretrainingConfig

logger = logging.getLogger("fl_peel")

DIGEST = "digest"
"""Key of the digest in a file's metadata."""


def pretraining_key(collected: UserItems, num_items: int, config: PretrainingConfig, seed: int, device: str) -> str:
    """Return the name under which the tables are cached: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(collected.indptr).tobytes())
    digest.update(np.ascontiguousarray(collected.items).tobytes())
    versions = [__version__, torch.__version__, np.__version__, scipy.__version__, code_paths()]
    rest = [num_items, dataclasses.asdict(config), seed, device, *versions]
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def read_tables(folder: Path, key: str) -> PretrainedEmbeddings | None:
    """Return the cached tables, or None where there are none, or, with a warning, where the file is damaged."""
    path = folder / f"{key}.safetensors"
    try:
        if not path.is_file():
            return None
        return _read(path)
    except (SafetensorError, KeyError, IndexError, ValueError, TypeError, OSError) as error:
        logger.warning("%s: cached tables are damaged (%s); pretraining again", path, error or type(error).__name__)
        return None


def _read(path: Path) -> PretrainedEmbeddings:
    with safe_open(path, framework="numpy") as file:
        kept = (file.metadata() or {}).get(DIGEST)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
    if kept != _digest(tensors):
        raise ValueError("not what was written")
    history = tuple(EpochFigures(i + 1, float(loss)) for i, loss in enumerate(tensors["loss"]))
    return PretrainedEmbeddings(tensors["users"], tensors["items"], float(tensors["temperature"][0]), history)


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return a digest of the tensors' names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(json.dumps([name, tensor.dtype.str, tensor.shape]).encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def write_tables(folder: Path, key: str, tables: PretrainedEmbeddings) -> None:
    """Cache tables, whole or, with a warning, not at all: a run that has trained them goes on with them."""
    try:
        _write(folder, f"{key}.safetensors", tables)
    except (OSError, SafetensorError) as error:
        logger.warning("%s: pretrained tables cannot be cached (%s); the next run pretrains again", folder, error)


def _write(folder: Path, file: str, tables: PretrainedEmbeddings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".unfinished-")
    os.close(handle)
    tensors = {
        "users": np.ascontiguousarray(tables.users),
        "items": np.ascontiguousarray(tables.items),
        "temperature": np.array([tables.temperature]),
        "loss": np.array([figures.loss for figures in tables.history]),
    }
    try:
        save_file(tensors, name, {DIGEST: _digest(tensors)})
        os.replace(name, folder / file)
    finally:
        Path(name).unlink(missing_ok=True)
