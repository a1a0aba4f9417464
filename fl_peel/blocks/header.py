"""The fixed header of what is stored on a device, and its checksum. docs/artefact.md has every byte.

A file is 40 bytes that say what follows, the CRC32 of everything else, then arrays in a fixed order. Little endian.
"""

from __future__ import annotations

import struct
import zlib

from fl_peel.errors import ArtifactError

HEADER_BYTES = 44
"""Bytes of the header, checksum included."""

VERSION = 2
"""Version of the format. Version 1 was a safetensors file with a header of 384 bytes."""

_START = struct.Struct("<4sB")
_CHECKSUM = struct.Struct("<I")
_NUMBERS_END = HEADER_BYTES - _CHECKSUM.size


def sealed(magic: bytes, numbers: bytes, content: bytes) -> bytes:
    """Return the bytes of a file. magic: 4 bytes; numbers: the header's 35 bytes between version and checksum; content:
    the bytes after the header.
    """
    start = _START.pack(magic, VERSION) + numbers
    assert len(start) == _NUMBERS_END, f"{len(start)} bytes of header, not {_NUMBERS_END}"
    return start + _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(start))) + content


def opened(magic: bytes, data: bytes) -> bytes:
    """Return the 35 bytes between version and checksum of a file that :func:`sealed` made.

    Raises:
        ArtifactError: too short, of another kind or version, or damaged.
    """
    if len(data) < HEADER_BYTES:
        raise refused(f"{len(data)} bytes, where the header alone has {HEADER_BYTES}")
    start, version = _START.unpack_from(data)
    if start != magic:
        raise refused(f"it begins with {start!r}, not {magic!r}")
    if version != VERSION:
        raise refused(f"format {version}, where this release reads {VERSION}")
    (checksum,) = _CHECKSUM.unpack_from(data, _NUMBERS_END)
    if zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[:_NUMBERS_END])) != checksum:
        raise refused("its checksum does not match: it was cut off or changed")
    return data[_START.size : _NUMBERS_END]


def refused(why: str) -> ArtifactError:
    """Return the error for a file that is not what it claims to be."""
    return ArtifactError(f"not a stored embedding: {why}; write it again with to_bytes()")
