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

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems

BLOCK_ROWS = 8192
BLOCK_SCORES = 1 << 23
"""Scores at a time: 64 MB as whole numbers."""
NOTHING = -(1 << 63)
"""Below the number of any score; its low 32 bits are 0."""


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
    order = np.argsort(ranked.layout.row_in_catalogue[ranked.items])  # table rows as in the catalogue
    column = np.append(np.argsort(order), -1)  # of each table row; the last is for rows that are not here
    table = torch.from_numpy(ranked.table[order].T.copy()).to(device)  # (d, R)
    position = torch.from_numpy(ranked.position[order].T.copy()).to(device)  # (S, R)
    rank = torch.from_numpy(np.append(order, -1)).to(device)  # (R + 1,); the last is for no row
    present = ranked.num_present(cutoffs)
    best = np.empty((num_devices, n), np.int32)
    width = max(1, min(block_rows, num_rows))
    height = max(1, block_scores // width)
    for first in range(0, num_devices, height):
        some = np.arange(num_devices)[first : first + height]
        user = torch.from_numpy(users[some]).to(device)
        cuts, has = (torch.from_numpy(values[some]).to(device)[:, None] for values in (cutoffs, present))
        hidden = exclude.select(some)
        who = torch.from_numpy(hidden.users()).to(device)
        what = torch.from_numpy(column[ranked.row_of_item[hidden.items]]).to(device)
        keys = torch.full((len(some), n), NOTHING, device=device)
        for left in range(0, num_rows, width):
            part = slice(left, min(left + width, num_rows))
            scores = _scores(user, table[:, part], position[:, part], cuts)
            candidates = _keys(scores, num_rows - left)
            candidates.masked_fill_(rank[part] >= has, NOTHING)
            inside = (what >= part.start) & (what < part.stop)
            candidates[who[inside], what[inside] - left] = NOTHING
            candidates = candidates.topk(min(n, candidates.shape[1])).values
            keys = torch.cat([keys, candidates], dim=1).topk(n).values
        best[some] = rank[num_rows - (keys & 0xFFFFFFFF)].cpu().numpy()
    return best


def _scores(users: Tensor, table: Tensor, position: Tensor, cutoffs: Tensor) -> Tensor:
    """Scores (N, B) of users (N, d) and rows, as columns (d, B), from the slices whose position (S, B) is below the
    device's cutoff (N, 1).
    """
    num_slices, width = len(position), len(table) // len(position)
    total = users.new_zeros((len(users), table.shape[1]))
    for s in range(num_slices):
        part = torch.zeros_like(total)
        for k in range(s * width, (s + 1) * width):
            part += users[:, k, None] * table[k]
        total += part if num_slices == 1 else part * (position[s] < cutoffs)
    return total


def _keys(scores: Tensor, first: int) -> Tensor:
    """Whole numbers (N, B) in the order of the scores and, where these are equal, against that of the columns, which
    are in the low 32 bits: ``first`` for the first column, one less for the next, never 0.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: minus zero is zero
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return (ordered << 32) + (first - torch.arange(scores.shape[1], device=scores.device))
