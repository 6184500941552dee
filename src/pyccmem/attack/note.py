# SPDX-License-Identifier: Apache-2.0
"""A note in the server's memory that an attacker changes: bytes, or an EncryptedBuffer."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

from .. import errors
from ..buffer import EncryptedBuffer
from ..keys import Key
from .job import PROTECTED, Job

__all__ = ["CHANGED", "NOTICED", "READ", "SAME", "WHERE", "WRITE", "Note"]

#: What is asked of a note.
WRITE, READ, WHERE = "write", "read", "where"

#: What reading it gave.
SAME, NOTICED, CHANGED = "as written", "an error", "something else"

_NBYTES = 4 * 4096


class Note:
    """Calling it with a request of above does it."""

    def __init__(self, job: Job) -> None:
        self._buffer: EncryptedBuffer | None = None
        self._bytes = bytearray(_NBYTES)
        if job.way == PROTECTED:
            with Key.from_file(job.key_file) as key:
                self._buffer = EncryptedBuffer(_NBYTES, key=key, name="note")
        self._written = b""
        self(WRITE)

    def __call__(self, wish: str) -> Any:
        return {WRITE: self._write, READ: self._read, WHERE: self._where}[wish]()

    def close(self) -> None:
        """Wipes it."""
        if self._buffer is not None:
            self._buffer.close()
        self._bytes[:] = bytes(_NBYTES)

    def _write(self) -> None:
        """Puts new random content in place of the old one."""
        self._written = os.urandom(_NBYTES)
        if self._buffer is not None:
            self._buffer.write(self._written)
        else:
            self._bytes[:] = self._written

    def _read(self) -> str:
        try:
            content = bytes(self._bytes) if self._buffer is None else self._buffer.read()
        except errors.IntegrityError:
            return NOTICED
        return SAME if content == self._written else CHANGED

    def _where(self) -> tuple[int, int]:
        """Returns address and size of what is stored."""
        if self._buffer is None:
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
            return address, _NBYTES
        stored = np.frombuffer(self._buffer.ciphertext, np.uint8)
        return int(stored.ctypes.data), len(stored)
