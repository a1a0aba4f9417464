"""What does pretraining minimize? BPR, sampled softmax, and the diversity of an item's slices.

Both ranking losses take whole users: a batch is a set of users with all of their collected items. The
softmax's denominator is then computed once per user and not once per interaction, which on a CPU makes even
the softmax over *all* items cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DiversityForm = Literal["none", "cosine", "distance"]

_CHUNK_LOGITS = 1 << 21  # logits held at once: 8 MB of float32, so that they stay in the processor's cache


@dataclass(frozen=True)
class UserBatch:
    """Users of one step with all of their positives.

    users: (B,) user numbers; rows: (P,) place in ``users`` of every positive, ascending; items: (P,) item
    numbers;
    weights: (P,) weight of every positive in the loss, sums to 1.
    """

    users: Tensor
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


class _SampledSoftmax(torch.autograd.Function):
    """Value and gradient in one pass over the logits, chunk by chunk, into one buffer."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        batch: UserBatch,
        candidates: Tensor | None,
        item_bias: Tensor,
        temperature: float,
    ) -> Tensor:
        table = items if candidates is None else items[candidates]  # (M, d)
        bias = item_bias if candidates is None else item_bias[candidates]  # (M,)
        scaled = users / temperature  # (B, d)
        gathered_users, gathered_items = scaled[batch.rows], items[batch.items]  # (P, d)
        positive = (gathered_users * gathered_items).sum(dim=1) + item_bias[batch.items]  # (P,)
        chunk = max(1, _CHUNK_LOGITS // table.shape[0])
        num_users = users.shape[0]
        bounds = torch.searchsorted(batch.rows, torch.arange(0, num_users + chunk, chunk, device=users.device))
        columns = table.T.contiguous()  # (d, M)
        user_gradient = torch.empty_like(users)
        table_gradient = torch.zeros_like(table)
        positive_pull = torch.empty_like(positive)  # (P,)
        loss = torch.zeros((), dtype=torch.float64, device=users.device)
        buffer = torch.empty(min(chunk, num_users), table.shape[0], dtype=users.dtype, device=users.device)
        for number, start in enumerate(range(0, num_users, chunk)):
            stop = min(start + chunk, num_users)
            logits = torch.mm(scaled[start:stop], columns, out=buffer[: stop - start])  # (c, M)
            logits += bias
            highest = logits.amax(dim=1, keepdim=True)
            logits.sub_(highest).exp_()
            total = logits.sum(dim=1, keepdim=True)  # (c, 1)
            log_total = (total.log() + highest)[:, 0]
            positives = slice(int(bounds[number]), int(bounds[number + 1]))
            rows = batch.rows[positives] - start
            weights = batch.weights[positives]
            margin = log_total[rows] - positive[positives]
            if candidates is None:
                losses, pull = margin, weights
            else:  # the positive joins its own denominator
                losses, pull = F.softplus(margin), weights * torch.sigmoid(margin)
            loss += (losses * weights).sum(dtype=torch.float64)
            positive_pull[positives] = pull
            pushes = torch.zeros(stop - start, dtype=users.dtype, device=users.device).index_add_(0, rows, pull)
            logits *= (pushes / total[:, 0])[:, None]
            torch.mm(logits, table, out=user_gradient[start:stop])
            table_gradient.addmm_(logits.T, scaled[start:stop])
        user_gradient.index_add_(0, batch.rows, gathered_items * -positive_pull[:, None])
        user_gradient /= temperature
        if candidates is None:
            item_gradient = table_gradient
        else:
            item_gradient = torch.zeros_like(items).index_add_(0, candidates, table_gradient)
        item_gradient.index_add_(0, batch.items, gathered_users * -positive_pull[:, None])
        ctx.save_for_backward(user_gradient, item_gradient)
        return loss.to(users.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        user_gradient, item_gradient = ctx.saved_tensors
        return gradients[0] * user_gradient, gradients[0] * item_gradient, None, None, None, None


def sampled_softmax_loss(
    users: Tensor,
    items: Tensor,
    batch: UserBatch,
    *,
    temperature: float,
    candidates: Tensor | None = None,
    item_bias: Tensor | None = None,
) -> Tensor:
    """Mean of -log softmax of the positive's logit, logit = user . item / temperature + item_bias.

    users: (B, d) rows of the batch; items: (I, d); candidates: (M,) item numbers shared by the whole batch as
    negatives, None for all items; item_bias: (I,) known part of the logits that serving leaves out, such as
    a share of the log popularity (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021) or
    the correction of unevenly drawn candidates (Bengio and Senecal, IEEE TNN 2008).
    """
    bias = torch.zeros(items.shape[0], dtype=items.dtype, device=items.device) if item_bias is None else item_bias
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        users, items, batch, candidates, bias, temperature
    )
    return loss


def slice_diversity(items: Tensor, num_slices: int, form: DiversityForm) -> Tensor:
    """Penalty that keeps the slices of an item from saying the same; items (I, d), d divisible by num_slices.

    "cosine": mean over items and pairs of slices of the squared cosine, in [0, 1]; 0 when an item's slices
    are at right angles. N slices of s < N dimensions cannot all be: the least value is then (N/s - 1) / (N
    - 1) (Welch's bound). "distance": - sum over neighbouring slices of ||v_n - v_(n+1)||^2, mean over
    items, as in the authors' release; it has no lower bound, so a large weight makes the table grow without
    end.
    """
    if form == "none" or num_slices < 2:
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
