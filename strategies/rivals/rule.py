"""RULE-style search: one global elastic table, and for every budget an evolutionary search for the blocks to keep.

Chen et al., "Learning Elastic Embeddings for Customizing On-Device Recommenders", KDD 2021 (arXiv 2106.02223): blocks
are item groups x slices of one table for everybody; a subset's fitness is its recommendation quality on validation,
predicted by a learned estimator so that few subsets need to be ranked with. The search is done anew for every budget,
and its time is the time of that row. Item groups here are popularity tiers, small enough that the least budget holds
some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_peel.blocks.layout import BlockLayout, row_bytes
from fl_peel.blocks.stored import overhead_bytes, user_bytes
from fl_peel.pretraining.clusters import item_groups
from fl_peel.randomness import rng_for, seed_for
from fl_peel.scenario.settings import Precision
from strategies.rivals.base import (
    FloatArray,
    Material,
    Option,
    Request,
    Rival,
    block_option,
    decoded_blocks,
    quality,
    ranked_blocks,
)

Genes = NDArray[np.bool_]


@dataclass(frozen=True)
class SearchSettings:
    """population: subsets in a generation; generations; ranked: subsets of each that are really ranked with (the
    estimator's favourites); mutation: share of the blocks that a child exchanges; sample: devices ranked for.
    """

    population: int = 48
    generations: int = 10
    ranked: int = 6
    mutation: float = 0.05
    sample: int = 1000


@dataclass(frozen=True)
class Rule(Rival):
    """One global elastic table, one search per budget. num_slices: the least divisor of d from this on."""

    name: str = "rule"
    num_slices: int = 4
    search: SearchSettings = SearchSettings()

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        rng = rng_for(material.seed, "rule-devices")
        wanting = np.flatnonzero(material.splits.validation.counts() > 0)
        sample = material.select_devices(np.sort(rng.permutation(wanting)[: self.search.sample]))
        for request in requests:
            start = time.perf_counter()
            layout = self.layout(material, request, requests)
            if layout is None:
                continue
            decoded = decoded_blocks(layout, request.precision, material.pretrained.items)
            starts = starting_orders(layout, material)

            def served(
                genes: Genes,
                who: Material = sample,
                request: Request = request,
                layout: BlockLayout = layout,
                decoded: FloatArray = decoded,
                order: NDArray[np.int64] = starts[0],
            ) -> Option:
                ranked = ranked_blocks(layout, request.precision, order[genes[order]], decoded)
                return block_option(request, ranked, who, 0.0)

            def fitness(genes: Genes, served: Callable[[Genes], Option] = served) -> float:
                return quality(served(genes), sample, "validation")["recall@20"]

            costs = Costs.from_layout(layout, request.precision)
            room = request.budget_bytes - overhead_bytes(layout.slice_dim)
            best_genes, ranked = evolve(costs, room, starts, fitness, self.search, seed_for(material.seed, "rule"))
            best = served(best_genes, material)
            yield Option(
                request,
                best.ranked,
                best.users,
                best.stored,
                best.validation_cutoffs,
                best.test_cutoffs,
                time.perf_counter() - start,
                f"{layout.num_blocks} blocks, {ranked} subsets ranked",
                max(ranked, 1),
            )

    def layout(self, material: Material, request: Request, requests: Sequence[Request]) -> BlockLayout | None:
        """Popularity tiers x slices, the same for all budgets of a precision that can hold a block.

        The least of these budgets holds eight blocks, or as many as one item a tier allows.
        """
        dim = material.config.embedding_dim
        num_slices = next(n for n in range(min(self.num_slices, dim), dim + 1) if dim % n == 0)
        cost = row_bytes(dim // num_slices, request.precision)
        ids = 3 * (2 if material.num_items * num_slices < 1 << 16 else 4)
        least_user = overhead_bytes(dim // num_slices)
        rooms = [r.budget_bytes - least_user for r in requests if r.precision == request.precision]
        least = min((room for room in rooms if room >= cost + ids), default=0)
        if not least or request.budget_bytes - least_user < least:
            return None
        rows = max(1, (least // 8 - ids) // cost)
        count = max(1, -(-material.num_items // rows))
        kind = item_groups("popularity", material.num_items, count=count, popularity=material.popularity)
        return BlockLayout(kind, dim, num_slices)


def starting_orders(layout: BlockLayout, material: Material) -> list[NDArray[np.int64]]:
    """Orders of blocks (B,) by the mean popularity of their items: all slices, or the strongest 1, 2, ... first."""
    sizes = layout.group_sizes
    popularity = np.bincount(layout.item_group, weights=material.popularity, minlength=len(sizes)) / sizes
    slices = material.pretrained.items.reshape(-1, layout.num_slices, layout.slice_dim)
    energy = (slices.astype(np.float64) ** 2).sum(axis=(0, 2))
    strength = np.argsort(np.argsort(-energy, kind="stable"), kind="stable")  # place of each slice, strongest 0
    by_slice, by_group = np.tile(strength, len(sizes)), np.repeat(-popularity, layout.num_slices)
    narrow = [
        np.lexsort((by_slice, by_group, by_slice >= most)).astype(np.int64) for most in range(1, layout.num_slices)
    ]
    return [np.lexsort((by_slice, by_group)).astype(np.int64), *narrow]


@dataclass(frozen=True)
class Costs:
    """Bytes of subsets of blocks. blocks: (B,) of each; slice_bytes: of each slice of the user embedding behind the
    first one, up to the last slice that any block of the subset has.
    """

    blocks: NDArray[np.int64]
    num_slices: int = 1
    slice_bytes: int = 0

    @staticmethod
    def from_layout(layout: BlockLayout, precision: Precision) -> Costs:
        return Costs(layout.block_bytes(precision), layout.num_slices, user_bytes(layout.slice_dim))

    def fitted(self, order: NDArray[np.int64], room: int) -> Genes:
        """Return the blocks first in order that fit; one too large is passed over for a smaller one."""
        genes = np.zeros(len(order), np.bool_)
        widest = np.maximum.accumulate(order % self.num_slices)
        spent = np.cumsum(self.blocks[order]) + widest * self.slice_bytes
        first = int(np.searchsorted(spent, room, side="right"))
        genes[order[:first]] = True
        width = int(widest[first - 1]) if first else 0
        room -= int(spent[first - 1]) if first else 0
        least = self.blocks.min()
        for block in order[first:].tolist():
            if room < least:
                break
            wider = max(width, block % self.num_slices)
            cost = int(self.blocks[block]) + (wider - width) * self.slice_bytes
            if cost <= room:
                genes[block] = True
                room, width = room - cost, wider
        return genes


def evolve(
    costs: Costs,
    room: int,
    starts: Sequence[NDArray[np.int64]],
    fitness: Callable[[Genes], float],
    search: SearchSettings,
    seed: int,
) -> tuple[Genes, int]:
    """The fittest subset found, (B,) bool, of at most ``room`` bytes, and how many were ranked with.

    It starts from the blocks first in each order of ``starts`` (B,), from variations of the first and from random
    ones. In each generation the estimator is fitted to all fitnesses known, parents are drawn by rank, children take
    each block from either parent, mutate and are filled up; the estimator's favourites among them are ranked with.
    """
    everything = costs.fitted(starts[0], room)
    if everything.all():
        return everything, 0
    rng = rng_for(seed, "evolve")
    known: dict[bytes, tuple[Genes, float]] = {}

    def learn(genes: Genes) -> None:
        key = np.packbits(genes).tobytes()
        if key not in known:
            known[key] = (genes, fitness(genes))

    order = starts[0]
    place = np.empty(len(order), np.float64)
    place[order] = np.arange(len(order))
    for start in starts:
        learn(costs.fitted(start, room))
    for number in range(search.population // 2):
        blur = len(order) * (2.0 if number % 4 == 3 else 0.02 * (1 + number))
        learn(costs.fitted(np.argsort(place + rng.normal(0, blur, len(order)), kind="stable"), room))
    for generation in range(search.generations):
        pool = sorted(known.values(), key=lambda pair: -pair[1])
        estimate = estimator([genes for genes, _ in pool], [value for _, value in pool], seed + generation)
        parents = pool[: max(4, search.population // 4)]
        children = [_child(parents, order, costs, room, search, rng) for _ in range(search.population)]
        guesses = estimate(np.stack(children))
        for i in np.argsort(-guesses, kind="stable")[: search.ranked]:
            learn(children[i])
    best = max(known.values(), key=lambda pair: pair[1])
    return best[0], len(known)


def _child(
    parents: Sequence[tuple[Genes, float]],
    order: NDArray[np.int64],
    costs: Costs,
    room: int,
    search: SearchSettings,
    rng: np.random.Generator,
) -> Genes:
    size = len(order)
    first, second = (parents[int(len(parents) * rng.random() ** 2)][0] for _ in range(2))
    genes = np.where(rng.random(size) < 0.5, first, second)
    # blocks of the child first, then others by popularity; mutation moves some of either kind to a random place
    key = np.empty(size)
    key[order] = np.arange(size)
    key = np.where(genes, key, key + size)
    moved = rng.random(size) < search.mutation
    key[moved] = rng.random(int(moved.sum())) * 2 * size
    key += rng.normal(0, 0.02 * size, size) * (rng.random() < 0.5)
    return costs.fitted(np.argsort(key, kind="stable"), room)


def estimator(
    subsets: Sequence[Genes], values: Sequence[float], seed: int
) -> Callable[[NDArray[np.bool_]], FloatArray]:
    """A small network from subsets (M, B) to their fitness, fitted to those known; guesses are standardized."""
    inputs = torch.from_numpy(np.stack(subsets).astype(np.float32))
    mean = inputs.mean(dim=0)
    targets = torch.tensor(values, dtype=torch.float32)
    targets = (targets - targets.mean()) / targets.std(correction=0).clamp_min(1e-9)
    generator = torch.Generator().manual_seed(seed % (1 << 62))
    hidden = 16
    network = nn.Sequential(nn.Linear(inputs.shape[1], hidden), nn.Tanh(), nn.Linear(hidden, 1))
    with torch.no_grad():
        for layer in (network[0], network[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.weight.shape[1] ** 0.5)
            layer.bias.zero_()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(inputs - mean)[:, 0] - targets).square().mean()
        loss.backward()
        optimizer.step()

    def guess(genes: NDArray[np.bool_]) -> FloatArray:
        with torch.no_grad():
            answer: FloatArray = network(torch.from_numpy(genes.astype(np.float32)) - mean)[:, 0].numpy()
        return answer

    return guess
