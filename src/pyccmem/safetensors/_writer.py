# SPDX-License-Identifier: Apache-2.0
"""Writes sealed files, each under a data key, a file id and store ids of its own.

The plaintext passes through one block of 1 MiB that is wiped. The header is planned first, because
its length does not depend on the tags. Then the blobs and their records are written, and the header
last.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import AUTHENTICATED, CIPHERS, DEFAULT_CIPHER, lib, wiped
from ..files.atomic import AtomicFile
from ..files.safetensors_header import open_file, read_all
from ..key_services.context import given
from ..keys import Key, mac
from ._format import (
    HEADER_CONTEXT,
    INDEX_BLOB,
    MAX_GENERATION,
    METADATA_KEY,
    RECORD_BYTES,
    Blob,
    Index,
    SealedHeader,
    SealedTensor,
    index_text,
    layout,
    parse,
    serialized,
    to_json,
)
from ._plain_file import BLOCK
from ._progress import Progress, reporting
from ._sealer import Sealer
from ._sources import Source
from .providers import AnyKey, file_context, wrap

__all__ = ["generation_at", "sealed_bytes", "sealed_memory", "write_sealed"]

Block = npt.NDArray[np.uint8]

_ID_BYTES: int = lib.CCMEM_STORE_ID_SIZE

#: Bytes written at once, from a multiple of this size on, so that the page cache can keep the file
#: in huge pages, from which it is mapped.
_HUGE_PAGE = 2 << 20


def generation_at(path: str | os.PathLike[str]) -> int:
    """Returns the generation that the sealed file at `path` gives for itself; 0 if there is
    none."""
    try:
        with open_file(path) as file:
            header = read_all(file)
            return parse(header).generation if METADATA_KEY in header.metadata else 0
    except errors.PyccmemError:
        return 0


def checked_cipher(cipher: Any) -> str:
    """Returns the name of a suite with tags. Raises ArgumentError, ArgumentTypeError."""
    if not isinstance(cipher, str):
        raise errors.ArgumentTypeError(f"cipher must be a str, not {type(cipher).__name__}.")
    if cipher not in AUTHENTICATED:
        raise errors.ArgumentError(
            f"cipher is {cipher!r}; a sealed file takes one with tags: "
            f"{', '.join(name for name in CIPHERS if name in AUTHENTICATED)}."
        )
    return cipher


def write_sealed(
    path: str | os.PathLike[str],
    sources: list[Source],
    metadata: Mapping[str, str],
    *,
    key: AnyKey,
    page_size: int,
    seal_names: bool,
    progress: bool | Progress | None,
    overwrite: bool = True,
    new_mode: int = 0o600,
    context: Any = None,
    cipher: str = DEFAULT_CIPHER,
) -> SealedHeader:
    """Writes a sealed file of `sources`, in their order, at `path`, with `new_mode` if there was no
    file, and returns its header. Raises FileWriteError (without `overwrite` also for a file that
    exists), ArgumentError for a header that gets too long, ArgumentError or ArgumentTypeError for
    the context, and what reading the sources and wrapping the key raises."""
    texts, cipher = given(context), checked_cipher(cipher)
    with AtomicFile(path, new_mode=new_mode, overwrite=overwrite) as out:
        generation = generation_at(out.path) % MAX_GENERATION + 1
        header = _write(
            _OnDisk(out),
            path,
            sources,
            metadata,
            generation,
            key,
            page_size,
            seal_names,
            progress,
            texts,
            cipher,
        )
        out.commit()
    return header


def sealed_bytes(
    sources: list[Source],
    metadata: Mapping[str, str],
    *,
    key: AnyKey,
    page_size: int,
    seal_names: bool,
    context: Any = None,
    cipher: str = DEFAULT_CIPHER,
) -> bytes:
    """Returns the bytes of a sealed file, of generation 1. Raises what write_sealed() raises for
    its arguments, OutOfMemoryError."""
    texts, cipher = given(context), checked_cipher(cipher)
    out = _Memory()
    _write(out, "<bytes>", sources, metadata, 1, key, page_size, seal_names, False, texts, cipher)
    return out.contents()


def sealed_memory(
    sources: list[Source],
    metadata: Mapping[str, str],
    *,
    key: AnyKey,
    page_size: int,
    seal_names: bool,
    context: Any = None,
) -> memoryview:
    """Does sealed_bytes() without a copy at the end: returns the memory that they were written to,
    which begins with a page of the system's, and goes with the last view of it."""
    texts = given(context)
    out = _Memory()
    _write(out, "<bytes>", sources, metadata, 1, key, page_size, seal_names, False, texts)
    return out.memory.toreadonly()


class _Target(Protocol):
    """Where a sealed file is written."""

    def begin(self, size: int) -> None:
        """Called first, with the size of the whole file."""

    def write_at(self, data: Any, offset: int) -> None: ...


class _OnDisk:
    """A file that appears whole or not at all."""

    def __init__(self, file: AtomicFile) -> None:
        self.write_at = file.write_at

    def begin(self, size: int) -> None:
        """Nothing: the file grows."""


class _Memory:
    """A file in memory."""

    memory: memoryview

    def begin(self, size: int) -> None:
        try:
            pages = mmap.mmap(-1, size)
        except (OSError, ValueError, OverflowError):
            raise self._refused() from None
        with contextlib.suppress(OSError):  # costs speed only
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.memory = memoryview(pages)

    def write_at(self, data: Any, offset: int) -> None:
        with memoryview(data) as view, view.cast("B") as flat:
            self.memory[offset : offset + len(flat)] = flat

    def contents(self) -> bytes:
        try:
            return bytes(self.memory)
        except MemoryError:
            raise self._refused() from None

    def _refused(self) -> errors.OutOfMemoryError:
        return errors.OutOfMemoryError(
            "The system refused memory for the bytes of a sealed file; write it with save_file()."
        )


def _write(
    out: _Target,
    path: str | os.PathLike[str],
    sources: list[Source],
    metadata: Mapping[str, str],
    generation: int,
    key: AnyKey,
    page_size: int,
    seal_names: bool,
    progress: bool | Progress | None,
    texts: Mapping[str, str],
    cipher: str = DEFAULT_CIPHER,
) -> SealedHeader:
    """Writes a sealed file to `out`, and returns its header."""
    file_id = secrets.token_bytes(_ID_BYTES)
    context = file_context(file_id, texts)
    with Key.generate() as data_key:
        provider, wrapped, bound = wrap(key, data_key, context)
        tensors = tuple(
            SealedTensor(
                source.name,
                source.dtype,
                source.shape,
                f"t{at}" if seal_names else source.name,
                source.nbytes,
                secrets.token_bytes(_ID_BYTES),
            )
            for at, source in enumerate(sources)
        )
        index = Index(tensors, dict(metadata))
        text = to_json(index_text(index)) if seal_names else b""
        sealed_index = SealedTensor(
            INDEX_BLOB, "U8", (len(text),), INDEX_BLOB, len(text), secrets.token_bytes(_ID_BYTES)
        )
        header = SealedHeader(
            file_id=file_id,
            generation=generation,
            cipher=cipher,
            page_size=page_size,
            provider=provider,
            wrapped=wrapped,
            bound=bound,
            context=context,
            index=sealed_index if seal_names else index,
        )
        stored = (sealed_index, *tensors) if seal_names else tensors
        raw, seen = serialized(header, stored)
        # The reader's checks, before anything is written: a file that cannot be read back must not
        # be made.
        parse(seen)
        blobs, table = layout(seen, page_size)
        out.begin(seen.size)
        total = sum(source.nbytes for source in sources)
        with reporting(progress, path, total) as report:
            blobs_left = iter(blobs)
            index_blob = next(blobs_left) if seal_names else None
            stream = _Stream(out, data_key, cipher, page_size, report, total)
            try:
                tensors = tuple(
                    replace(tensor, table_mac=stream.seal(tensor, blob, source))
                    for tensor, blob, source in zip(tensors, blobs_left, sources, strict=True)
                )
                index = Index(tensors, dict(metadata))
                if index_blob is None:
                    header = replace(header, index=index)
                else:
                    own = _Text(sealed_index, to_json(index_text(index)))
                    sealed_index = replace(
                        sealed_index, table_mac=stream.seal(sealed_index, index_blob, own)
                    )
                    header = replace(header, index=sealed_index)
                stream.flush()
            finally:
                stream.wipe()
        stored = (sealed_index, *tensors) if seal_names else tensors
        planned = len(raw)
        raw, _ = serialized(header, stored)
        assert len(raw) == planned, "the header's length depends on a tag"
        out.write_at(raw, 0)
        out.write_at(mac(data_key, header.cipher, HEADER_CONTEXT, raw), table)
    return header


class _Text:
    """The index as a source."""

    def __init__(self, tensor: SealedTensor, text: bytes) -> None:
        self.name, self.dtype, self.shape = tensor.name, tensor.dtype, tensor.shape
        self.nbytes = tensor.nbytes
        self._text = np.frombuffer(text, np.uint8)

    def read(self, part: Block, at: int) -> None:
        np.copyto(part, self._text[at : at + len(part)])


class _Stream:
    """Seals sources one after the other, through one block of plaintext and a huge page of
    ciphertext."""

    def __init__(
        self,
        out: _Target,
        data_key: Key,
        cipher: str,
        page_size: int,
        report: Progress,
        total: int,
    ) -> None:
        self._out, self._key, self._cipher, self._page_size = out, data_key, cipher, page_size
        self._report, self._total, self._done = report, total, 0
        self._plain: Block = wiped.empty((BLOCK,), np.uint8)
        self._sealed: Block = np.empty(_HUGE_PAGE, np.uint8)
        self._begin = self._end = 0  # the part of the file that is sealed and not yet written

    def seal(self, tensor: SealedTensor, blob: Blob, source: Source) -> bytes:
        """Writes one blob and its records. Returns the table_mac."""
        page_size = self._page_size
        records: Block = np.zeros(blob.npages * RECORD_BYTES, np.uint8)
        records[: 8 * blob.npages].view("<u8")[:] = 1
        tags = records[8 * blob.npages :]
        with Sealer(self._key, tensor.store_id, page_size, cipher=self._cipher) as sealer:
            at = 0
            while at < tensor.nbytes:
                room = self._room(blob.start + at)
                count = min(BLOCK, tensor.nbytes - at, len(room))
                padded = -(-count // page_size) * page_size
                source.read(self._plain[:count], at)
                self._plain[count:padded] = 0
                page = at // page_size
                made = sealer.seal(page, self._plain[:padded], room[:padded])
                tags[16 * page : 16 * page + len(made)] = np.frombuffer(made, np.uint8)
                self._end += padded
                at += count
                if tensor.name != INDEX_BLOB:
                    self._done += count
                    self._report(self._done, self._total)
        self._out.write_at(records, blob.records)
        return mac(self._key, self._cipher, tensor.store_id, records)

    def _room(self, offset: int) -> Block:
        """Returns the memory for the pages from `offset` of the file on, up to the end of the huge
        page there."""
        if offset != self._end or not offset % _HUGE_PAGE:
            self.flush()
            self._begin = self._end = offset
        return self._sealed[offset % _HUGE_PAGE :]

    def flush(self) -> None:
        """Writes the pages that are sealed so far."""
        first = self._begin % _HUGE_PAGE
        self._out.write_at(self._sealed[first : first + self._end - self._begin], self._begin)
        self._begin = self._end

    def wipe(self) -> None:
        """Overwrites the block now, because an exception's traceback may keep it alive."""
        self._plain.fill(0)
