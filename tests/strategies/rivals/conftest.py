"""What rivals are tried on: planted devices and items, and tables that were trained on them."""

import struct
import zlib
from dataclasses import replace

import pytest

from fl_peel.data.interactions import collected, split
from fl_peel.pretraining.central_training import pretrain
from strategies.rivals.base import Material
from tests.helpers.planted import planted_interactions
from tests.helpers.settings import PRETRAINING

CONFIG = replace(PRETRAINING, embedding_dim=8, num_layers=1, epochs=10, num_negatives=0, temperature=0.3, num_slices=2)


@pytest.fixture(scope="module")
def material():
    """120 devices in 2 taste groups, 60 items of which each group likes 30, popularity falling with the rank."""
    data = planted_interactions(3, 60, 30, 2, 12, noise=0.05)
    splits = split(data, seed=0, validation_share=0.2, test_share=0.25)
    given_items, has_data = collected(splits.train, seed=0, share=1.0, mode="users")
    pretrained = pretrain(given_items, splits.num_items, CONFIG, seed=0)
    return Material(given_items, has_data, splits, pretrained, CONFIG, 0)


# --- Another reader of rivals' files, by docs/artefact.md alone.


KINDS = (
    "dense",
    "factors",
    "pairs",
    "counts",
    "rows",
    "bitmap",
    "quantized",
    "hashed-add",
    "hashed-multiply",
    "residual",
)


def read_head(data):
    """Kind, precision and numbers of a rival's file."""
    magic, version, kind, precision, count, *numbers, checksum = struct.unpack_from("<4s4B8II", data)
    assert (magic, version, checksum) == (b"PEER", 2, zlib.crc32(data[:40] + data[44:]))
    assert not any(numbers[count:])
    return KINDS[kind], ("fp32", "fp16", "int8", "int4")[precision], numbers[:count]
