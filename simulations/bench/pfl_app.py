"""The benchmark's other rival: the same local training under pfl (Apple), which needs no messages at all.

Run by ``fl-peel bench --pfl-python PYTHON`` in an environment of its own, where ``pfl`` and ``torch`` are installed; it
imports nothing of fl-peel. It reads a folder (:func:`simulations.bench.stock_flower.save_devices` and ``table.npy``)
and prints one line of JSON. As on our side a device takes one pass over its train items in mini-batches, BPR with one
uniform negative for each, plain SGD on the item table and on its own user embedding, which stays with it. Item
gradients are sparse; what pfl then does with the whole table for every device (difference, sum) is its own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path, batch_size: int, learning_rate: float) -> dict[str, Any]:
    """Train every device of the folder in one round; devices, seconds, pfl's version."""
    from importlib.metadata import version

    import torch
    import torch.nn.functional as F
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    users = torch.from_numpy(np.load(folder / "users.npy"))
    indptr, items = np.load(folder / "indptr.npy"), np.load(folder / "items.npy").astype(np.int64)
    num_devices = len(users)

    class Tables(torch.nn.Module):
        """The item table, which is federated, and the devices' own embeddings, which are not."""

        def __init__(self, table: Any) -> None:
            super().__init__()
            self.items = torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=True)  # type: ignore[no-untyped-call]

        def loss(self, positives: Any, device: Any, is_eval: bool = False) -> Any:
            """Sum of the BPR losses of a batch: positives (B,), device (B,), the same number B times."""
            own = int(device[0])
            user = users[own].clone().requires_grad_()
            user.register_hook(lambda gradient: users[own].sub_(learning_rate * gradient))  # type: ignore[no-untyped-call]
            negatives = torch.randint(len(self.items.weight), positives.shape)
            margin = (self.items(positives) - self.items(negatives)) @ user
            return -F.logsigmoid(margin).sum()

        def metrics(self, positives: Any, device: Any, is_eval: bool = False) -> dict[str, Any]:
            """None."""
            return {}

    def device_data(device: int) -> Any:
        mine = torch.from_numpy(items[indptr[device] : indptr[device + 1]])
        return Dataset([mine, torch.full((len(mine),), device)], user_id=str(device))

    torch.manual_seed(0)
    tables = Tables(torch.from_numpy(np.load(folder / "table.npy")))
    model = PyTorchModel(tables, torch.optim.SGD, torch.optim.SGD(tables.parameters(), lr=1.0))
    order = iter(range(num_devices))
    data = FederatedDataset(device_data, lambda: next(order))
    plan = NNAlgorithmParams(
        central_num_iterations=1,
        evaluation_frequency=1000,
        train_cohort_size=num_devices,
        val_cohort_size=None,
    )
    train = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=learning_rate, local_batch_size=batch_size)
    before = tables.items.weight.detach().clone()
    start = time.perf_counter()
    FederatedAveraging().run(
        algorithm_params=plan,
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=train,
        model_eval_params=NNEvalHyperParams(local_batch_size=batch_size),
    )
    seconds = time.perf_counter() - start
    changed = int((tables.items.weight.detach() != before).any(dim=1).sum())
    return {"devices": num_devices, "seconds": seconds, "changed_rows": changed, "version": version("pfl")}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
