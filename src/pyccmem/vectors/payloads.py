# SPDX-License-Identifier: Apache-2.0
"""What belongs to vectors besides them, such as the passages that they stand for: bytes of any
length, one after the other as ciphertext. Their places and lengths lie in the clear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import TENSOR_PAGE_SIZE, wiped
from ..buffer import EncryptedBuffer
from ..keys import Key

__all__ = ["Chunk", "Log", "Places", "no_places", "payloads_of", "read"]

#: Bytes of a chunk, unless a payload is larger. Memory that is not written takes none.
_CHUNK = 16 << 20

#: Bytes that are written together.
_WINDOW = 1 << 20

#: Bytes of a payload at most.
_LARGEST = 1 << 31


class Chunk(NamedTuple):
    """A buffer that has the bytes from number `start` of the log on."""

    start: int
    buffer: EncryptedBuffer


class Places(NamedTuple):
    """Where the payload of each row of a segment is in the log (-1: it has none), and how long."""

    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.uint32]

    def copy(self) -> Places:
        """Returns arrays of its own."""
        return Places(self.start.copy(), self.length.copy())


def no_places(count: int) -> Places:
    """Returns places for rows without payloads."""
    return Places(np.full(count, -1, np.int64), np.zeros(count, np.uint32))


def payloads_of(value: Any, count: int) -> list[Any]:
    """Returns payloads: None, or something of bytes, for each of `count` vectors. Raises
    ArgumentError, ArgumentTypeError."""
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, Iterable):
        raise errors.ArgumentTypeError(
            f"payloads must be a sequence of bytes or None, one for each vector, not "
            f"{type(value).__name__}."
        )
    found = list(value)
    if len(found) != count:
        raise errors.ArgumentError(
            f"payloads has {len(found)} entries for {count} vectors; give one for each, None for "
            f"those without."
        )
    for at, one in enumerate(found):
        if one is not None and not isinstance(one, (bytes, bytearray, memoryview)):
            raise errors.ArgumentTypeError(
                f"payloads has at {at} an object of {type(one).__name__}; it must be bytes, a "
                f"bytearray or a memoryview, or None: encode texts, for example with "
                f"text.encode()."
            )
        if one is not None and memoryview(one).nbytes > _LARGEST:
            raise errors.ArgumentError(
                f"payloads has at {at} {memoryview(one).nbytes} bytes; a payload has at most "
                f"{_LARGEST}."
            )
    return found


class Log:
    """Bytes that are appended. For one thread at a time; what was appended never changes."""

    __slots__ = ("_chunks", "_end", "_key", "_name")

    def __init__(self, key: Key, name: str, chunks: Sequence[Chunk] = (), end: int = 0) -> None:
        self._key, self._name = key, name
        self._chunks, self._end = list(chunks), end

    @property
    def end(self) -> int:
        """How many bytes there are."""
        return self._end

    def chunks(self) -> tuple[Chunk, ...]:
        """Returns what readers need."""
        return tuple(self._chunks)

    def append(self, payloads: Sequence[Any]) -> Places:
        """Writes payloads, and returns where they are. Raises OutOfMemoryError, LockedMemoryError,
        IntegrityError, ClosedError, ForkError."""
        places = no_places(len(payloads))
        while self._chunks and self._chunks[-1].start > self._end:
            self._chunks.pop()  # of a call that failed
        begin = self._end
        room = wiped.empty(_WINDOW, np.uint8)
        used = 0
        try:
            for at, one in enumerate(payloads):
                if one is None:
                    continue
                view = memoryview(one).cast("B")
                if used and (used + len(view) > _WINDOW or not self._fits(begin, used + len(view))):
                    self._write(begin, room[:used])
                    begin, used = begin + used, 0
                if not self._fits(begin, len(view)):
                    self._new_chunk(begin, len(view))
                places.start[at], places.length[at] = begin + used, len(view)
                if len(view) > _WINDOW:
                    self._write(begin, view)
                    begin += len(view)
                elif len(view):
                    room[used : used + len(view)] = np.frombuffer(view, np.uint8)
                    used += len(view)
            if used:
                self._write(begin, room[:used])
            self._end = begin + used
        finally:
            room.fill(0)
        return places

    def _fits(self, begin: int, count: int) -> bool:
        if not self._chunks:
            return False
        start, buffer = self._chunks[-1]
        return buffer.writable and begin + count <= start + buffer.nbytes

    def _new_chunk(self, begin: int, count: int) -> None:
        size = max(_CHUNK, count)
        name = f"{self._name}, payloads {len(self._chunks)}"
        buffer = EncryptedBuffer(
            size, key=self._key, page_size=TENSOR_PAGE_SIZE, tweak_cache=0, name=name
        )
        self._chunks.append(Chunk(begin, buffer))

    def _write(self, begin: int, data: Any) -> None:
        start, buffer = self._chunks[-1]
        buffer.write(data, begin - start)


def read(chunks: Sequence[Chunk], start: int, length: int) -> bytes:
    """Returns a payload. Raises IntegrityError, ClosedError, ForkError."""
    for chunk in reversed(chunks):
        if start >= chunk.start:
            return chunk.buffer.read(start - chunk.start, length)
    return b""
