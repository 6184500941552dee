# SPDX-License-Identifier: Apache-2.0
"""Reads plain safetensors files straight into ciphertext.

The file's bytes pass through one block of 1 MiB of plaintext, which is wiped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .. import errors
from ..buffer import EncryptedBuffer
from ..files.safetensors_header import Entry

__all__ = ["BLOCK", "fill", "read_part", "will_read_in_order"]

#: Plaintext bytes held at once; a multiple of every page size. Sizes from 256 KiB to 4 MiB were
#: measured to be equally fast: page faults on the new ciphertext take the most time.
BLOCK = 1 << 20


def fill(
    buffer: EncryptedBuffer,
    file: BinaryIO,
    entry: Entry,
    start: int,
    block: npt.NDArray[np.uint8],
) -> Iterator[int]:
    """Moves bytes of a tensor, from byte `start` of it on, into all of `buffer` through `block`.
    Yields the bytes of each step. Raises what read_part() and writing raise."""
    with reading(file, entry):
        file.seek(entry.start + start)
    for at in range(0, buffer.nbytes, BLOCK):
        part = block[: min(BLOCK, buffer.nbytes - at)]
        read_part(file, part, entry)
        buffer.write(part, at)
        yield len(part)


@contextmanager
def reading(file: BinaryIO, entry: Entry) -> Iterator[None]:
    """Turns what a file raises when it is read, for data of an entry, into FileReadError."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, errors.PyccmemError):
            raise
        number: int | None = getattr(error, "errno", None)
        why = getattr(error, "strerror", None) or str(error)  # ValueError: the file was closed
    else:
        return
    path = str(getattr(file, "name", ""))
    raise errors.FileReadError(
        f"The data of tensor {entry.name!a} in {path!a} cannot be read: {why}; check the disk the "
        f"file is on, and that nothing has closed it."
    ).of_system(number, path) from None


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
        with reading(file, entry):
            count = file.readinto(view[at:])  # type: ignore[attr-defined]
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
