# SPDX-License-Identifier: Apache-2.0
"""Turns a plain file into a sealed one and back, and a sealed file into one for another key."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import Any

import numpy as np

from .. import errors
from ..binding import DEFAULT_CIPHER, TENSOR_PAGE_SIZE, wiped
from ..binding.arguments import checked_page_size
from ..files.atomic import AtomicFile
from ..files.safetensors_header import DTYPE_BITS, LENGTH_BYTES, open_file, read_all
from ..key_services.context import given
from ..keys import mac
from ._format import (
    GGUF_KEY,
    HEADER_CONTEXT,
    MAX_GENERATION,
    RESERVED_PREFIX,
    Index,
    layout,
    parse,
    serialized,
    to_json,
)
from ._plain_file import BLOCK, will_read_in_order
from ._progress import Progress, check_progress, reporting
from ._reader import (
    SealedFile,
    data_key_of,
    data_of,
    descriptor_of,
    expected,
    header_of,
    looks_sealed,
    open_sealed,
    placed_in,
    read_at,
)
from ._sources import FileSource, Source
from ._tensor_file import buffer_of, name_of
from ._writer import write_sealed
from .providers import AnyKey, check_key, file_context, named, wrap

__all__ = ["decrypt_file", "encrypt_file", "rewrap_file", "write_plain"]

#: The alignment of data in the plain files that decrypt_file() writes, as the format asks.
_ALIGNMENT = 8

#: Bytes that are copied between two reports.
_COPY = 16 << 20

_Path = str | os.PathLike[str]


def encrypt_file(
    src: _Path,
    dst: _Path,
    key: AnyKey,
    *,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
    context: Any = None,
    cipher: str = DEFAULT_CIPHER,
) -> str:
    """Writes the plain safetensors file `src`, its `__metadata__` included, to `dst` as a sealed
    one; see save_file(). Returns the pin of the new file, for `expect`: "FILE_ID:GENERATION".

    A new file gets the mode of `src`, whatever the umask, because it holds ciphertext. A file at
    `dst` is replaced only with overwrite=True, and its mode stays. `dst` may be `src`: the
    plaintext then stays on the disk until its blocks are used for something else, and in every
    backup. `progress` is as for load_file(), `context` and `cipher`
    as for save_file().

    Raises FileReadError, FileFormatError for a file that is sealed already or is not a safetensors
    file, FileWriteError (with errno EEXIST for a file that exists), and what a key provider raises.
    """
    check_progress(progress)
    check_key(key)
    page_size = checked_page_size(page_size)
    with open_file(src) as file:
        header = read_all(file)
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
        if looks_sealed(header):
            raise errors.FileFormatError(
                f"{os.fspath(src)!r} is sealed already; use rewrap_file(), or `pyccmem "
                f"rewrap`, for another key."
            )
        will_read_in_order(file)
        sources: list[Source] = [FileSource(file, entry) for entry in header.entries]
        for entry in header.entries:
            if entry.name.startswith(RESERVED_PREFIX):
                raise errors.FileFormatError(
                    f"{os.fspath(src)!r} has a tensor called {entry.name!a}, a name that sealed "
                    f"files use for themselves; rename it."
                )
        written = write_sealed(
            dst,
            sources,
            header.metadata,
            key=key,
            page_size=page_size,
            seal_names=bool(seal_names),
            progress=progress,
            overwrite=bool(overwrite),
            new_mode=mode,
            context=context,
            cipher=cipher,
        )
    return f"{written.file_id.hex()}:{written.generation}"


def decrypt_file(
    src: _Path,
    dst: _Path,
    key: AnyKey,
    *,
    expect: Any = None,
    mmap: bool = True,
    overwrite: bool = False,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> None:
    """Writes the sealed file `src` to `dst` as a plain safetensors file, of mode 0600. A file at
    `dst` is replaced only with overwrite=True; `dst` may be `src`. `expect`, `mmap`,
    `context` and `progress` are as for load_file().

    Warning: `dst` holds every weight in the clear: it can be read from the file, its disk and its
    backups, and deleting it does not overwrite it. Nothing else in pyccmem writes plaintext to a
    disk. Programs that can use pyccmem need no plain file.

    Verifies every page on the way. If one does not match its tag, nothing appears at `dst`, but the
    pages decrypted before it were in a temporary file on that disk. If the process is killed, that
    file (".pyccmem-...", mode 0600) stays until the next decrypt_file() to `dst`. Raises what
    load_file() raises for a sealed file, and FileWriteError (with errno EEXIST for a file that
    exists).
    """
    check_progress(progress)
    with open_sealed(src, key=key, expect=expected(expect), mmap=mmap, context=context) as opened:
        if GGUF_KEY in (opened.metadata() or {}):
            raise errors.FileFormatError(
                f"{os.fspath(src)!r} is a sealed GGUF file; use pyccmem.gguf.unseal(), or `pyccmem "
                f"decrypt`."
            )
        write_plain(opened, src, dst, overwrite=bool(overwrite), progress=progress)


def write_plain(
    opened: SealedFile,
    src: _Path,
    dst: _Path,
    *,
    overwrite: bool,
    progress: bool | Progress | None,
) -> None:
    """Does decrypt_file() for a file `src` that is open."""
    # The larger elements first, so that all are aligned, and then by name, as in the format's
    # own writer: of two files of the same tensors the plain bytes are the same.
    names = sorted(
        opened.offset_keys(), key=lambda name: (-DTYPE_BITS[opened.info(name).dtype], name)
    )
    document: dict[str, Any] = {}
    if opened.metadata():
        document["__metadata__"] = opened.metadata()
    total = 0
    for name in names:
        info = opened.info(name)
        document[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [total, total + info.nbytes],
        }
        total += info.nbytes
    text = to_json(document)
    text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
    raw = len(text).to_bytes(LENGTH_BYTES, "little") + text
    block = wiped.empty((min(BLOCK, max(total, 1)),), np.uint8)
    try:
        with (
            AtomicFile(dst, mode=0o600, private=True, overwrite=overwrite) as out,
            reporting(progress, src, total) as report,
        ):
            out.write_at(raw, 0)
            done = 0
            for name in names:
                with buffer_of(opened, name) as buffer:
                    for at in range(0, buffer.nbytes, BLOCK):
                        part = block[: min(BLOCK, buffer.nbytes - at)]
                        buffer.read_into(part, at)
                        out.write_at(part, len(raw) + done)
                        done += len(part)
                        report(done, total)
            out.commit()
    finally:
        block.fill(0)


def rewrap_file(
    path: _Path,
    old: AnyKey,
    new: AnyKey,
    *,
    dst: _Path | None = None,
    expect: Any = None,
    progress: bool | Progress | None = None,
    context: Any = None,
    new_context: Any = None,
) -> str:
    """Makes the sealed file `path` open with `new` instead of `old`. Returns its pin, for `expect`:
    the same file id, and the next generation. With `dst` the file stays as it is, and the new one
    appears there.

    The data key and the pages stay the same: nothing is decrypted, and the file is copied to a new
    one that replaces it whole or not at all. With `old` and the old file, or with the data key,
    these contents can still be read; see reencrypt_file(). A file of format 1
    becomes one of format 2. `context` is as for load_file(); `new_context` takes the place of what
    the writer named (see save_file()), which else stays as it is.

    Raises what load_file() raises for a sealed file, FileWriteError, and what a key provider
    raises.
    """
    check_progress(progress)
    check_key(new)
    texts = None if new_context is None else given(new_context)
    with open_sealed(path, key=old, expect=expected(expect), context=context) as opened:
        header = header_of(opened)
        if header.generation >= MAX_GENERATION:
            raise errors.FileFormatError(
                f"{os.fspath(path)!r} has reached the last generation; decrypt and encrypt it anew."
            )
        bound_to = file_context(header.file_id, named(header.context) if texts is None else texts)
        provider, wrapped, bound = wrap(new, data_key_of(opened), bound_to)
        header = replace(
            header,
            generation=header.generation + 1,
            provider=provider,
            wrapped=wrapped,
            bound=bound,
            context=bound_to,
        )
        stored = tuple(tensor for tensor, _ in placed_in(opened).values())
        if not isinstance(header.index, Index):
            stored = (header.index, *stored)
        raw, seen = serialized(header, stored)
        parse(seen)
        _, table = layout(seen, header.page_size)
        begin, end = data_of(opened)
        mode = stat.S_IMODE(os.fstat(descriptor_of(opened)).st_mode) & 0o777
        with (
            AtomicFile(path if dst is None else dst, new_mode=mode) as out,
            reporting(progress, path, end - begin) as report,
        ):
            out.write_at(raw, 0)
            _copy(opened, begin, end, out, len(raw), report)
            made = mac(data_key_of(opened), header.cipher, HEADER_CONTEXT, raw)
            out.write_at(made, table)
            out.commit()
    return f"{header.file_id.hex()}:{header.generation}"


def _copy(
    opened: SealedFile, begin: int, end: int, out: AtomicFile, offset: int, report: Progress
) -> None:
    """Copies bytes of a file unchanged, within the kernel if it can."""
    source = descriptor_of(opened)
    at, in_kernel = begin, hasattr(os, "copy_file_range")
    while at < end:
        count = min(_COPY, end - at)
        if in_kernel:
            try:
                copied = os.copy_file_range(
                    source, out.descriptor, count, offset_src=at, offset_dst=offset + at - begin
                )
            except OSError:  # the other way works between any file systems, or reports the error
                in_kernel = False
                continue
        else:
            data = read_at(opened, at, count, "its data")
            out.write_at(data, offset + at - begin)
            copied = len(data)
        if not copied:
            raise errors.FileFormatError(
                f"The file {name_of(opened)!a} became shorter while it was copied; do it again "
                f"when nothing writes to it."
            )
        at += copied
        report(at - begin, end - begin)
