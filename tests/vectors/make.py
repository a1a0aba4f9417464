"""Write the test vectors: ``python -m tests.vectors.make``. The same files each time, whatever the versions of NumPy.

NAME.peel is an artefact, NAME.json what is in it; refused.json has files that every reader refuses, and why.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fl_peel.blocks.layout import BlockLayout, dequantize
from fl_peel.blocks.ranked_blocks import ranking
from fl_peel.blocks.resizing import grow, listed, shrink
from fl_peel.blocks.stored import HEADER_BYTES, StoredEmbedding, overhead_bytes
from fl_peel.errors import ArtifactError, BudgetError
from fl_peel.scenario.settings import Precision

FOLDER = Path(__file__).parent
REFUSED = "refused.json"


@dataclass(frozen=True)
class Case:
    """groups: item group of each item; order: of blocks, the user group's list; kept: how many the file has; seen:
    items that the device knows.
    """

    name: str
    precision: Precision
    groups: list[int]
    columns: int
    slices: int
    order: list[int] | None = None
    kept: int | None = None
    seen: tuple[int, ...] = ()
    user_group: int = 0
    numbers: Literal["scattered", "ones", "cancelling", "largest"] = "scattered"
    whole_user: bool = False
    """Whether the user embedding is stored whole, as it was before version 3."""

    @property
    def layout(self) -> BlockLayout:
        """How its table is cut."""
        return BlockLayout(np.array(self.groups, np.int32), self.columns, self.slices)


UNEQUAL = [1, 0, 1, 2, 0, 1, 1, 3]
CASES = (
    Case("single-fp32", "fp32", list(range(5)), 4, 2, kept=7),
    Case("single-fp16", "fp16", list(range(6)), 3, 1, seen=(2,), kept=4, user_group=65_536),
    Case("single-int8", "int8", list(range(9)), 8, 4, seen=(0, 5), kept=20, user_group=7),
    Case("single-int4", "int4", list(range(9)), 6, 2, seen=(3,), kept=11, user_group=(1 << 32) - 1),
    Case("groups-fp32", "fp32", UNEQUAL, 2, 2, kept=6),
    Case("groups-fp16", "fp16", UNEQUAL, 3, 3, seen=(1, 4, 0), kept=8, user_group=2),
    Case("groups-int8", "int8", UNEQUAL, 6, 3, seen=(3, 2), kept=9, user_group=12),
    Case("groups-int4", "int4", UNEQUAL, 9, 3, seen=(7, 1), kept=5),
    Case("one-column-int4", "int4", list(range(4)), 4, 4, kept=13),
    Case("ties-int8", "int8", list(range(7)), 2, 1, numbers="ones"),
    Case("order-of-sums", "fp32", list(range(3)), 36, 3, numbers="cancelling"),
    Case("no-block", "int8", UNEQUAL, 6, 3, kept=0),
    Case("cut-int4", "int4", list(range(9)), 8, 4, order=[8, 4, 9, 0, 28, 1, 2, 34], kept=5, seen=(2,), user_group=3),
    Case("cut-groups-fp16", "fp16", UNEQUAL, 6, 3, order=[9, 6, 7, 3, 8], kept=3),
    Case("whole-int8", "int8", list(range(9)), 8, 4, order=[8, 4, 9, 0, 28, 1, 2, 34], kept=5, whole_user=True),
    Case("one-item", "fp32", [0], 1, 1, numbers="largest"),
    Case("wide-ids-int8", "int8", list(range(70_000)), 4, 2, order=[139_999, 3, 65_536, 2, 140], kept=3),
    Case("wide-ids-groups", "int4", [i % 300 for i in range(310)], 219, 219, order=[65_699, 0, 219, 1_000, 65_698]),
)


def table_of(case: Case) -> np.ndarray:
    """(I, d) float32: halves of small integers, tenths and tiny numbers, without a random generator."""
    rows, columns = np.indices((len(case.groups), case.columns))
    if case.numbers == "ones":
        return np.ones(rows.shape, np.float32)
    if case.numbers == "largest":
        return np.full(rows.shape, np.finfo(np.float32).max)
    if case.numbers == "cancelling":  # what a double loses on the way says in which order it was added up
        numbers = np.zeros(rows.shape)
        numbers[0, :4] = 2.0**60, 5, -(2.0**60), 7  # within a slice
        numbers[1, [0, 12, 24]] = 2.0**60, 5, -(2.0**60)  # slice by slice
        numbers[2, [0, 12, 25]] = 5, 2.0**60, -(2.0**60)
        return numbers.astype(np.float32)
    numbers = (rows * 7919 + columns * 104_729 + 13) % 257 - 128
    return (numbers / np.array([2.0, 10.0, 3000.0])[(rows + columns) % 3]).astype(np.float32)


def user_of(case: Case) -> np.ndarray:
    """(d,) float32, of both signs, one of them too small for a normal fp16."""
    if case.numbers == "cancelling":
        return np.ones(case.columns, np.float32)
    numbers = ((np.arange(case.columns) * 37 + 5) % 23 - 11) / 8
    numbers[-1] = 3e-6 if case.columns > 2 else numbers[-1]
    return numbers.astype(np.float32)


def list_of(case: Case) -> np.ndarray:
    """The user group's list: all blocks, scattered, or those the case names."""
    if case.order is not None:
        return np.array(case.order)
    blocks = np.arange(case.layout.num_blocks)
    return ranking((blocks * 7 + 3) % 11 + blocks / 100)


def needed(case: Case) -> np.ndarray:
    """The list without the blocks all of whose items the device knows."""
    layout = case.layout
    known = np.bincount(layout.item_group[list(case.seen)], minlength=layout.num_item_groups) == layout.group_sizes
    order = list_of(case)
    return order[~known[order // layout.num_slices]]


def stored_of(case: Case) -> StoredEmbedding:
    """What the file of a case holds."""
    blocks, user = needed(case)[: case.kept], user_of(case)
    stored = StoredEmbedding.build(case.layout, case.precision, user, blocks, table_of(case), case.user_group)
    return replace(stored, user=user.astype(np.float16)) if case.whole_user else stored


def as_numbers(values: np.ndarray) -> Any:
    """As JSON has them: integers, or doubles to their last digit."""
    return values.astype(np.float64).tolist() if values.dtype.kind == "f" else values.tolist()


def described(stored: StoredEmbedding) -> dict[str, Any]:
    """The header's fields, and every code and scale; codes as the numbers that they stand for."""
    width = stored.embedding_dim // stored.num_slices
    codes = stored.codes
    if stored.precision == "int4":
        codes = dequantize(codes, np.ones(len(codes), np.float16), "int4", width).astype(np.int8)
    return {
        "precision": stored.precision,
        "id_numbers": 1 if stored.single else 3,
        "items": stored.num_items,
        "item_groups": stored.num_item_groups,
        "columns": stored.embedding_dim,
        "slices": stored.num_slices,
        "user_group": stored.user_group,
        "catalogue": stored.catalogue.hex(),
        "user": as_numbers(stored.user),
        "blocks": as_numbers(stored.blocks),
        "first_rows": as_numbers(stored.starts),
        "row_counts": as_numbers(stored.counts),
        "scales": as_numbers(stored.scales),
        "codes": as_numbers(codes),
    }


def expected(case: Case) -> dict[str, Any]:
    """All that a reader must find in the file of a case, and make of it."""
    stored, layout = stored_of(case), case.layout
    rows, scores = stored.scores()
    seen = layout.row_in_catalogue[list(case.seen)]
    return {
        "bytes": len(stored.to_bytes()),
        **described(stored),
        "groups": case.groups if len(case.groups) < 1000 else None,
        "seen": list(case.seen),
        "seen_rows": as_numbers(seen),
        "scores": {"rows": as_numbers(rows), "scores": as_numbers(scores)},
        "top": [
            {"n": n, "seen_rows": as_numbers(known), "rows": as_numbers(stored.top_n(n, known))}
            for n, known in ((1, seen[:0]), (3, seen), (100, seen))
        ],
        "shrunk": list(_shrunk(stored, layout)),
        "grown": list(_grown(case, stored)),
    }


def _shrunk(stored: StoredEmbedding, layout: BlockLayout) -> Iterator[dict[str, Any]]:
    """What is left under budgets from one that holds nothing to one that holds all."""
    least, most = overhead_bytes(layout.slice_dim), len(stored.to_bytes())
    for budget in sorted({least - 1, least, (least + most) // 2, most - 1, most, 2 * most}):
        try:
            yield {"budget_bytes": budget, "hex": shrink(stored, layout, budget).to_bytes().hex()}
        except BudgetError as error:
            yield {"budget_bytes": budget, "refused": str(error)}


def _grown(case: Case, stored: StoredEmbedding) -> Iterator[dict[str, Any]]:
    """What a device makes of the list from behind its last block, and how much of it it reads."""
    layout, order = case.layout, list_of(case)
    after = int(np.flatnonzero(order == stored.blocks[-1])[0]) + 1 if len(stored.blocks) else 0
    following = list(listed(layout, case.precision, order[after:], table_of(case)))
    most = len(stored.to_bytes()) + sum(map(len, following))
    for budget in sorted({len(stored.to_bytes()), (len(stored.to_bytes()) + most) // 2, most}):
        grown, read = grow(stored, layout, np.array(case.seen, np.int64), budget, following, user_of(case))
        yield {
            "budget_bytes": budget,
            "user": user_of(case).astype("<f2").tobytes().hex(),
            "following": [block.hex() for block in following],
            "read_bytes": read,
            "hex": grown.to_bytes().hex(),
        }


# ---------------------------------------------------------------- what is refused


def resealed(data: bytes, *changes: tuple[int, bytes], cut: int | None = None) -> bytes:
    """The file with other bytes at some places, or shortened, and a checksum that fits."""
    changed = bytearray(data[:cut])
    for place, content in changes:
        changed[place : place + len(content)] = content
    changed[40:44] = struct.pack("<I", zlib.crc32(changed[:40] + changed[44:]))
    return bytes(changed)


def damaged() -> Iterator[tuple[str, bytes]]:
    """Files that no reader takes, and what each of them is."""
    made = {case.name: stored_of(case).to_bytes() for case in CASES}
    single, groups, floats = made["single-int8"], made["groups-int8"], made["groups-fp16"]
    ids, group_ids = HEADER_BYTES + 2 * 8, HEADER_BYTES + 2 * 6
    huge = b"\xff\xff\xff\xff"
    yield "nothing", b""
    yield "shorter than a header", groups[:43]
    yield "another magic", b"PEER" + groups[4:]
    yield "version 1", b"PEEL\x01" + groups[5:]
    yield "version 4", resealed(groups, (4, b"\x04"))
    yield "version 3 with the whole user embedding", resealed(groups, (4, b"\x03"))
    cut = made["cut-int4"]
    yield "version 2 with a part of the user embedding", resealed(cut, (4, b"\x02"))
    yield "half a column of the user embedding", resealed(cut[:46] + cut[47:])
    yield "a column of the user embedding too few", resealed(cut[:46] + cut[48:])
    yield "a column of the user embedding too many", resealed(cut[:46] + cut[44:46] + cut[46:])
    yield "no user embedding", resealed(cut[:44] + cut[48:])
    yield "a bit flipped", groups[:50] + bytes([groups[50] ^ 16]) + groups[51:]
    yield "cut off", groups[:-1]
    yield "a byte more", groups + b"\x00"
    yield "the header alone", resealed(groups, cut=44)
    yield "cut off, resealed", resealed(groups, cut=len(groups) - 2)
    yield "a byte more, resealed", resealed(groups + b"\x00")
    yield "precision 4", resealed(groups, (5, b"\x04"))
    yield "another precision", resealed(groups, (5, b"\x00"))
    yield "two numbers an id", resealed(groups, (6, b"\x02"))
    yield "ids of four bytes where two do", resealed(groups, (7, b"\x04"))
    yield "no items", resealed(groups, (8, b"\x00\x00\x00\x00"))
    yield "no item groups", resealed(groups, (12, b"\x00\x00\x00\x00"))
    yield "no columns", resealed(groups, (16, b"\x00\x00"))
    yield "no slices", resealed(groups, (18, b"\x00\x00"))
    yield "slices that do not divide the columns", resealed(groups, (18, b"\x04\x00"))
    yield "single items in fewer groups", resealed(single, (12, b"\x08\x00\x00\x00"))
    yield "billions of blocks", resealed(groups, (20, huge))
    yield "billions of row pieces", resealed(groups, (24, huge))
    yield "billions of everything", resealed(single, (8, huge * 2), (20, huge * 2))
    yield "billions of items", resealed(groups, (8, huge))
    yield "a user embedding that is not finite", resealed(groups, (44, b"\x00\x7c"))
    yield "a scale that is not a number", resealed(single, (ids + 2 * 20, b"\x01\xfe"))
    yield "a code that is not finite", resealed(floats, (len(floats) - 2, b"\x00\xfc"))
    yield "a block beyond the catalogue", resealed(single, (ids, b"\x24\x00"))
    yield "a group's block beyond the catalogue", resealed(groups, (group_ids, b"\x0c\x00"))
    yield "rows beyond the catalogue", resealed(groups, (group_ids + 2, b"\x08\x00"))
    yield "a block twice", resealed(single, (ids, single[ids + 2 : ids + 4]))
    yield "a group's block twice", resealed(groups, (group_ids, groups[group_ids + 6 : group_ids + 8]))
    yield "a block without rows", resealed(groups, (group_ids + 4, b"\x00\x00"))
    yield "row pieces that do not add up", resealed(groups, (group_ids + 4, bytes([groups[group_ids + 4] ^ 3, 0])))
    yield "rows of two groups overlap", _overlapping()


def _overlapping() -> bytes:
    """Two blocks of one row each, of different groups, in the same slice, that claim the same row."""
    layout = BlockLayout(np.array([0, 1, 1], np.int32), 2, 1)
    table = np.ones((3, 2), np.float32)
    data = StoredEmbedding.build(layout, "int8", np.ones(2, np.float32), np.array([0, 1]), table).to_bytes()
    return resealed(data, (HEADER_BYTES + 4 + 6 + 2, b"\x00\x00"))


def refusals() -> list[dict[str, str]]:
    """Damaged files, and why they are refused."""
    result = []
    for what, data in damaged():
        try:
            StoredEmbedding.from_bytes(data)
        except ArtifactError as error:
            why = str(error).removeprefix("not a stored embedding: ").removesuffix("; write it again with to_bytes()")
            result.append({"what": what, "hex": data.hex(), "reason": why.partition(" b'")[0]})
        else:
            raise AssertionError(f"{what}: was read")
    return result


def contents() -> dict[str, bytes]:
    """Every vector by file name."""
    files: dict[str, bytes] = {}
    for case in CASES:
        files[f"{case.name}.peel"] = stored_of(case).to_bytes()
        files[f"{case.name}.json"] = _json(expected(case))
    return files | {REFUSED: _json(refusals())}


def _json(value: Any) -> bytes:
    """A line a key, so that a difference can be read."""
    if isinstance(value, list):
        return ("[\n" + ",\n".join(json.dumps(one) for one in value) + "\n]\n").encode()
    lines = [f"{json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def main() -> None:
    """Write them all."""
    for name, data in contents().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
