# SPDX-License-Identifier: Apache-2.0
"""PlainFile: an open plain file, whose tensors are encrypted when they are taken."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np

from .. import errors
from ..binding.wiped import empty
from ..buffer import EncryptedBuffer
from ..core.forks import Lock
from ..files.safetensors_header import Entry, Header
from ..keys import Key
from ._plain_file import BLOCK, fill, will_read_in_order
from ._slices import TensorSlice
from ._tensor_file import Report, TensorFile, TensorInfo

__all__ = ["PlainFile", "opened_plain", "will_be_read"]


class PlainFile(TensorFile):
    """An open plain file, made by safe_open(); a context manager.

    Each tensor that is taken is encrypted on the way, through at most 1 MiB of plaintext that is
    wiped, and can be written. Threads read one after the other.
    """

    __slots__ = ("_entries", "_file", "_header", "_lock", "_options")

    _instead_of_a_copy = "open the file again"

    _file: BinaryIO | None
    _header: Header
    _entries: dict[str, Entry]
    _lock: Lock  # held while the file is read, which has one position
    _options: dict[str, Any]

    def __init__(self) -> None:
        self._file = None
        raise errors.ArgumentTypeError("PlainFile() opens nothing; use safe_open(path, key=...).")

    @classmethod
    def _of(
        cls,
        path: str | os.PathLike[str],
        file: BinaryIO,
        header: Header,
        *,
        key: Key,
        cipher: str,
        page_size: int,
    ) -> PlainFile:
        """Takes over `file`, whose header was read."""
        self = object.__new__(cls)
        self._set_up(os.fsdecode(path))
        self._file, self._header, self._lock = file, header, Lock()
        self._entries = {entry.name: entry for entry in header.entries}
        self._options = {"key": key, "cipher": cipher, "page_size": page_size}
        return self

    def _names(self) -> dict[str, Entry]:
        self._opened()
        return self._entries

    def _info(self, name: str) -> TensorInfo:
        entry = self._entries[name]
        return TensorInfo(entry.dtype, entry.shape, entry.nbytes)

    def _texts(self) -> dict[str, str]:
        return self._header.metadata

    def _tensor_buffer(self, name: str, report: Report | None = None) -> EncryptedBuffer:
        entry = self._entries[name]
        return self._encrypted(entry, 0, entry.nbytes, report)

    def _encrypted(
        self, entry: Entry, start: int, nbytes: int, report: Report | None = None
    ) -> EncryptedBuffer:
        """Returns bytes of a tensor, encrypted."""
        buffer = EncryptedBuffer(nbytes, name=entry.name, **self._options)
        try:
            block = empty((min(BLOCK, nbytes),), np.uint8)
            try:
                with self._lock.here():
                    for count in fill(buffer, self._opened(), entry, start, block):
                        if report is not None:
                            report(count)
            finally:
                block.fill(0)  # now, because an exception's traceback may keep it alive
        except BaseException:
            buffer.close()
            raise
        return buffer

    def _slice_of(self, name: str, info: TensorInfo) -> TensorSlice:
        entry = self._entries[name]
        self._form(entry.dtype, entry.shape, name)

        row = entry.nbytes // entry.shape[0] if entry.nbytes and entry.shape else 0

        def rows(begin: int, end: int) -> Any:
            """Returns a part along the first axis; of a tensor without axes, all of it."""
            shape = (end - begin, *entry.shape[1:]) if entry.shape else ()
            nbytes = row * (end - begin) if entry.shape else entry.nbytes
            form = self._form(entry.dtype, shape, name)
            return self._made_of(self._encrypted(entry, row * begin, nbytes), entry.dtype, form)

        return TensorSlice(name, entry.dtype, entry.shape, self._framework, None, rows)

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._file is None

    def close(self) -> None:
        """Closes the file. Tensors that were returned stay valid. May be repeated."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _opened(self) -> Any:
        file = self._file
        if file is None:
            raise self._closed_already()
        return file

    def _description(self) -> str:
        return f"{self._path!a}, {len(self._entries)} tensors, plain"


# ---- for the other modules of the package --------------------------------------------------------


def opened_plain(
    path: str | os.PathLike[str],
    file: BinaryIO,
    header: Header,
    *,
    key: Key,
    cipher: str,
    page_size: int,
) -> PlainFile:
    """Returns a PlainFile over an open file whose header was read."""
    return PlainFile._of(path, file, header, key=key, cipher=cipher, page_size=page_size)


def will_be_read(file: PlainFile) -> None:
    """Asks the kernel to read ahead, because all tensors will be taken in order."""
    will_read_in_order(file._opened())
