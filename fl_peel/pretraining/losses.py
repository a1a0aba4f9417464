"""Losses of central training.

Both ranking losses take whole users: a batch is a set of users with all of their collected items. The
softmax's denominator is then computed once per user and not once per interaction, which on a CPU makes even
the softmax over *all* items cheap.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.data.interactions import UserItems
from fl_peel.kernels import add_scaled_rows, spread_rows
from fl_peel.pretraining.spectral import normalized_interactions
from fl_peel.scenario.settings import DiversityForm, PretrainingConfig
from fl_peel.training.workers import ALONE, Workers


def evenly_drawn(num_items: int, count: int, generator: torch.Generator, device: str = "cpu") -> Tensor | None:
    """``count`` different items of ``num_items``; None stands for all."""
    if not 0 < count < num_items:
        return None
    return torch.randperm(num_items, generator=generator)[:count].to(device)


_CHUNK_LOGITS = 1 << 18  # logits that a worker holds at once: 1 MB of float32, so that they stay in its core's cache
_STRANDS = 2  # parts of a batch that are worked off beside one another, however many workers there are


@dataclass(frozen=True)
class UserBatch:
    """Users of one step with all of their positives.

    users: (B,) user numbers; rows: (P,) place in ``users`` of every positive, ascending; items: (P,) item
    numbers;
    weights: (P,) weight of every positive in the loss, sums to 1.
    """

    users: Tensor
    indptr: Tensor
    rows: Tensor
    items: Tensor
    weights: Tensor


def bpr_loss(users: Tensor, items: Tensor, batch: UserBatch, negatives: Tensor, temperature: float) -> Tensor:
    """Bayesian personalized ranking (Rendle et al., UAI 2009): mean -log sigmoid(positive - negative).

    users: (B, d) rows of the batch; items: (I, d); negatives: (P, k) item numbers, k per positive.
    """
    rows = users[batch.rows]  # (P, d)
    positive = (rows * items[batch.items]).sum(dim=1)  # (P,)
    negative = torch.einsum("pd,pkd->pk", rows, items[negatives])  # (P, k)
    losses = F.softplus((negative - positive[:, None]) / temperature).mean(dim=1)
    return (losses * batch.weights).sum()


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left (n, k) times right (k, m), written to ``out`` (n, m), no gradient recorded.

    On the processor by NumPy's BLAS, whose code path :mod:`fl_peel.cpu_dispatch` names: that of MKL which is the same
    on processors of all makers is several times slower.
    """
    if out.device.type != "cpu":
        return torch.mm(left, right, out=out)
    np.matmul(left.detach().numpy(), right.detach().numpy(), out=out.detach().numpy())
    return out


def positives(scaled: Tensor, items: Tensor, batch: UserBatch, workers: Workers) -> Tensor:
    """Logits of what users have, without a bias, (P,). scaled: (B, d) users over the temperature."""

    @torch.no_grad()  # which is said thread by thread
    def part(rows: tuple[int, int]) -> Tensor:
        indptr = batch.indptr[rows[0] : rows[1] + 1]
        first, last = int(indptr[0]), int(indptr[-1])
        pattern = csr_tensor(indptr - first, batch.items[first:last], batch.weights[first:last], items.shape[0])
        logits: Tensor = torch.sparse.sampled_addmm(pattern, scaled[slice(*rows)], items.T, beta=0.0).values()
        return logits

    return torch.cat(workers.map(part, workers.ranges(0, len(scaled))))


def own_terms(
    batch: UserBatch, items: Tensor, scaled: Tensor, pull: Tensor, gradients: tuple[Tensor, Tensor], workers: Workers
) -> None:
    """What positives pull: from the users' gradient (B, d), and from the items' (I, d)."""
    user_gradient, item_gradient = gradients
    if items.device.type != "cpu":
        user_gradient -= csr_tensor(batch.indptr, batch.items, pull, items.shape[0]) @ items
        item_gradient.index_add_(0, batch.items, scaled[batch.rows] * -pull[:, None])
        return
    pulls = SparseMatrix(batch.indptr.int().numpy(), batch.items.int().numpy(), pull.numpy())
    user_gradient -= pulls.spread(items, workers)
    replace(pulls, values=-pulls.values).add_back(scaled, item_gradient, workers)


class _SampledSoftmax(torch.autograd.Function):
    """Value and gradient in one pass over the logits, chunk by chunk, into one buffer."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        batch: UserBatch,
        candidates: Tensor | None,
        temperature: float,
        workers: Workers,
    ) -> Tensor:
        table = items if candidates is None else items[candidates]  # (M, d)
        stands_for = math.log(len(items) / len(table))  # of each candidate, so that their sum estimates that over all
        bias = items.new_full((len(table),), stands_for)
        scaled = users / temperature  # (B, d)
        columns = table.T.contiguous()  # (d, M)
        user_gradient = torch.empty_like(users)
        pull = torch.empty_like(batch.weights)
        num_users = users.shape[0]
        chunk = max(1, min(num_users, _CHUNK_LOGITS // table.shape[0]))
        positive = positives(scaled, items, batch, workers)

        @torch.no_grad()  # which is said thread by thread
        def strand(users_of: tuple[int, int]) -> tuple[Tensor, Tensor]:
            """Loss of these users, and the gradient (M, d) of the table."""
            loss = torch.zeros((), dtype=torch.float64, device=users.device)
            table_gradient, pushed = torch.zeros_like(table), torch.empty_like(table)
            buffer = users.new_empty(chunk, table.shape[0])
            for start in range(*users_of, chunk):
                stop = min(start + chunk, users_of[1])
                logits = product(scaled[start:stop], columns, out=buffer[: stop - start]).add_(bias)  # (c, M)
                highest = logits.amax(dim=1, keepdim=True)
                total = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)  # (c, 1)
                log_total = (total.log() + highest)[:, 0]

                first, last = int(batch.indptr[start]), int(batch.indptr[stop])
                rows, weights = batch.rows[first:last] - start, batch.weights[first:last]
                margin = log_total[rows] - positive[first:last]
                if candidates is None:
                    losses, pull[first:last] = margin, weights
                else:  # the positive joins its own denominator
                    losses, pull[first:last] = F.softplus(margin), weights * torch.sigmoid(margin)
                loss += (losses * weights).sum(dtype=torch.float64)

                pushes = users.new_zeros(stop - start).index_add_(0, rows, pull[first:last])
                logits *= (pushes / total[:, 0])[:, None]
                product(logits, table, out=user_gradient[start:stop])
                table_gradient += product(logits.T, scaled[start:stop], out=pushed)
            return loss, table_gradient

        cut = -(-num_users // chunk) // _STRANDS * chunk
        strands = workers.map(strand, [part for part in ((0, cut), (cut, num_users)) if part[0] < part[1]])
        loss, table_gradient = (torch.stack(parts).sum(dim=0) for parts in zip(*strands, strict=True))
        item_gradient = table_gradient if candidates is None else torch.zeros_like(items)
        own_terms(batch, items, scaled, pull, (user_gradient, item_gradient), workers)
        user_gradient /= temperature
        if candidates is not None:
            item_gradient.index_add_(0, candidates, table_gradient)
        ctx.gradients = user_gradient, item_gradient
        return loss.to(users.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        users, items = (own.mul_(gradients[0]) for own in ctx.gradients)
        return users, items, None, None, None, None


def sampled_softmax_loss(
    users: Tensor,
    items: Tensor,
    batch: UserBatch,
    *,
    temperature: float,
    candidates: Tensor | None = None,
    workers: Workers = ALONE,
) -> Tensor:
    """Mean of -log softmax of the positive's logit, logit = user . item / temperature.

    users: (B, d) rows of the batch; items: (I, d); candidates: (M,) different items, drawn evenly, as negatives that
    the whole batch shares; None for all items.
    """
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        users, items, batch, candidates, temperature, workers
    )
    return loss


def slice_diversity(items: Tensor, num_slices: int, form: DiversityForm) -> Tensor:
    """Penalty that keeps the slices of an item from saying the same; items (I, d), d divisible by num_slices.

    "cosine": mean over items and pairs of slices of the squared cosine, in [0, 1]; 0 when an item's slices
    are at right angles. N slices of s < N dimensions cannot all be: the least value is then
    (N/s - 1) / (N - 1) (Welch's bound). "distance": - sum over neighbouring slices of ||v_n - v_(n+1)||^2, mean over
    items, as in the authors' release; it has no lower bound, so a large weight makes the table grow without
    end.
    """
    if form in ("axes", "none") or num_slices < 2:
        return items.new_zeros(())
    slices = items.view(items.shape[0], num_slices, -1)  # (I, N, s)
    if form == "distance":
        return -(slices[:, 1:] - slices[:, :-1]).square().sum(dim=(1, 2)).mean()
    unit = F.normalize(slices, dim=2, eps=1e-8)
    # sum over ordered pairs n != m of cos^2 = ||G||_F^2 - sum of the diagonal, G = unit unit^T
    gram = unit @ unit.transpose(1, 2)  # (I, N, N)
    diagonal = gram.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    pairs = num_slices * (num_slices - 1)
    return ((gram.square().sum(dim=(1, 2)) - diagonal) / pairs).mean()


class BatchLoss:
    """Loss of a batch of users, of whatever tables it is given, and the batches of a pass. device: of the tables."""

    def __init__(
        self,
        given: UserItems,
        num_items: int,
        config: PretrainingConfig,
        device: str = "cpu",
        workers: Workers = ALONE,
    ) -> None:
        self.given, self.num_items, self.config = given, num_items, config
        self.active = np.flatnonzero(given.counts() > 0)
        self.num_batches = max(-(-len(self.active) // config.batch_size), 1)
        self._device, self._workers = device, workers
        popularity = given.popularity(num_items).astype(np.float64)
        self._user_l2, self._item_l2 = self._shares(given.counts()), self._shares(popularity)

    def _shares(self, interactions: NDArray[np.integer] | NDArray[np.floating]) -> Tensor:
        """Share of every row in the l2 penalty; they sum to 1."""
        shares = interactions.astype(np.float64) ** self.config.l2_exponent * (interactions > 0)
        return torch.from_numpy((shares / shares.sum()).astype(np.float32)).to(self._device)

    def penalty(self, users: Tensor, items: Tensor) -> Tensor:
        """The l2 penalty on tables (U, d), (I, d)."""
        squares = self._user_l2 @ users.square().sum(dim=1) + self._item_l2 @ items.square().sum(dim=1)
        return 0.5 * self.config.l2 * squares

    def add_penalty(self, users: Tensor, items: Tensor) -> Tensor:
        """The same of tables that have a gradient, to which that of the penalty is added: in place, table after table,
        as what lies in between is as large as they are.
        """
        squares = []
        with torch.no_grad():
            for shares, table in ((self._user_l2, users), (self._item_l2, items)):
                work = table.square()
                squares.append(shares @ work.sum(dim=1))
                assert table.grad is not None, "the loss is taken before its penalty"
                slope = shares * (0.5 * self.config.l2) * 2.0
                table.grad += torch.mul(table, slope[:, None], out=work)
        return 0.5 * self.config.l2 * (squares[0] + squares[1])

    def batches(self, generator: torch.Generator) -> Iterator[UserBatch]:
        """One pass over the users who gave data, in random order."""
        order = self.active[torch.randperm(len(self.active), generator=generator).numpy()]
        for users in np.array_split(order, self.num_batches):
            rows = self.given.select(users)
            counts = rows.counts()
            weights = np.repeat(counts.astype(np.float64) ** (self.config.user_weight_exponent - 1.0), counts)
            yield UserBatch(
                torch.from_numpy(users).to(self._device),
                torch.from_numpy(rows.indptr).to(self._device),
                torch.from_numpy(rows.users()).to(self._device),
                torch.from_numpy(rows.items.astype(np.int64)).to(self._device),
                torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(self._device),
            )

    def __call__(self, users: Tensor, items: Tensor, batch: UserBatch, generator: torch.Generator) -> Tensor:
        """Loss of users (B, d) of the batch against items (I, d)."""
        config = self.config
        if config.loss == "bpr":
            shape = (len(batch.items), config.num_negatives)
            negatives = torch.randint(self.num_items, shape, generator=generator).to(self._device)
            return bpr_loss(users, items, batch, negatives, config.temperature)
        return sampled_softmax_loss(
            users,
            items,
            batch,
            temperature=config.temperature,
            candidates=evenly_drawn(self.num_items, config.num_negatives, generator, self._device),
            workers=self._workers,
        )


# ---- How do embeddings spread over the user-item graph? LightGCN's propagation, and its gradient
# He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020, equations
# 3, 4 and 6: no weights and no non-linearity, so the whole stack is one symmetric linear map. Its gradient is the map
# itself; no layer's activations need to be kept.


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
