# SPDX-License-Identifier: Apache-2.0
"""Seals the contents of a sealed file once more, under a new data key."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..buffer import EncryptedBuffer
from ..key_services.context import given
from ._format import Index
from ._progress import Progress, check_progress
from ._reader import SealedFile, descriptor_of, expected, header_of, open_sealed, placed_in
from ._sources import Source
from ._tensor_file import buffer_of
from ._writer import write_sealed
from .providers import AnyKey, check_key, named

__all__ = ["reencrypt_file"]

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class _Sealed:
    """A tensor of an open sealed file. Its pages are verified as they are read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: EncryptedBuffer

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes

    def read(self, part: npt.NDArray[np.uint8], at: int) -> None:
        self.buffer.read_into(part, at)


def reencrypt_file(
    path: _Path,
    old: AnyKey,
    new: AnyKey,
    *,
    dst: _Path | None = None,
    expect: Any = None,
    context: Any = None,
    new_context: Any = None,
    progress: bool | Progress | None = None,
) -> str:
    """Seals the contents of the sealed file `path` under a new data key, for `new`, in a new file
    that takes its place, or appears at `dst`, whole or not at all. Returns the pin of the new file:
    a new file id.

    Who has the old file, `old` or the old data key cannot read the new file by them; see
    rewrap_file() for a new wrapping of the same data key. 1 MiB of plaintext exists at a time, in
    memory that is wiped, and none on the disk. Every page is verified on the way. Names stay sealed
    if they were, metadata and the mode as they are; `context` and `new_context` are as for
    rewrap_file().

    Raises what load_file() raises for a sealed file, IntegrityError for a damaged page,
    FileWriteError, and what a key provider raises; nothing has changed then."""
    check_progress(progress)
    check_key(new)
    texts = None if new_context is None else given(new_context)
    with open_sealed(path, key=old, expect=expected(expect), context=context) as opened:
        header = header_of(opened)
        mode = stat.S_IMODE(os.fstat(descriptor_of(opened)).st_mode) & 0o777
        sources = _sources(opened)
        written = write_sealed(
            path if dst is None else dst,
            sources,
            opened.metadata() or {},
            key=new,
            page_size=header.page_size,
            seal_names=not isinstance(header.index, Index),
            progress=progress,
            overwrite=True,
            new_mode=mode,
            context=named(header.context) if texts is None else texts,
        )
    return f"{written.file_id.hex()}:{written.generation}"


def _sources(opened: SealedFile) -> list[Source]:
    return [
        _Sealed(name, tensor.dtype, tensor.shape, buffer_of(opened, name))
        for name, (tensor, _) in placed_in(opened).items()
    ]
