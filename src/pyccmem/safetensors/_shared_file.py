# SPDX-License-Identifier: Apache-2.0
"""SharedFile: a file that is read through a duplicate of a descriptor."""

from __future__ import annotations

import io
import os
from typing import Any

from ..binding.owned import Descriptor

__all__ = ["SharedFile"]


class SharedFile(io.RawIOBase):
    """A file read through a descriptor whose position is shared with other processes."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self._descriptor, self._position = Descriptor(os.dup, descriptor), 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor.number

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        if start is None:
            start = os.fstat(self.fileno()).st_size
        self._position = start + offset
        return self._position

    def readinto(self, out: Any) -> int:
        got = os.preadv(self.fileno(), [out], self._position)
        self._position += got
        return got

    def close(self) -> None:
        self._descriptor.close()
        super().close()
