# SPDX-License-Identifier: Apache-2.0
"""Writes sealed GGUF files in the clear again."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import wiped
from ..buffer import EncryptedBuffer
from ..files.atomic import AtomicFile
from ..safetensors import Progress
from ..safetensors._convert import write_plain
from ..safetensors._plain_file import BLOCK
from ..safetensors._progress import check_progress, reporting
from ..safetensors._reader import expected, open_sealed
from ..safetensors._tensor_file import buffer_of
from ..safetensors.providers import AnyKey
from ._container import GAPS, is_gguf_content
from ._open import SealedGGUF, container_of, open_sealed_gguf, over

__all__ = ["decrypt", "unseal"]

Bytes = npt.NDArray[np.uint8]

_Path = str | os.PathLike[str]


def unseal(
    sealed: _Path,
    path: _Path,
    key: AnyKey,
    *,
    expect: Any = None,
    mmap: bool = True,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> None:
    """Writes the GGUF file that was sealed as `sealed` to `path`, byte for byte as it was, of mode
    0600. The warning of pyccmem.safetensors.decrypt_file() holds: every weight is then in the clear
    on the disk. A file at `path` is replaced only with overwrite=True. `expect`, `mmap`,
    `context` and `progress` are as for load_file().

    Verifies every page on the way; if one does not match its tag, nothing appears at `path`. Raises
    what open_sealed() raises, and FileWriteError (with errno EEXIST for a file that exists).
    """
    check_progress(progress)
    with open_sealed_gguf(sealed, key, expect=expect, mmap=mmap, context=context) as opened:
        _write(opened, sealed, path, overwrite=bool(overwrite), progress=progress)


def decrypt(
    sealed: _Path,
    path: _Path,
    key: AnyKey,
    *,
    expect: Any = None,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> None:
    """Does unseal() or pyccmem.safetensors.decrypt_file(), as the file says that it is. The key is
    asked for once. Raises what these raise."""
    check_progress(progress)
    with open_sealed(sealed, key=key, expect=expected(expect), context=context) as file:
        if not is_gguf_content(file.metadata()):
            write_plain(file, sealed, path, overwrite=bool(overwrite), progress=progress)
            return
        with over(file, sealed) as opened:
            _write(opened, sealed, path, overwrite=bool(overwrite), progress=progress)


def _write(
    opened: SealedGGUF,
    sealed: _Path,
    path: _Path,
    *,
    overwrite: bool,
    progress: bool | Progress | None,
) -> None:
    header, file = opened.header, container_of(opened)
    block: Bytes = wiped.empty((min(BLOCK, max(header.size, 1)),), np.uint8)
    try:
        with (
            AtomicFile(path, mode=0o600, private=True, overwrite=overwrite) as out,
            reporting(progress, sealed, header.size) as report,
        ):
            done = len(header.raw)
            out.write_at(header.raw, 0)
            report(done, header.size)

            def move(buffer: EncryptedBuffer | None, first: int, at: int, count: int) -> None:
                """Writes `count` bytes of `buffer` from `first` on, or zeros, at `at`."""
                nonlocal done
                if buffer is None:
                    block.fill(0)
                for step in range(0, count, BLOCK):
                    part = block[: min(BLOCK, count - step)]
                    if buffer is not None:
                        buffer.read_into(part, first + step)
                    out.write_at(part, at + step)
                    done += len(part)
                    report(done, header.size)

            with buffer_of(file, GAPS) as gaps:
                first = 0
                for begin, end in header.gaps():
                    move(gaps if gaps.nbytes else None, first, begin, end - begin)
                    first += end - begin
            for tensor in header.in_order():
                with buffer_of(file, tensor.name) as buffer:
                    move(buffer, 0, tensor.start, tensor.nbytes)
            out.commit()
    finally:
        block.fill(0)
