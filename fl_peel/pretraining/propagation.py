"""How do embeddings spread over the user-item graph? LightGCN's propagation, and its gradient.

He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020,
equations
3, 4 and 6: no weights and no non-linearity, so the whole stack is one symmetric linear map. Its gradient is
the map itself; no layer's activations need to be kept.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.data.interactions import UserItems
from fl_peel.kernels import add_scaled_rows, spread_rows
from fl_peel.pretraining.spectral import normalized_interactions
from fl_peel.training.workers import ALONE, Workers


def csr_tensor(indptr: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """Torch's sparse (len(indptr) - 1, num_columns)."""
    size = (len(indptr) - 1, num_columns)
    return torch.sparse_csr_tensor(indptr.int(), columns.int(), values, size=size, check_invariants=False)


with warnings.catch_warnings():  # torch calls the format beta, once per process
    warnings.simplefilter("ignore", UserWarning)
    csr_tensor(torch.zeros(1), torch.zeros(0), torch.zeros(0), 0)


@dataclass(frozen=True)
class SparseMatrix:
    """(n, m) in compressed rows, and its product with tables: on the processor by a loop of our own, which adds up in
    one order everywhere, elsewhere by torch.

    indptr: (n + 1,) int32; columns: (N,) int32; values: (N,) float32; elsewhere: the same for torch, None on the
    processor.
    """

    indptr: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]
    elsewhere: Tensor | None = None

    @staticmethod
    def from_scipy(matrix: sp.csr_matrix, device: str = "cpu") -> SparseMatrix:
        """From SciPy's."""
        indptr, columns = matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32)
        elsewhere = None
        if torch.device(device).type != "cpu":
            there = partial(torch.asarray, device=device)
            elsewhere = csr_tensor(there(indptr), there(columns), there(matrix.data), matrix.shape[1])
        return SparseMatrix(indptr, columns, matrix.data, elsewhere)

    def spread(self, table: Tensor, workers: Workers = ALONE, total: Tensor | None = None) -> Tensor:
        """The product with a table (m, d), (n, d); it is added to ``total`` too."""
        if self.elsewhere is not None:
            product = self.elsewhere @ table
            if total is not None:
                total += product
            return product
        given = table.detach().contiguous().numpy()
        out = np.empty((len(self.indptr) - 1, given.shape[1]), np.float32)
        added = out[:0] if total is None else total.numpy()

        def part(rows: tuple[int, int]) -> None:
            spread_rows(self.indptr, self.columns, self.values, given, *rows, out, added)

        workers.map(part, workers.parts(self.indptr))
        return torch.from_numpy(out)

    def rows(self, chosen: NDArray[np.int64]) -> SparseMatrix:
        """These rows, in this order."""
        counts = np.diff(self.indptr)[chosen]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(indptr[-1]) + np.repeat(self.indptr[chosen] - indptr[:-1], counts)
        return SparseMatrix(indptr.astype(np.int32), self.columns[places], self.values[places])

    def add_back(self, table: Tensor, total: Tensor, workers: Workers = ALONE) -> None:
        """Add the product of the transpose with a table (n, d) to ``total`` (m, d), on the processor."""
        given, target = table.detach().contiguous().numpy(), total.numpy()
        rows = np.repeat(np.arange(len(given)), np.diff(self.indptr))

        def part(columns: tuple[int, int]) -> None:
            add_scaled_rows(target, self.columns, given, rows, self.values, *columns)

        workers.map(part, workers.ranges(0, target.shape[1]))


@dataclass(frozen=True)
class InteractionGraph:
    """The bipartite graph of collected interactions: D_u^-1/2 R D_i^-1/2 (U, I) and its transpose (I, U)."""

    forward: SparseMatrix
    backward: SparseMatrix

    @staticmethod
    def build(rows: UserItems, num_items: int, device: str = "cpu") -> InteractionGraph:
        """Build from the collected interactions."""
        matrix = normalized_interactions(rows, num_items)
        return InteractionGraph(
            SparseMatrix.from_scipy(matrix, device), SparseMatrix.from_scipy(sp.csr_matrix(matrix.T), device)
        )


def own_copy(table: Tensor) -> Tensor:
    """Row after row, no gradient recorded."""
    return table.detach().clone(memory_format=torch.contiguous_format)


def mean_of_layers(
    graph: InteractionGraph, users: Tensor, items: Tensor, num_layers: int, workers: Workers = ALONE
) -> tuple[Tensor, Tensor]:
    """Mean over layers 0..num_layers of users (U, d) and items (I, d), no gradient recorded."""
    user_sum, item_sum = own_copy(users), own_copy(items)
    for _ in range(num_layers):
        users, items = (
            graph.forward.spread(items, workers, user_sum),
            graph.backward.spread(users, workers, item_sum),
        )
    return user_sum.div_(num_layers + 1), item_sum.div_(num_layers + 1)


class _Propagate(torch.autograd.Function):
    """:func:`mean_of_layers` with its gradient; the map is symmetric, so backward is forward."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, graph: InteractionGraph, num_layers: int, workers: Workers
    ) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.num_layers, ctx.workers = graph, num_layers, workers
        return mean_of_layers(graph, users, items, num_layers, workers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        users, items = mean_of_layers(ctx.graph, gradients[0], gradients[1], ctx.num_layers, ctx.workers)
        return users, items, None, None, None


class _PropagateTo(torch.autograd.Function):
    """:class:`_Propagate` where the tables of some users are wanted: the same numbers, without the last layer of the
    other users, and without what their gradient, which is zero, would add in the first layer of the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, graph: InteractionGraph, num_layers: int, workers: Workers,
        wanted: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        order = wanted.argsort()
        ctx.graph, ctx.num_layers, ctx.workers, ctx.order, ctx.wanted = graph, num_layers, workers, order, wanted
        ctx.num_users, ctx.mine = len(users), graph.forward.rows(wanted[order].numpy())
        wanted_sum, item_sum = users.detach()[wanted[order]], own_copy(items)
        for layer in range(1, num_layers + 1):
            before = users
            if layer < num_layers:
                users = graph.forward.spread(items, workers)
                wanted_sum += users[wanted[order]]
            else:
                ctx.mine.spread(items, workers, wanted_sum)
            items = graph.backward.spread(before, workers, item_sum)
        wanted_users = torch.empty_like(wanted_sum)
        wanted_users[order] = wanted_sum.div_(num_layers + 1)
        return wanted_users, item_sum.div_(num_layers + 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph, workers, some = ctx.graph, ctx.workers, gradients[0][ctx.order]
        items = gradients[1]
        user_sum = items.new_zeros(ctx.num_users, items.shape[1])
        user_sum[ctx.wanted[ctx.order]] = some
        users = graph.forward.spread(items, workers, user_sum)
        first = torch.zeros_like(items, memory_format=torch.contiguous_format)
        ctx.mine.add_back(some, first, workers)
        item_sum, items = items + first, first
        for _ in range(ctx.num_layers - 1):
            users, items = (
                graph.forward.spread(items, workers, user_sum),
                graph.backward.spread(users, workers, item_sum),
            )
        user_sum, item_sum = user_sum.div_(ctx.num_layers + 1), item_sum.div_(ctx.num_layers + 1)
        return user_sum, item_sum, None, None, None, None


def propagate(
    graph: InteractionGraph,
    users: Tensor,
    items: Tensor,
    num_layers: int,
    *,
    wanted: Tensor | None = None,
    workers: Workers = ALONE,
) -> tuple[Tensor, Tensor]:
    """LightGCN's final tables (U, d), (I, d) from layer 0; differentiable. 0 layers return the input.

    wanted: (B,) different users, whose tables (B, d) alone are wanted; None: of all.
    """
    if num_layers == 0:
        return (users if wanted is None else users[wanted]), items
    arguments = (users, items, graph, num_layers, workers)
    result: tuple[Tensor, Tensor]
    if wanted is None or graph.forward.elsewhere is not None:
        result = _Propagate.apply(*arguments)  # type: ignore[no-untyped-call]
        return result if wanted is None else (result[0][wanted], result[1])
    result = _PropagateTo.apply(*arguments, wanted)  # type: ignore[no-untyped-call]
    return result
