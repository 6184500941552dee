# SPDX-License-Identifier: Apache-2.0
"""Files that are open already, and files in memory, as the readers of this package want them."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, BinaryIO, cast

from .. import errors
from ..binding.arguments import input_buffer
from ..binding.owned import Descriptor
from ._shared_file import SharedFile

__all__ = ["MEMORY", "file_of", "file_of_bytes", "memory_of", "with_descriptor"]

#: What errors call bytes in memory.
MEMORY = "<bytes>"

#: Bytes of a sealed file that are copied at once.
_COPY = 1 << 20


def file_of(handle: Any) -> tuple[str, BinaryIO]:
    """Returns a name for errors, and a file with a position of its own, over an open file: the
    system's if it has a descriptor, else one that calls its read() and seek(). Raises
    ArgumentTypeError, FileReadError."""
    name = getattr(handle, "name", None)
    name = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else "<file>"
    try:
        number = handle.fileno()
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        number = None
    except ValueError as error:
        raise errors.FileReadError(
            f"The file {name!a} cannot be read: {error}; pass one that is open."
        ) from None
    if isinstance(number, int):
        try:
            shared = SharedFile(number, name)
            regular = stat.S_ISREG(os.fstat(shared.fileno()).st_mode)
        except OSError as error:
            raise errors.FileReadError(
                f"The file {name!a} cannot be read: {error.strerror}; pass one that is open."
            ).of_system(error.errno, name) from None
        if not regular:
            shared.close()
            raise errors.FileReadError(f"{name!a} is not a regular file; pass a safetensors file.")
        return name, cast(BinaryIO, shared)
    if not all(callable(getattr(handle, method, None)) for method in ("read", "seek")):
        raise errors.ArgumentTypeError(
            f"The file must be one that was opened for reading, in binary mode, not "
            f"{type(handle).__name__}; safe_open() takes a name."
        )
    return name, cast(BinaryIO, _Reading(handle, name))


def file_of_bytes(data: Any) -> BinaryIO:
    """Returns a file over bytes of the caller's, without a copy of them. Raises
    BufferTypeError."""
    with input_buffer("data", data):
        pass
    return cast(BinaryIO, _Memory(memoryview(data).cast("B")))


def memory_of(file: BinaryIO) -> memoryview | None:
    """Returns the bytes of a file that file_of_bytes() made; None for any other."""
    return file._view if isinstance(file, _Memory) else None


def with_descriptor(file: BinaryIO) -> BinaryIO:
    """Returns the same file if it has a descriptor, else a copy of it in memory that has one. For
    sealed files, which are mapped; the copy is ciphertext. Raises FileReadError,
    OutOfMemoryError."""
    try:
        file.fileno()
        return file
    except OSError:
        pass
    name = str(getattr(file, "name", MEMORY))
    try:
        with Descriptor(os.memfd_create, "pyccmem", os.MFD_CLOEXEC) as memory:
            file.seek(0)
            while piece := file.read(_COPY):
                at = 0
                while at < len(piece):
                    at += os.write(memory, piece[at:])
            return cast(BinaryIO, SharedFile(memory, name))
    except OSError as error:
        if isinstance(error, errors.PyccmemError):
            raise
        why, number = error.strerror or str(error), error.errno
    raise errors.FileReadError(
        f"The file {name!a} cannot be copied to memory, from which it is mapped: {why}; write it "
        f"to a disk and open it there."
    ).of_system(number, name)


class _Positioned(io.RawIOBase):
    """A file of known size with a position."""

    def __init__(self, size: int, name: str) -> None:
        super().__init__()
        self._size, self._position, self.name = size, 0, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, out: Any) -> int:
        with memoryview(out) as view, view.cast("B") as flat:
            count = max(min(len(flat), self._size - self._position), 0)
            if count:
                count = self._fill(flat[:count])
            self._position += count
            return count

    def _fill(self, out: memoryview) -> int:
        raise NotImplementedError


class _Memory(_Positioned):
    """Bytes in memory."""

    def __init__(self, view: memoryview) -> None:
        super().__init__(len(view), MEMORY)
        self._view = view

    def _fill(self, out: memoryview) -> int:
        out[:] = self._view[self._position : self._position + len(out)]
        return len(out)

    def close(self) -> None:
        self._view.release()
        super().close()


class _Reading(_Positioned):
    """A file of others, without a descriptor. Closing this leaves that open."""

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        try:
            size = handle.seek(0, os.SEEK_END)
        except (OSError, ValueError) as error:
            raise errors.FileReadError(
                f"The file {name!a} cannot be read from any place: {error}; pass its bytes."
            ) from None
        if not isinstance(size, int):
            raise errors.ArgumentTypeError(
                f"The file {name!a} does not say how long it is; pass its bytes."
            )
        super().__init__(size, name)

    def _fill(self, out: memoryview) -> int:
        handle = self._handle
        handle.seek(self._position)
        if hasattr(handle, "readinto"):
            return int(handle.readinto(out) or 0)
        piece = handle.read(len(out))
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise errors.ArgumentTypeError(
                f"The file {self.name!a} gives {type(piece).__name__} and not bytes; open it in "
                f"binary mode."
            )
        out[: len(piece)] = piece
        return len(piece)
