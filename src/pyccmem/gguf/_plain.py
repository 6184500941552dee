# SPDX-License-Identifier: Apache-2.0
"""Opens plain GGUF files, and reads parts of them."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .. import errors
from ..files.safetensors_header import about, open_file
from ._header import MAGIC, Header, parse

__all__ = ["header_of", "is_gguf", "open_plain", "read_header", "read_part"]

Bytes = npt.NDArray[np.uint8]


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Returns True for a file that begins as GGUF files do, sound or not. Raises FileReadError,
    ArgumentTypeError."""
    with open_plain(path) as file:
        found: Bytes = np.zeros(len(MAGIC), np.uint8)
        size = os.fstat(file.fileno()).st_size
        if size < len(MAGIC):
            return False
        read_part(file, found, 0, "its beginning")
        return found.tobytes() == MAGIC


def read_header(path: str | os.PathLike[str]) -> Header:
    """Returns what a plain GGUF file says of itself; reads none of its tensors. Raises
    FileReadError, FileFormatError for a file that breaks the format's rules, OutOfMemoryError,
    PlaintextBudgetError, ArgumentTypeError."""
    with open_plain(path) as file:
        return header_of(file)


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for header_of(). Raises FileReadError, ArgumentTypeError."""
    return open_file(path, "a GGUF file")


def header_of(file: BinaryIO) -> Header:
    """Does read_header() for an open file."""
    with about(os.fsdecode(file.name)):
        size = os.fstat(file.fileno()).st_size
        return parse(size, lambda part, at: read_part(file, part, at, "its header"))


def read_part(file: BinaryIO, part: Bytes, at: int, what: str) -> None:
    """Fills `part` with the bytes of the file from `at` on. Raises FileReadError, and
    FileFormatError for a file that ends early."""
    done = 0
    while done < len(part):
        try:
            count = os.preadv(file.fileno(), [part[done:].data], at + done)
        except OSError as error:
            path = os.fsdecode(file.name)
            raise errors.FileReadError(
                f"{what[0].upper()}{what[1:]} of {path!r} cannot be read: {error.strerror}; check "
                f"the disk the file is on."
            ).of_system(error.errno, path) from None
        if not count:
            raise errors.FileFormatError(
                f"The file {os.fsdecode(file.name)!r} became shorter while it was read: it ends "
                f"within {what}; do it again when nothing writes to it."
            )
        done += count
