# SPDX-License-Identifier: Apache-2.0
"""A sealed file that a forked child can open anew: the tensors that it inherited get stores of its
own over the same pages of the page cache, by a key that was asked for once more."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import errors
from .._forks import Origin, opening
from .._safetensors_header import Header, open_file, read_all
from ..buffer import registered_buffers
from ..keys import Key
from .providers import KeySource

if TYPE_CHECKING:
    from ._reader import SealedFile

__all__ = ["SealedOrigin"]


class _Shared(io.RawIOBase):
    """The file behind a descriptor whose position belongs to other processes, too."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self._descriptor, self._position = os.dup(descriptor), 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        if start is None:
            start = os.fstat(self._descriptor).st_size
        self._position = start + offset
        return self._position

    def readinto(self, out: Any) -> int:
        got = os.preadv(self._descriptor, [out], self._position)
        self._position += got
        return got

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class SealedOrigin(Origin):
    """A sealed file, by what a child can find it with.

    The descriptor is kept, so that a file that was replaced by a newer one or deleted since is
    still the one that the parent has loaded. Where pages were read into memory (`mmap` is False),
    the file is to be needed no longer, and a child looks for it by its name.
    """

    __slots__ = ("_descriptor", "_digest", "_identity", "_mmap", "_path", "_source")

    def __init__(
        self, path: str, descriptor: int, header: Header, source: KeySource | None, mmap: bool
    ) -> None:
        self._descriptor = -1
        self._path, self._source, self._mmap = path, source, mmap
        with contextlib.suppress(OSError):  # the working directory is gone
            self._path = os.path.abspath(path)
        self._digest = _digest(header)
        if source is not None and mmap:
            with contextlib.suppress(OSError):  # too many are open: by its name, then
                self._descriptor = os.dup(descriptor)
                self._identity = _identity(self._descriptor)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._kept():
            close(self._descriptor)

    def _kept(self) -> bool:
        """True while the descriptor is ours: a daemon may have closed all that it did not know,
        and its number may be another file's now."""
        try:
            return self._descriptor >= 0 and _identity(self._descriptor) == self._identity
        except (OSError, AttributeError):
            return False

    def description(self) -> str:
        return f"sealed file {self._path!a}"

    def obstacle(self) -> str | None:
        if self._source is None:
            return "the bytes of its key were given, and are not kept"
        return self._source.obstacle()

    def reopen(self) -> None:
        with opening():
            waiting = [
                buffer
                for buffer in registered_buffers()
                if buffer._origin is self and buffer._store is None
            ]
            if not waiting:
                return
            with self._file() as file:
                for buffer in waiting:
                    new = file._tensor_buffer(buffer.name)
                    if not buffer.closed:
                        buffer._take_store(new)

    def _file(self) -> SealedFile:
        """The file, opened and checked as for the first time. Raises as reopen()."""
        from ._reader import SealedFile  # built on this

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
                return SealedFile._of(
                    self._path, file, header, key=key, expect=None, mmap=self._mmap, anew=True
                )
            except BaseException:
                file.close()
                raise
            finally:
                if isinstance(key, Key):  # of a key file, read for this
                    key.close()
        except (errors.ForkError, errors.IntegrityError, MemoryError):
            raise
        except Exception as error:  # a provider may raise anything
            raise self._refused(str(error) or type(error).__name__) from error

    def _handle(self) -> BinaryIO:
        if self._kept():
            return cast(BinaryIO, _Shared(self._descriptor, self._path))
        return open_file(self._path)

    def _refused(self, why: str) -> errors.ForkError:
        return errors.ForkError(
            f"The tensors of {self._path!a} belong to the process that this one was forked from, "
            f"and cannot be opened anew: {why.rstrip('.')}. Load the file in this process."
        )


def _digest(header: Header) -> bytes:
    """What tells the file: its header names the tags of all that the tensors need."""
    return hashlib.sha256(header.raw).digest()


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
