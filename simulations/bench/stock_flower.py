"""The benchmark's rival: the same local training as a plain Flower app, one node per device, one message each.

Every node gets the item table (the same int8 blocks that PEEL sends), trains its device with the same compiled loop,
keeps the user embedding in a file and returns the rows it changed; the server adds them up. Training is not what
this measures: it measures what a message per device costs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.randomness import device_seeds
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork

HOW = LocalTraining(epochs=1, batch_size=64, num_negatives=1, learning_rate=0.05, user_learning_rate=0.05, loss="bpr")
"""The training of the benchmark, on either side."""

app = ClientApp()


def save_devices(folder: Path, users: NDArray[np.float32], train: UserItems) -> None:
    """Lay every device's user embedding (N, d) and train items where its node finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "users.npy", users)
    np.save(folder / "indptr.npy", train.indptr)
    np.save(folder / "items.npy", train.items)


def train_content(
    folder: Path, seed: int, server_round: int, num_items: int, blocks: dict[str, NDArray[Any]]
) -> RecordDict:
    """Return a message's content: the table as packed by ``pack_ranking``, and where the devices lie."""
    arrays = ArrayRecord({name: Array(array) for name, array in blocks.items()})
    config = ConfigRecord({"folder": str(folder), "seed": seed, "server_round": server_round, "num_items": num_items})
    return RecordDict({"blocks": arrays, "config": config})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the device of this node."""
    device = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    blocks = {name: array.numpy() for name, array in message.content.array_records["blocks"].items()}
    update = train_device(
        Path(str(config["folder"])),
        device,
        int(config["seed"]),  # type: ignore[arg-type]
        int(config["server_round"]),  # type: ignore[arg-type]
        _ranked(int(config["num_items"]), blocks),  # type: ignore[arg-type]
    )
    arrays = ArrayRecord({name: Array(array) for name, array in update.items()})
    return Message(RecordDict({"update": arrays}), reply_to=message)


@lru_cache(maxsize=1)
def _layout(num_items: int, dim: int) -> BlockLayout:
    return BlockLayout(np.arange(num_items, dtype=np.int32), dim, 1)


def _ranked(num_items: int, blocks: dict[str, NDArray[Any]]) -> RankedBlocks:
    dim = len(blocks["codes"]) // len(blocks["blocks"])  # int8: a byte per column
    return RankedBlocks.unpack(_layout(num_items, dim), "int8", blocks)


def train_device(
    folder: Path, device: int, seed: int, server_round: int, ranked: RankedBlocks
) -> dict[str, NDArray[np.int32] | NDArray[np.int64]]:
    """Train one device and store its user embedding; the rows it changed and by how much."""
    users = np.load(folder / "users.npy", mmap_mode="r+")
    indptr = np.load(folder / "indptr.npy", mmap_mode="r")
    start, stop = int(indptr[device]), int(indptr[device + 1])
    items = np.array(np.load(folder / "items.npy", mmap_mode="r")[start:stop])
    trained, update = train_group(
        LocalWork(
            ranked,
            np.array([len(ranked.blocks)], np.int64),
            np.array(users[[device]]),
            UserItems(np.array([0, len(items)], np.int64), items),
            device_seeds(seed, "local-training", server_round, devices=np.array([device])),
            HOW,
        )
    )
    users[device] = trained[0]
    return update.changed()


def mean_of(num_items: int, ranked: RankedBlocks, replies: list[Message]) -> NDArray[np.float32]:
    """Mean change of each item's row over the devices that changed it, (I, d)."""
    total = np.zeros(ranked.table.shape, np.int64)
    touched = np.zeros(len(total), np.int64)
    for reply in replies:
        update = reply.content.array_records["update"]
        total[update["rows"].numpy()] += update["sums"].numpy()
        total[update["wide_rows"].numpy()] += update["wide_sums"].numpy()
        touched[update["rows"].numpy()] += 1
    mean = np.zeros((num_items, ranked.layout.embedding_dim), np.float32)
    mean[ranked.items] = total / (np.maximum(touched, 1)[:, None] * FIXED_POINT)
    return mean
