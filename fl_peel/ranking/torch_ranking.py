"""Full ranking of the devices of one user group in torch: what ``kernels.top_rows`` does, on a GPU.

Blocks of devices meet blocks of rows; there is never a users x items matrix. A score is added up column by column, so
in the same order whatever else is in the block, and rows that are equal have equal scores: a matrix product would not
promise it. Score and place in the catalogue make one whole number, so that no two are equal and ties need no care.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.blocks.ranked import RankedBlocks
from fl_peel.data.interactions import UserItems

BLOCK_ROWS = 8192
BLOCK_SCORES = 1 << 23
"""Scores at a time: 64 MB as whole numbers."""
NOTHING = -(1 << 63)
"""Below the number of any score."""


def top_rows(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: NDArray[np.float32],
    exclude: UserItems,
    n: int,
    device: torch.device,
    block_rows: int = BLOCK_ROWS,
    block_scores: int = BLOCK_SCORES,
) -> NDArray[np.int32]:
    """As :func:`fl_peel.ranking.top.top_rows`."""
    num_rows, num_devices = len(ranked.items), len(cutoffs)
    order = np.argsort(ranked.layout.row_in_catalogue[ranked.items], kind="stable")  # table rows as in the catalogue
    column = np.full(num_rows + 1, -1, np.int64)  # of each table row; the last is for rows that are not here
    column[order] = np.arange(num_rows)
    table = torch.from_numpy(ranked.table[order].T.copy()).to(device)  # (d, R)
    position = torch.from_numpy(ranked.position[order].T.copy()).to(device)  # (S, R)
    rank = torch.from_numpy(order).to(device)  # (R,)
    present = ranked.num_present(cutoffs)
    best = np.full((num_devices, n), -1, np.int32)
    width = max(1, min(block_rows, num_rows))
    height = max(1, block_scores // width)
    for first in range(0, num_devices, height):
        some = np.arange(first, min(first + height, num_devices))
        user = torch.from_numpy(np.asarray(users[some], np.float32)).to(device)
        cuts, has = (torch.from_numpy(values[some]).to(device)[:, None] for values in (cutoffs, present))
        hidden = exclude.select(some)
        who = torch.from_numpy(hidden.users()).to(device)
        what = torch.from_numpy(column[ranked.row_of_item[hidden.items]]).to(device)
        keys = torch.full((len(some), n), NOTHING, dtype=torch.int64, device=device)
        for left in range(0, num_rows, width):
            part = slice(left, min(left + width, num_rows))
            scores = _scores(user, table[:, part], position[:, part], cuts)
            found = _keys(scores, num_rows - 1 - left)
            found.masked_fill_(rank[part] >= has, NOTHING)
            inside = (what >= part.start) & (what < part.stop)
            found[who[inside], what[inside] - left] = NOTHING
            found = found.topk(min(n, found.shape[1]), dim=1).values
            keys = torch.cat([keys, found], dim=1).topk(n, dim=1).values
        places = num_rows - 1 - (keys & 0xFFFFFFFF)
        rows = torch.where(keys == NOTHING, -1, rank[places.clamp(0, max(num_rows - 1, 0))] if num_rows else -1)
        best[some] = rows.cpu().numpy()
    return best


def _scores(users: Tensor, table: Tensor, position: Tensor, cutoffs: Tensor) -> Tensor:
    """Scores (N, B) of users (N, d) and rows, as columns (d, B), from the slices whose position (S, B) is below the
    device's cutoff (N, 1).
    """
    num_slices, width = len(position), len(table) // len(position)
    total = torch.zeros((len(users), table.shape[1]), device=users.device)
    for s in range(num_slices):
        part = torch.zeros_like(total)
        for k in range(s * width, (s + 1) * width):
            part += users[:, k, None] * table[k]
        total += part if num_slices == 1 else part * (position[s] < cutoffs)
    return total


def _keys(scores: Tensor, last: int) -> Tensor:
    """Whole numbers (N, B) in the order of the scores and, where these are equal, against that of the columns, which
    are in the low 32 bits: ``last`` for the first column, one less for the next.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: minus zero is zero
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered << 32) + (last - torch.arange(scores.shape[1], device=scores.device))


__all__ = ["BLOCK_ROWS", "BLOCK_SCORES", "top_rows"]
