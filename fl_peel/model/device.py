"""A device that a saved model serves: what it holds under a byte budget, and what moves when that changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks import resizing
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.settings import Precision
from fl_peel.blocks.stored import StoredEmbedding
from fl_peel.errors import BudgetError
from fl_peel.model.delta import delta_of
from fl_peel.model.model_files import Catalogue, OwnId


class ModelSource(Protocol):
    """Who serves a device: :class:`fl_peel.model.model.Model`."""

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""

    def device(self, interactions: Iterable[OwnId], *, also_seen: Iterable[OwnId] = ()) -> Device:
        """A device joins."""

    def blocks(self, group: int, precision: Precision | None = None) -> RankedBlocks:
        """All blocks of a user group, in its order."""


@dataclass(frozen=True)
class Device:
    """A device that has joined a model. group: its user group; user: (d,) its user embedding; items: the items it
    joined with, in its order; seen: these and other items that are not recommended, ascending; both by item number."""

    source: ModelSource
    group: int
    user: NDArray[np.float32]
    items: tuple[int, ...]
    seen: tuple[int, ...]

    def embedding(self, budget_bytes: int, precision: Precision | None = None) -> Embedding:
        """Return the embedding that the device stores under a budget, never a byte above it.

        Raises:
            BudgetError: the budget does not even hold the header and the user embedding.
            ModelError: the model does not serve in this precision, or is damaged.
        """
        seen = np.array(self.seen, np.int64)
        elastic = ElasticEmbedding(self.source.blocks(self.group, precision), self.user, seen, self.group)
        return Embedding(self, elastic.at(budget_bytes), budget_bytes)

    def known_to(self, other: ModelSource) -> Device:
        """Return the same device as it joins another model, with the items that this one has too."""
        mine, theirs = self.source.catalogue, other.catalogue
        names, seen = (
            [name for name in map(mine.id_of, items) if theirs.find(name) >= 0] for items in (self.items, self.seen)
        )
        return other.device(names, also_seen=seen)


@dataclass(frozen=True)
class Embedding:
    """Stored embedding of a device: an artefact (docs/artefact.md) under a budget."""

    device: Device
    stored: StoredEmbedding
    budget_bytes: int

    def to_bytes(self) -> bytes:
        """Return the content of the artefact's file."""
        return self.stored.to_bytes()

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.to_bytes())

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """Return the n best items, best first: own ids and scores. Seen items and items without a stored block are left
        out."""
        layout = self.device.source.catalogue.layout
        best = self.stored.top_n(n, self.seen_rows)
        rows, scores = self.stored.scores()
        top_scores = scores[np.searchsorted(rows, best)]
        items = layout.catalogue[best].tolist()
        return [
            (self.device.source.catalogue.id_of(item), float(score))
            for item, score in zip(items, top_scores, strict=True)
        ]

    @property
    def seen_rows(self) -> NDArray[np.int64]:
        """Return the catalogue rows of the seen items, ascending."""
        rows = self.device.source.catalogue.layout.row_in_catalogue[list(self.device.seen)]
        return np.sort(rows.astype(np.int64))

    def shrink(self, budget_bytes: int) -> Embedding:
        """Return what remains under a smaller budget: the last blocks are dropped, without a message.

        Raises:
            BudgetError: the budget is larger, or does not even hold the header and the user embedding.
        """
        if budget_bytes > self.budget_bytes:
            raise BudgetError(f"budget {budget_bytes} B is above {self.budget_bytes} B: to hold more, grow")
        layout = self.device.source.catalogue.layout
        return Embedding(self.device, resizing.shrink(self.stored, layout, budget_bytes), budget_bytes)

    def grow(self, budget_bytes: int) -> Delta:
        """Return the delta of the user group's block list that fills a larger budget.

        Raises:
            BudgetError: the budget is smaller.
        """
        if budget_bytes < self.budget_bytes:
            raise BudgetError(f"budget {budget_bytes} B is below {self.budget_bytes} B: to hold less, shrink")
        ranked = self.device.source.blocks(self.device.group, self.stored.precision)
        layout = ranked.layout
        last = self.stored.blocks[-1:]
        behind = int(ranked.rank_of_block[last[0]]) + 1 if len(last) else 0
        table = np.zeros((layout.num_items, layout.embedding_dim), np.float32)
        table[ranked.items] = ranked.table
        sent: list[bytes] = []
        following = _recorded(resizing.listed(layout, ranked.precision, ranked.blocks[behind:], table), sent)
        seen = np.array(self.device.seen, np.int64)
        stored, read = resizing.grow(self.stored, layout, seen, budget_bytes, following)
        content = b"".join(sent)[:read]  # of a block that does not fit, its id alone
        return Delta(content, Embedding(self.device, stored, budget_bytes))

    def update(self, newer: ModelSource, budget_bytes: int | None = None) -> Delta:
        """Return the delta that turns the embedding into the one a newer model gives this device, under its budget or
        another one. Unchanged blocks are not sent, whatever their place; of blocks in which only the scale changed,
        the scales are sent.

        Raises:
            ModelError: the newer model has none of the items that the device joined with, or is damaged.
            BudgetError: as for :meth:`Device.embedding`.
        """
        device = self.device.known_to(newer)
        budget = self.budget_bytes if budget_bytes is None else budget_bytes
        after = device.embedding(budget, self.stored.precision)
        places = newer.catalogue.places_of(self.device.source.catalogue, after.stored.blocks, self.stored.blocks)
        return Delta(delta_of(self.stored, after.stored, places), after)


@dataclass(frozen=True)
class Delta:
    """Delta that a device downloads, and the embedding it then stores, equal to a fresh download byte for byte."""

    content: bytes
    embedding: Embedding

    @property
    def num_bytes(self) -> int:
        """Size of the delta in bytes."""
        return len(self.content)


def _recorded(following: Iterable[bytes], sent: list[bytes]) -> Iterator[bytes]:
    for one in following:
        sent.append(one)
        yield one
