# SPDX-License-Identifier: Apache-2.0
"""A sealed file that a forked child can open anew. The tensors it inherited get native stores of
the child's own over the same pages of the page cache, under a key that it fetches again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, cast

from .. import errors
from ..binding.owned import KeptFile
from ..core.forks import Origin, opening
from ..core.store import Store, take_over, waiting_for
from ..files.safetensors_header import Header, open_file, read_all
from ..keys import Key
from ._shared_file import SharedFile
from .providers import KeySource

__all__ = ["SealedOrigin"]


class SealedOrigin(Origin):
    """A sealed file, and how a child finds it. A subclass says how to open it.

    The descriptor is kept, so that a child opens the file that the parent has loaded, even if it
    was replaced or deleted since. If pages were read into memory (`mmap` is False), the file should
    not be held, and a child looks for it by its name.
    """

    __slots__ = ("_digest", "_kept", "_mmap", "_path", "_source")

    def __init__(
        self, path: str, descriptor: int, header: Header, source: KeySource | None, mmap: bool
    ) -> None:
        self._path, self._source, self._mmap = path, source, mmap
        with contextlib.suppress(OSError):  # the working directory is gone
            self._path = os.path.abspath(path)
        self._digest = _digest(header)
        try:
            self._kept = KeptFile(descriptor if mmap and source is not None else None)
        except OSError:  # too many are open; then a child looks for it by its name
            self._kept = KeptFile(None)

    def description(self) -> str:
        return f"sealed file {self._path!a}"

    def obstacle(self) -> str | None:
        if self._source is None:
            return "the bytes of its key were given, and are not kept"
        return self._source.obstacle()

    def reopen(self) -> None:
        with opening():
            waiting = waiting_for(self)
            if not waiting:
                return
            with self._file() as file:
                for buffer in waiting:
                    take_over(buffer, self._buffer(file, buffer.name))

    def _opened(
        self, path: str, file: BinaryIO, header: Header, key: Any, mmap: bool
    ) -> AbstractContextManager[Any]:
        """Returns a SealedFile over `file`, for tensors that have this origin."""
        raise NotImplementedError

    def _buffer(self, file: Any, name: str) -> Store:
        """Returns the pages of one of its tensors."""
        raise NotImplementedError

    def _file(self) -> AbstractContextManager[Any]:
        """Returns the file, opened and checked as the first time. Raises as reopen() does."""
        source, key = self._source, None
        if source is None:
            raise self._refused(self.obstacle() or "")
        try:
            file = self._handle()
            try:
                header = read_all(file)
                if _digest(header) != self._digest:
                    raise self._refused("the file is not the one that was loaded before the fork")
                key = source.key()
                return self._opened(self._path, file, header, key, self._mmap)
            except BaseException:
                file.close()
                raise
            finally:
                if isinstance(key, Key):  # read from a key file for this
                    key.close()
        except (errors.ForkError, errors.IntegrityError, MemoryError):
            raise
        except Exception as error:  # a provider may raise anything
            raise self._refused(str(error) or type(error).__name__) from error

    def _handle(self) -> BinaryIO:
        kept = self._kept.number
        return open_file(self._path) if kept < 0 else cast(BinaryIO, SharedFile(kept, self._path))

    def _refused(self, why: str) -> errors.ForkError:
        return errors.ForkError(
            f"The tensors of {self._path!a} belong to the process that this one was forked from, "
            f"and cannot be opened anew: {why.rstrip('.')}. Load the file in this process."
        )


def _digest(header: Header) -> bytes:
    """Returns what identifies the file: its header has the tags of everything that the tensors
    need."""
    return hashlib.sha256(header.raw).digest()
