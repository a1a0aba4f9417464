"""How do embeddings spread over the user-item graph? LightGCN's propagation, and its gradient.

He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020,
equations
3, 4 and 6: no weights and no non-linearity, so the whole stack is one symmetric linear map. Its gradient is
the map itself; no layer's activations need to be kept.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from fl_peel.data.interactions import UserItems
from fl_peel.pretraining.spectral import normalized_interactions


@dataclass(frozen=True)
class InteractionGraph:
    """The bipartite graph of collected interactions: D_u^-1/2 R D_i^-1/2 (U, I) and its transpose (I, U)."""

    forward: Tensor
    backward: Tensor

    @staticmethod
    def build(rows: UserItems, num_items: int, device: str = "cpu") -> InteractionGraph:
        """Build from the collected interactions."""
        matrix = normalized_interactions(rows, num_items)
        return InteractionGraph(_sparse(matrix, device), _sparse(sp.csr_matrix(matrix.T), device))


def _sparse(matrix: sp.csr_matrix, device: str) -> Tensor:
    with warnings.catch_warnings():  # torch calls its CSR format beta, once per process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            device=device,
            check_invariants=False,
        )


def mean_of_layers(graph: InteractionGraph, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """Mean over layers 0..num_layers of users (U, d) and items (I, d), no gradient recorded."""
    user_sum, item_sum = users.clone(), items.clone()
    for _ in range(num_layers):
        users, items = graph.forward @ items, graph.backward @ users
        user_sum += users
        item_sum += items
    return user_sum / (num_layers + 1), item_sum / (num_layers + 1)


class _Propagate(torch.autograd.Function):
    """:func:`mean_of_layers` with its gradient; the map is symmetric, so backward is forward."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, graph: InteractionGraph, num_layers: int
    ) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.num_layers = graph, num_layers
        return mean_of_layers(graph, users, items, num_layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users, items = mean_of_layers(ctx.graph, gradients[0], gradients[1], ctx.num_layers)
        return users, items, None, None


def propagate(graph: InteractionGraph, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """LightGCN's final tables (U, d), (I, d) from layer 0; differentiable. 0 layers return the input."""
    if num_layers == 0:
        return users, items
    result: tuple[Tensor, Tensor] = _Propagate.apply(  # type: ignore[no-untyped-call]
        users, items, graph, num_layers
    )
    return result
