# SPDX-License-Identifier: Apache-2.0
"""Loads files into tensors: files by name, and their bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import errors
from ..buffer import EncryptedBuffer
from ..files.safetensors_header import open_file, read_all
from ..tensor import EncryptedTensor
from ._frameworks import reads_pages
from ._handles import MEMORY
from ._open import Options, opened, opened_bytes
from ._opened_plain import PlainFile, will_be_read
from ._progress import Progress, check_progress, reporting
from ._reader import looks_sealed
from ._tensor_file import Report, TensorFile, buffer_of, described, tensors_of
from .providers import AnyKey

__all__ = ["deserialize", "is_sealed", "load", "load_file", "load_from", "load_from_bytes"]


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Returns True when the file says that it is sealed, even if it is damaged; False for any other
    file, of safetensors or not. Raises FileReadError."""
    with open_file(path) as file:
        try:
            return looks_sealed(read_all(file))
        except errors.FileFormatError:
            return False


def load_file(
    filename: str | os.PathLike[str],
    *,
    key: AnyKey,
    expect: Any = None,
    sealed: bool | None = None,
    backend: str = "mmap",
    mmap: bool = True,
    cipher: str | None = None,
    page_size: int | None = None,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> dict[str, EncryptedTensor]:
    """Returns every tensor of a safetensors file by name, in the order of the file, each in an
    EncryptedBuffer of its own with the tensor's name. The file may be plain or sealed; sealed=True
    refuses a plain file, sealed=False a sealed one.

    A sealed file is not decrypted. Its pages are mapped, shared with every other process that maps
    them, and read-only (tensor.copy() makes a writable tensor). A program that can write the file
    can make reads fail, by changing it (IntegrityError) or cutting it short (FileReadError). With
    mmap=False, or backend="pread", the pages are read into memory, and later changes of the file do
    not matter. `key` is what the file was sealed for: a Key, a Passphrase or a KeyProvider.
    `expect` pins a file id and its least generation: the text "FILE_ID:GENERATION" that `pyccmem
    inspect` prints, a pair, a dict or what inspect_file() returned. `context` is a dict of texts
    that the file's context must have, as save_file() gave them to it. With either a plain file is
    refused.

    A forked child opens the file anew when it first uses one of the tensors, if it can get the key
    again from a key file, a KeyProvider or a Passphrase that is kept. A descriptor stays open for
    that; with mmap=False the child looks for the file by its name.

    A plain file is encrypted on the way, under `key` (a Key), with `cipher` and `page_size` (by
    default "aegis-128x2" and 4096 bytes). At most 1 MiB of plaintext exists at once, and none when
    the call returns or raises.

    `progress`: None for a bar on standard error if that is a terminal, rich is installed and the
    file is large; True for a bar in any case; False for none; or a function that is called with the
    bytes loaded so far and the total.

    Raises FileReadError, FileFormatError for a file that is cut short, changes under the reader or
    breaks the format's rules, IntegrityError for a sealed file that was changed or is not the
    expected one, InvalidKeyError if `key` does not open it, MissingPackageError for a dtype (or a
    bar) whose package is not installed, ArgumentTypeError for elements of less than a byte, and
    what EncryptedBuffer raises.
    """
    anonymous = reads_pages(backend) or not mmap
    options = Options(key, expect, sealed, not anonymous, cipher, page_size, context=context)
    return load_from(filename, options, progress)


def load_from(
    filename: str | os.PathLike[str], options: Options, progress: bool | Progress | None
) -> dict[str, Any]:
    """Does load_file() for an adapter, whose framework `options` has."""
    check_progress(progress)
    with opened(filename, options) as file:
        return _all_of(file, filename, progress, options.mmap)


def load(
    data: Any,
    *,
    key: AnyKey,
    expect: Any = None,
    sealed: bool | None = None,
    cipher: str | None = None,
    page_size: int | None = None,
    copy: bool | None = True,
    context: Any = None,
) -> dict[str, EncryptedTensor]:
    """Does load_file() for the bytes of a file, plain or sealed, in any buffer of bytes. Sealed
    bytes are copied as they are, and mapped. Plain bytes stay as they are: overwrite them yourself.

    With copy=False sealed bytes are not copied: the tensors lie over them, and keep them. It is
    meant for memory that processes share. Who can change it can make reads fail (IntegrityError),
    and who cuts short a file that it is a mapping of ends this process. copy=None copies if it
    must: the bytes have to begin at a multiple of 64, where copy=False raises ArgumentError. Such
    tensors do not follow a fork.

    Raises BufferTypeError, and what load_file() raises.
    """
    options = Options(key, expect, sealed, True, cipher, page_size, context=context, copy=copy)
    return load_from_bytes(data, options)


def load_from_bytes(data: Any, options: Options) -> dict[str, Any]:
    """Does load() for an adapter, whose framework `options` has."""
    with opened_bytes(data, options) as file:
        return _all_of(file, MEMORY, False, True)


def _all_of(
    file: TensorFile, path: Any, progress: bool | Progress | None, mapped: bool
) -> dict[str, Any]:
    if isinstance(file, PlainFile):
        will_be_read(file)
    elif mapped:
        progress = False  # it takes no time
    total = sum(info.nbytes for info in described(file).values())
    with reporting(progress, path, total) as report, _adding(report, total) as add:
        return tensors_of(file, add)


@contextmanager
def _adding(report: Progress, total: int) -> Iterator[Report]:
    """Gives a function that reports the sum of the bytes that it is called with."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    yield add


def deserialize(
    bytes: Any,
    *,
    key: AnyKey,
    expect: Any = None,
    sealed: bool | None = None,
    cipher: str | None = None,
    page_size: int | None = None,
    context: Any = None,
) -> list[tuple[str, dict[str, Any]]]:
    """Returns what the bytes of a file hold, in its order: pairs of a name and a dict with "shape"
    (a list), "dtype" in the spelling of safetensors, and "data". Where safetensors gives plain
    bytes, "data" is an EncryptedBuffer: data.read() decrypts it. Takes every dtype of the format,
    those of less than a byte too. Arguments and errors are those of load()."""
    found: list[tuple[str, dict[str, Any]]] = []
    opened_data: list[EncryptedBuffer] = []
    with opened_bytes(
        bytes, Options(key, expect, sealed, True, cipher, page_size, context=context)
    ) as file:
        try:
            for name, info in described(file).items():
                buffer = buffer_of(file, name)
                opened_data.append(buffer)
                found.append(
                    (name, {"shape": list(info.shape), "dtype": info.dtype, "data": buffer})
                )
        except BaseException:
            for buffer in opened_data:
                buffer.close()
            raise
    return found
