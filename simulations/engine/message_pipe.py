"""A pipe between two processes of this machine, for messages with large arrays.

What is sent is pickled into a file in memory, whose descriptor goes through a socket: an array is written once, and
read where it lies. Through the socket itself it would be copied six times, a fifth of a round's work. Clearing memory
for a file takes as long as writing it: one that the other end has read takes the next message.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import tempfile
import weakref
from typing import Any

_HEAD = struct.Struct("<Q")
"""What goes through the socket with the descriptor: bytes of the file's first part, which says what the rest is."""
_LEAST_BYTES = 1 << 14
"""Bytes of an array that has a place of its own in the file: a smaller one, kept for long, would keep all of it."""
_ALIGNED = 64
_READ = b"r"
"""First byte of a file once nothing at the other end lies in it any more; the first part begins at ``_ALIGNED``."""


class MessagePipe:
    """One end of a pipe, over a connected Unix socket. Arrays that arrive are the receiver's own, to be written to."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._files: list[int] = []

    def __enter__(self) -> MessagePipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, which can be read when something has come."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end: the other one finds nothing more."""
        self._socket.close()
        while self._files:
            os.close(self._files.pop())

    def send(self, content: Any) -> None:
        """Send anything that can be pickled.

        Raises:
            OSError: nobody can receive it, or memory is short.
        """
        arrays: list[memoryview] = []

        def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= _LEAST_BYTES:
                arrays.append(raw)
            return raw.nbytes < _LEAST_BYTES

        pickled = pickle.dumps(content, 5, buffer_callback=stays_in_band)
        first = pickle.dumps((pickled, [array.nbytes for array in arrays]))
        parts: list[bytes | memoryview] = [first, *arrays]
        with open(self._free_file(), "wb", closefd=False) as file:
            file.write(bytes(_ALIGNED))
            for part in parts:
                file.write(part)
                file.write(bytes(-len(part) % _ALIGNED))
            file.truncate()
            socket.send_fds(self._socket, [_HEAD.pack(len(first))], [file.fileno()])

    def _free_file(self) -> int:
        """Return a file that nobody reads, at its beginning."""
        free = [file for file in self._files if os.pread(file, 1, 0) == _READ]
        for file in free[1:]:  # messages of one size come one after the other: one is enough
            self._files.remove(file)
            os.close(file)
        if not free:
            free = [_new_file()]
            self._files += free
        os.lseek(free[0], 0, os.SEEK_SET)
        return free[0]

    def recv(self) -> Any:
        """Wait for what the other end sends next.

        Raises:
            EOFError: it is closed.
            OSError: it was ended, or memory is short.
        """
        head, descriptors, *_ = socket.recv_fds(self._socket, _HEAD.size, 1)
        if not descriptors:
            raise EOFError
        (file,) = descriptors
        try:
            # private: a page that the receiver writes to is copied then, all others never
            mapped = mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            os.close(file)
            raise
        weakref.finalize(mapped, _mark_read, file).atexit = False
        data, place = memoryview(mapped), _ALIGNED + _HEAD.unpack(head)[0]
        pickled, sizes = pickle.loads(data[_ALIGNED:place])
        arrays = []
        for num_bytes in sizes:
            place += -place % _ALIGNED
            arrays.append(data[place : place + num_bytes])
            place += num_bytes
        return pickle.loads(pickled, buffers=arrays)


def _mark_read(file: int) -> None:
    os.pwrite(file, _READ, 0)
    os.close(file)


def _new_file() -> int:
    """Open a file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("message")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
