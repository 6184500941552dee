# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, read straight into ciphertext.

    weights = load_file("model.safetensors", key=key)

The file's bytes pass through one block of 1 MiB of plaintext, which is wiped. The file itself stays
what it was: whoever may read it, on disk or in the kernel's page cache, reads the weights.

    header dtype            dtype of the tensor
    F64 F32 F16             float64 float32 float16
    C64                     complex64
    I64 I32 I16 I8          int64 int32 int16 int8
    U64 U32 U16 U8          uint64 uint32 uint16 uint8
    BOOL                    bool
    BF16                    bfloat16 of ml_dtypes, like all that follow
    F8_E4M3 F8_E5M2         float8_e4m3fn float8_e5m2
    F8_E4M3FNUZ F8_E5M2FNUZ float8_e4m3fnuz float8_e5m2fnuz
    F8_E8M0                 float8_e8m0fnu
    F4 F6_E2M3 F6_E3M2      refused: NumPy has no type for elements of less than a byte
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from . import errors
from ._lib import DEFAULT_CIPHER, TENSOR_PAGE_SIZE
from ._plain import empty
from ._safetensors_header import Entry, open_file, read_header
from .buffer import EncryptedBuffer
from .keys import Key
from .tensor import EncryptedTensor

__all__ = ["load_file"]

#: Called with the bytes loaded so far and the bytes there are.
Progress = Callable[[int, int], object]

#: Plaintext bytes held at once; a multiple of every page size. Measured: from 256 KiB to 4 MiB it
#: makes no difference, and page faults on the new ciphertext take the most time.
_BLOCK = 1 << 20

#: Files from this size on are worth a progress bar.
_LARGE = 256 << 20

_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "C64": "<c8",
}

_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def dtype_of(entry: Entry) -> np.dtype[Any]:
    """The dtype of an entry. Raises MissingPackageError, ArgumentTypeError."""
    if entry.dtype in _NUMPY:
        return np.dtype(_NUMPY[entry.dtype])
    if entry.dtype not in _ML_DTYPES:
        raise errors.ArgumentTypeError(
            f"Tensor {entry.name!a} is of dtype {entry.dtype}, whose elements are smaller than a "
            f"byte, and NumPy has no such type; convert it to one of "
            f"{', '.join([*_NUMPY, *_ML_DTYPES])}."
        )
    name = _ML_DTYPES[entry.dtype]
    try:
        dtype: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return dtype
    except ImportError:
        why = "which is not installed"
    except AttributeError:
        why = "and the version installed is too old for it"
    raise errors.MissingPackageError(
        f"Tensor {entry.name!a} is of dtype {entry.dtype}, which NumPy has from the package "
        f"ml_dtypes, {why}; pip install --upgrade ml_dtypes, or pip install 'pyccmem[ml_dtypes]'."
    )


def load_file(
    path: str | os.PathLike[str],
    *,
    key: Key,
    cipher: str = DEFAULT_CIPHER,
    page_size: int = TENSOR_PAGE_SIZE,
    progress: bool | Progress | None = None,
) -> dict[str, EncryptedTensor]:
    """Every tensor of a safetensors file by name, each in an EncryptedBuffer of its own and of the
    tensor's name.

    At most 1 MiB of plaintext exists at once, and none when the call returns or raises.
    `progress`: None for a bar on standard error when that is a terminal, rich is installed and the
    file is large; True for a bar in any case; False for none; or a function that is called with the
    bytes loaded so far and the bytes there are.

    Raises FileReadError, FileFormatError for a file that is cut short, changes under the reader or
    breaks the format's rules, MissingPackageError for a dtype (or a bar) whose package is not
    installed, ArgumentTypeError for elements of less than a byte, and what EncryptedBuffer raises.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise errors.ArgumentTypeError(
            f"progress must be None, True, False or a function, not {type(progress).__name__}."
        )
    tensors: dict[str, EncryptedTensor] = {}
    opened: list[EncryptedBuffer] = []
    with open_file(path) as file:
        entries = read_header(file)
        dtypes = [dtype_of(entry) for entry in entries]
        total = sum(entry.nbytes for entry in entries)
        _will_read_in_order(file)
        block = empty((min(_BLOCK, max((entry.nbytes for entry in entries), default=0)),), np.uint8)
        try:
            with _reporting(progress, os.fspath(path), total) as report:
                done = 0
                for entry, dtype in zip(entries, dtypes, strict=True):
                    buffer = EncryptedBuffer(
                        entry.nbytes, key=key, cipher=cipher, page_size=page_size, name=entry.name
                    )
                    opened.append(buffer)
                    for count in _fill(buffer, file, entry, block):
                        done += count
                        report(done, total)
                    tensors[entry.name] = EncryptedTensor._adopt(buffer, entry.shape, dtype)
        except BaseException:
            for buffer in opened:
                buffer.close()
            raise
        finally:
            # Not left to the array's end: an exception's traceback would keep it alive.
            block.fill(0)
    return tensors


def _fill(
    buffer: EncryptedBuffer, file: BinaryIO, entry: Entry, block: npt.NDArray[np.uint8]
) -> Iterator[int]:
    """Moves one tensor from the file's position into `buffer` through `block`; yields the bytes of
    each step."""
    for start in range(0, entry.nbytes, _BLOCK):
        part = block[: min(_BLOCK, entry.nbytes - start)]
        _read_exactly(file, part.data, entry)
        if entry.dtype == "BOOL" and part.max() > 1:
            raise errors.FileFormatError(
                f"This is not a valid safetensors file: tensor {entry.name!a} is of dtype BOOL and "
                f"has a byte that is neither 0 nor 1."
            )
        buffer.write(part, start)
        yield len(part)


def _read_exactly(file: BinaryIO, view: memoryview, entry: Entry) -> None:
    at = 0
    while at < len(view):
        try:
            count = file.readinto(view[at:])  # type: ignore[attr-defined]
        except OSError as error:
            answer = errors.FileReadError(
                f"The data of tensor {entry.name!a} cannot be read: {error.strerror}; check the "
                f"disk the file is on."
            )
            answer.errno, answer.filename = error.errno, str(getattr(file, "name", ""))
            raise answer from None
        if not count:
            raise errors.FileFormatError(
                f"The file became shorter while it was read: it ends within tensor {entry.name!a}; "
                f"load it again when nothing writes to it."
            )
        at += count


def _will_read_in_order(file: BinaryIO) -> None:
    """Asks the kernel for a longer read-ahead; only speed depends on it."""
    if hasattr(os, "posix_fadvise"):
        try:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError:
            return


@contextmanager
def _reporting(progress: bool | Progress | None, name: str, total: int) -> Iterator[Progress]:
    """The function to call after each step, for as long as the loading lasts."""
    if callable(progress):
        yield progress
        return
    bar = None
    if progress or (progress is None and total >= _LARGE and sys.stderr.isatty()):
        try:
            bar = _bar()
        except ImportError:
            if progress:
                raise errors.MissingPackageError(
                    "The progress bar needs the package rich, which is not installed; "
                    "pip install 'pyccmem[cli]', or pass progress=False."
                ) from None
    if bar is None:
        yield lambda done, total: None
        return
    with bar:
        task = bar.add_task(os.path.basename(name), total=total)
        yield lambda done, total: bar.update(task, completed=done)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
