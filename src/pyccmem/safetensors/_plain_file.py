# SPDX-License-Identifier: Apache-2.0
"""Reads plain safetensors files straight into ciphertext.

The file's bytes pass through one block of 1 MiB of plaintext, which is wiped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding.wiped import empty
from ..buffer import EncryptedBuffer
from ..files.safetensors_header import Entry, Header
from ..keys import Key
from ..tensor import EncryptedTensor, adopted
from ._dtypes import dtype_of
from ._progress import Progress, reporting

__all__ = ["BLOCK", "load_plain", "read_part", "will_read_in_order"]

#: Plaintext bytes held at once; a multiple of every page size. Sizes from 256 KiB to 4 MiB were
#: measured to be equally fast: page faults on the new ciphertext take the most time.
BLOCK = 1 << 20


def load_plain(
    path: str | os.PathLike[str],
    file: BinaryIO,
    header: Header,
    *,
    key: Key,
    cipher: str,
    page_size: int,
    progress: bool | Progress | None,
) -> dict[str, EncryptedTensor]:
    """Returns every tensor of an open file whose position is at the first byte of its data. See
    load_file()."""
    tensors: dict[str, EncryptedTensor] = {}
    opened: list[EncryptedBuffer] = []
    entries = header.entries
    dtypes = [dtype_of(entry) for entry in entries]
    total = sum(entry.nbytes for entry in entries)
    will_read_in_order(file)
    block = empty((min(BLOCK, max((entry.nbytes for entry in entries), default=0)),), np.uint8)
    try:
        with reporting(progress, path, total) as report:
            done = 0
            for entry, dtype in zip(entries, dtypes, strict=True):
                buffer = EncryptedBuffer(
                    entry.nbytes, key=key, cipher=cipher, page_size=page_size, name=entry.name
                )
                opened.append(buffer)
                for count in _fill(buffer, file, entry, block):
                    done += count
                    report(done, total)
                tensors[entry.name] = adopted(buffer, entry.shape, dtype)
    except BaseException:
        for buffer in opened:
            buffer.close()
        raise
    finally:
        # Wiped here, because an exception's traceback could keep the array alive.
        block.fill(0)
    return tensors


def _fill(
    buffer: EncryptedBuffer, file: BinaryIO, entry: Entry, block: npt.NDArray[np.uint8]
) -> Iterator[int]:
    """Moves one tensor from the file's position into `buffer` through `block`. Yields the bytes of
    each step."""
    for start in range(0, entry.nbytes, BLOCK):
        part = block[: min(BLOCK, entry.nbytes - start)]
        read_part(file, part, entry)
        buffer.write(part, start)
        yield len(part)


def read_part(file: BinaryIO, part: npt.NDArray[np.uint8], entry: Entry) -> None:
    """Fills `part` with data of an entry, from the file's position on. Raises FileReadError,
    FileFormatError for a file that ends early and for a BOOL that is neither 0 nor 1."""
    _read_exactly(file, part.data, entry)
    if entry.dtype == "BOOL" and part.max() > 1:
        raise errors.FileFormatError(
            f"This is not a valid safetensors file: tensor {entry.name!a} is of dtype BOOL and "
            f"has a byte that is neither 0 nor 1."
        )


def _read_exactly(file: BinaryIO, view: memoryview, entry: Entry) -> None:
    at = 0
    while at < len(view):
        try:
            count = file.readinto(view[at:])  # type: ignore[attr-defined]
        except OSError as error:
            path = str(getattr(file, "name", ""))
            raise errors.FileReadError(
                f"The data of tensor {entry.name!a} in {path!a} cannot be read: {error.strerror}; "
                f"check the disk the file is on."
            ).of_system(error.errno, path) from None
        if not count:
            raise errors.FileFormatError(
                f"The file {getattr(file, 'name', '')!a} became shorter while it was read: it ends "
                f"within tensor {entry.name!a}; load it again when nothing writes to it."
            )
        at += count


def will_read_in_order(file: BinaryIO) -> None:
    """Asks the kernel for a longer read-ahead; only speed depends on it."""
    if hasattr(os, "posix_fadvise"):
        try:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError:
            return
