"""Another reader of rivals' files, by docs/artefact.md alone."""

import struct
import zlib

KINDS = ("dense", "factors", "pairs", "counts", "rows", "bitmap", "quantized", "hashed-add", "hashed-multiply")


def read_head(data):
    """Kind, precision and numbers of a rival's file."""
    magic, version, kind, precision, count, *numbers, checksum = struct.unpack_from("<4s4B8II", data)
    assert (magic, version, checksum) == (b"PEER", 2, zlib.crc32(data[:40] + data[44:]))
    assert not any(numbers[count:])
    return KINDS[kind], ("fp32", "fp16", "int8", "int4")[precision], numbers[:count]
