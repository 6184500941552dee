# SPDX-License-Identifier: Apache-2.0
"""Seals plain GGUF files."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import TENSOR_PAGE_SIZE, wiped
from ..binding.arguments import checked_page_size
from ..files.safetensors_header import shown
from ..safetensors import Progress, encrypt_file
from ..safetensors._format import RESERVED_PREFIX
from ..safetensors._plain_file import BLOCK, will_read_in_order
from ..safetensors._progress import check_progress
from ..safetensors._sources import Source
from ..safetensors._writer import write_sealed
from ..safetensors.providers import AnyKey, check_key
from ._container import GAPS, HEADER, metadata_for, stored_as
from ._header import Header, TensorInfo
from ._plain import header_of, is_gguf, open_plain, read_part

__all__ = ["encrypt", "seal"]

Bytes = npt.NDArray[np.uint8]

_Path = str | os.PathLike[str]


def seal(
    path: _Path,
    sealed: _Path,
    key: AnyKey,
    *,
    page_size: int = TENSOR_PAGE_SIZE,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
    context: Any = None,
    set_id: str | None = None,
) -> str:
    """Writes the plain GGUF file `path` to `sealed` as a sealed one. Everything in it is encrypted:
    metadata, names, shapes, weights; blocks stay as they are, nothing is dequantised. unseal()
    gives the same file back, byte for byte. Returns the pin of the new file, for `expect`:
    "FILE_ID:GENERATION".

    The new file gets the mode of `path`, as with pyccmem.safetensors.encrypt_file(). A file at
    `sealed` is replaced only with overwrite=True; it may be `path` itself. `key`, `page_size`,
    `progress` and `context` are those of encrypt_file(). At most 1 MiB of weights is in memory at
    once, and the header. Of a model in several files each is sealed by itself: give all of them the
    same `set_id`, a text that no other model has (secrets.token_hex(16)), and open_model() takes
    none of another set. pyccmem.directories.encrypt_directory() does.

    Raises FileReadError, FileFormatError for a file that is no GGUF file, breaks the format's rules
    or has a tensor of a name that sealed files use for themselves, FileWriteError (with errno
    EEXIST for a file that exists), OutOfMemoryError, ArgumentTypeError, and what a key provider
    raises.
    """
    check_progress(progress)
    check_key(key)
    page_size = checked_page_size(page_size)
    if set_id is not None and not isinstance(set_id, str):
        raise errors.ArgumentTypeError(f"set_id must be a str, not {type(set_id).__name__}.")
    with open_plain(path) as file:
        header = header_of(file)
        try:
            _check_names(os.fsdecode(path), header)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
            will_read_in_order(file)
            sources: list[Source] = [_HeaderSource(header), _gaps_of(file, header)]
            sources += [_TensorSource(file, tensor) for tensor in header.in_order()]
            written = write_sealed(
                sealed,
                sources,
                metadata_for(header.size, header.tensors, set_id),
                key=key,
                page_size=page_size,
                seal_names=True,
                progress=progress,
                overwrite=bool(overwrite),
                new_mode=mode,
                context=context,
            )
        finally:
            header.metadata.forget()
    return f"{written.file_id.hex()}:{written.generation}"


def encrypt(
    src: _Path,
    dst: _Path,
    key: AnyKey,
    *,
    seal_names: bool = False,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> str:
    """Does seal() for a file that begins as GGUF files do, else
    pyccmem.safetensors.encrypt_file(). Raises what these raise."""
    if is_gguf(src):
        return seal(src, dst, key, overwrite=overwrite, progress=progress, context=context)
    return encrypt_file(
        src,
        dst,
        key,
        seal_names=seal_names,
        overwrite=overwrite,
        progress=progress,
        context=context,
    )


def _check_names(path: str, header: Header) -> None:
    for name in header.tensors:
        if name in (HEADER, GAPS, "__metadata__") or name.startswith(RESERVED_PREFIX):
            raise errors.FileFormatError(
                f"{path!r} has a tensor called {shown(name)}, a name that sealed files use for "
                f"themselves; rename it."
            )


class _HeaderSource:
    """The header, which is in memory."""

    name, dtype = HEADER, "U8"

    def __init__(self, header: Header) -> None:
        self._raw = header.raw
        self.nbytes = len(header.raw)
        self.shape: tuple[int, ...] = (self.nbytes,)

    def read(self, part: Bytes, at: int) -> None:
        np.copyto(part, self._raw[at : at + len(part)])


@dataclass(frozen=True)
class _TensorSource:
    """A tensor's bytes, read from the file."""

    file: BinaryIO
    tensor: TensorInfo

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def dtype(self) -> str:
        return stored_as(self.tensor)[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return stored_as(self.tensor)[1]

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self, part: Bytes, at: int) -> None:
        read_part(self.file, part, self.tensor.start + at, f"tensor {shown(self.tensor.name)}")


class _GapsSource:
    """Bytes of several places of the file, one after the other."""

    name, dtype = GAPS, "U8"

    def __init__(self, file: BinaryIO, places: list[tuple[int, int]]) -> None:
        self._file, self._places = file, places
        self._ends = list(accumulate(end - begin for begin, end in places))
        self.nbytes = self._ends[-1] if places else 0
        self.shape: tuple[int, ...] = (self.nbytes,)

    def read(self, part: Bytes, at: int) -> None:
        which = bisect_right(self._ends, at)
        while len(part):
            left = self._ends[which] - at
            count = min(left, len(part))
            read_part(self._file, part[:count], self._places[which][1] - left, "its padding")
            part, at, which = part[count:], at + count, which + 1


def _gaps_of(file: BinaryIO, header: Header) -> _GapsSource:
    """Returns the source of the bytes that belong to no tensor: none, if all of them are zero, as
    they are in most files."""
    found = _GapsSource(file, header.gaps())
    block: Bytes = wiped.empty((min(BLOCK, max(found.nbytes, 1)),), np.uint8)
    try:
        for at in range(0, found.nbytes, BLOCK):
            part = block[: min(BLOCK, found.nbytes - at)]
            found.read(part, at)
            if part.any():
                return found
    finally:
        block.fill(0)
    return _GapsSource(file, [])
