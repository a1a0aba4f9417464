"""What a scenario asks of secure aggregation, as both sides work it out: widths, bytes, who vanishes when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fl_peel.config import Scenario
from fl_peel.privacy.plan import Part, released, shares_of
from fl_peel.privacy.releases import shapes
from fl_peel.randomness import device_uniforms
from fl_peel.secure.device import ID_BYTES, INDEX_BYTES, SEALED_BYTES
from fl_peel.secure.graph import answers_needed, num_neighbours
from fl_peel.secure.keys import KEY_BYTES
from fl_peel.secure.sharing import SHARE_BYTES
from fl_peel.secure.vector import CHECK, Bits, Field, VectorLayout, counter_fields, sum_bits, update_fields

EXCHANGES = 4
"""Times a device answers the server in a round: keys, shares, vector, opened shares."""


class Vanishes(IntEnum):
    """Before which answer a device is lost that a study makes drop out."""

    NEVER = 0
    SHARES = 1
    VECTOR = 2
    OPENING = 3


@dataclass(frozen=True)
class DeviceBytes:
    """What one device moves in a round besides blocks: to it, from it, and its vector alone (part of the latter)."""

    download: int
    upload: int
    vector: int

    @staticmethod
    def of(neighbours: int, vector: int) -> DeviceBytes:
        """Down: number and two keys, then number and sealed shares of every neighbour, and what became of each. Up: two
        keys, sealed shares, the vector, and a number and a share for each neighbour.
        """
        down = neighbours * (ID_BYTES + 2 * KEY_BYTES + ID_BYTES + SEALED_BYTES + ID_BYTES + 1)
        up = 2 * KEY_BYTES + neighbours * (ID_BYTES + SEALED_BYTES + ID_BYTES + INDEX_BYTES + SHARE_BYTES)
        return DeviceBytes(down, up + vector, vector)


def needed_of(scenario: Scenario, num_devices: int) -> tuple[int, int]:
    """Of a user group's devices: neighbours of each that must answer, and devices that must send their vector."""
    part = scenario.secure_aggregation
    neighbours = num_neighbours(num_devices, part.neighbours)
    return answers_needed(neighbours, part.threshold), answers_needed(num_devices, part.threshold)


def update_bits(scenario: Scenario, num_devices: int) -> Bits:
    """Width of the words of block updates: see ``secure_aggregation.word_bits``."""
    privacy = scenario.privacy
    honest = not scenario.poisoning.active  # who lies need not keep to a bound
    bounded = honest and not privacy.noised and privacy.clipping.kind in ("flat", "per-block")
    norm = privacy.clipping.norm if bounded else math.inf  # noise of a device's own has no bound
    return sum_bits(scenario.secure_aggregation.word_bits, num_devices, norm)


def withholds(scenario: Scenario) -> bool:
    """Whether devices say nothing about losses, metrics, times and bytes: ``privacy.counters``."""
    return scenario.privacy.sums_only and scenario.privacy.counters == "withheld"


def group_fields(scenario: Scenario, *, num_devices: int, rows: int, blocks: int, signals: bool) -> tuple[Field, ...]:
    """What devices say of a user group's blocks, of which they were sent ``blocks`` in ``rows`` rows."""
    bits, dim = update_bits(scenario, num_devices), scenario.pretraining.embedding_dim
    if not scenario.privacy.sums_only:
        slices = scenario.blocks.num_slices
        return update_fields(rows=rows, slices=slices, dim=dim, blocks=blocks, signals=signals, update_bits=bits)
    parts: tuple[Part, ...] = ("updates", "signals") if signals else ("updates",)
    if scenario.privacy.noised:
        parts = released(shares_of(scenario), signals=signals)
    sizes = shapes(rows, dim, blocks)
    return tuple(Field(part, sizes[part], bits if part == "updates" else 64) for part in parts)


def layout_of(
    scenario: Scenario,
    *,
    num_devices: int,
    rows: int,
    blocks: int,
    classes: int,
    columns: tuple[int, int],
    signals: bool,
) -> VectorLayout:
    """The vector of a user group's devices in a round; columns: of a reply's ``classes`` and ``clock``."""
    fields = group_fields(scenario, num_devices=num_devices, rows=rows, blocks=blocks, signals=signals)
    counters = () if withholds(scenario) else counter_fields(classes=classes, columns=columns)
    return VectorLayout((*fields, *counters, Field(CHECK, (1,), 64)), num_devices)


def vanishing(scenario: Scenario, server_round: int, devices: NDArray[np.int64]) -> NDArray[np.int64]:
    """When each device (N,) is lost in a round, as :class:`Vanishes`: by ``dropout_share``, at any stage alike."""
    share = scenario.secure_aggregation.dropout_share
    lost = device_uniforms(scenario.seed, "secure-dropout", server_round, devices=devices) < share
    stage = device_uniforms(scenario.seed, "secure-dropout-stage", server_round, devices=devices)
    return np.where(lost, 1 + np.floor(3 * stage).astype(np.int64), int(Vanishes.NEVER))


__all__ = [
    "EXCHANGES",
    "DeviceBytes",
    "Vanishes",
    "group_fields",
    "layout_of",
    "needed_of",
    "update_bits",
    "vanishing",
    "withholds",
]
