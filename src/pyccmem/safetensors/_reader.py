# SPDX-License-Identifier: Apache-2.0
"""Opens sealed files. Their tensors become stores over the file's own pages, without decryption.

A file is checked in this order: the lengths and places in its header, against each other and the
file's size; the data key, which only the right key unwraps; the header's tag; what the caller
expects; a tensor's records, by its table_mac, when that tensor is opened; and each page, by its
tag, whenever it is read. Until the header's tag has matched, only the header is in memory.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from .. import errors
from ..buffer import EncryptedBuffer
from ..core.forks import opening
from ..files.safetensors_header import Header, about, open_file, read_all, shown
from ..key_services.context import given
from ..key_services.leases import Lease, clock
from ..keys import Key, another, check_open, is_usable, mac
from ._format import (
    HEADER_CONTEXT,
    INDEX_BLOB,
    MAC_BYTES,
    METADATA_KEY,
    RECORD_BYTES,
    Blob,
    Index,
    SealedHeader,
    SealedTensor,
    layout,
    parse,
    parse_index,
    place,
    wrong,
)
from ._handles import memory_of
from ._lease import lease_of
from ._origin import SealedOrigin
from ._pages import FilePages
from ._sharing import warn_if_unshared
from ._slices import TensorSlice
from ._tensor_file import Report, TensorFile, TensorInfo
from .providers import AnyKey, KeySource, source_of, unwrap

__all__ = [
    "Expected",
    "Placed",
    "SealedFile",
    "data_key_of",
    "data_of",
    "descriptor_of",
    "expected",
    "header_of",
    "looks_sealed",
    "open_sealed",
    "opened_over",
    "placed_in",
    "read_at",
    "structure",
]

Placed = dict[str, tuple[SealedTensor, Blob]]


@dataclass(frozen=True)
class Expected:
    """The file, and its least generation, that a caller accepts."""

    file_id: str
    generation: int


def expected(value: Any) -> Expected | None:
    """Returns what the argument `expect` of the public functions says: None, the text that `pyccmem
    inspect` prints ("FILE_ID:GENERATION"), a pair, or a mapping or object with these two. Raises
    ArgumentError, ArgumentTypeError."""
    if value is None:
        return None
    found: Any = value
    if isinstance(value, str):
        identity, _, number = value.partition(":")
        digits = number.isascii() and number.isdigit() and len(number) <= 16
        found = (identity, int(number) if digits else -1)
    elif isinstance(value, Mapping):
        found = (value.get("file_id"), value.get("generation"))
    elif hasattr(value, "file_id") and hasattr(value, "generation"):
        found = (value.file_id, value.generation)
    if (
        not isinstance(found, (tuple, list))
        or len(found) != 2
        or not isinstance(found[0], str)
        or type(found[1]) is not int
    ):
        raise errors.ArgumentTypeError(
            f"expect must be 'FILE_ID:GENERATION', a pair or a dict of these, not {shown(value)}."
        )
    identity, generation = found[0].lower(), found[1]
    if len(identity) != 32 or not set(identity) <= set("0123456789abcdef") or generation < 1:
        raise errors.ArgumentError(
            f"expect is {shown(value)}; it must be a file id of 32 hexadecimal digits and a "
            f"generation from 1, as inspect_file() and `pyccmem inspect` show them."
        )
    return Expected(identity, generation)


def looks_sealed(header: Header) -> bool:
    """Returns True for the header of a sealed file, sound or not."""
    return METADATA_KEY in header.metadata


def structure(header: Header) -> tuple[SealedHeader, list[Blob], int, Placed | None]:
    """Returns what the header says, the blobs of the tensors (and of a sealed index), the offset of
    the table, and each tensor's place, or None if the index is sealed. Raises FileFormatError."""
    described = parse(header)
    blobs, table = layout(header, described.page_size)
    if isinstance(described.index, Index):
        placed = place(described.index.tensors, blobs, header, described.page_size)
        return described, blobs, table, placed
    if not blobs or blobs[0].name != INDEX_BLOB:
        raise wrong("its first tensor is not the sealed index")
    if [blob.name for blob in blobs[1:]] != [f"t{at}" for at in range(len(blobs) - 1)]:
        raise wrong("its blobs are not t0, t1, ... in order")
    place((described.index,), blobs[:1], header, described.page_size)
    return described, blobs, table, None


class _Origin(SealedOrigin):
    """The origin of tensors that were returned."""

    __slots__ = ()

    def _opened(
        self, path: str, file: BinaryIO, header: Header, key: Any, mmap: bool
    ) -> SealedFile:
        return SealedFile._of(path, file, header, key=key, expect=None, mmap=mmap, anew=True)

    def _buffer(self, file: SealedFile, name: str) -> EncryptedBuffer:
        return file._tensor_buffer(name)


class SealedFile(TensorFile):
    """An open sealed file, made by safe_open(); a context manager.

    Its tensors lie over the pages of the file, still ciphertext, and are read-only: tensor.copy()
    gives a tensor that can be written.
    """

    __slots__ = (
        "_anonymous",
        "_data_key",
        "_extent",
        "_file",
        "_header",
        "_index",
        "_lease",
        "_origin",
        "_pages",
        "_placed",
        "_source",
    )

    _instead_of_a_copy = "open the file again"

    _file: BinaryIO | None
    _data_key: Key
    _extent: tuple[int, int]  # where the data begin and end in the file
    _header: SealedHeader
    _index: Index
    _lease: Lease | None  # of the data key
    _placed: Placed
    _anonymous: bool
    _origin: SealedOrigin | None  # of the tensors that were returned
    _pages: FilePages | None  # of all tensors, made with the first one
    _source: KeySource | None

    def __init__(self) -> None:
        self._file = None
        raise errors.ArgumentTypeError("SealedFile() opens nothing; use safe_open(path, key=...).")

    @classmethod
    def _of(
        cls,
        path: str | os.PathLike[str],
        file: BinaryIO,
        header: Header,
        *,
        key: AnyKey,
        expect: Expected | None,
        mmap: bool,
        anew: bool = False,
        context: Mapping[str, str] | None = None,
    ) -> SealedFile:
        """Takes over `file` and checks the tag of its header. `anew`: it serves tensors that
        already have an origin."""
        self = object.__new__(cls)
        self._set_up(os.fsdecode(path))
        self._file, self._anonymous = file, not mmap
        self._extent = (header.data_start, header.size)
        with about(self._path):
            described, blobs, table, placed = structure(header)
        self._header, self._origin, self._pages = described, None, None
        self._lease, fetched = None, clock()
        self._data_key = unwrap(key, described, context)
        try:
            tag = self._read_at(table, MAC_BYTES, "the table")
            made = mac(self._data_key, described.cipher, HEADER_CONTEXT, header.raw)
            if not hmac.compare_digest(tag, made):
                raise errors.IntegrityError(
                    f"The header of {self._path!a} does not match its tag: a part of it was "
                    f"changed since it was sealed, the names, dtypes, shapes or places of its "
                    f"tensors among them; use a good copy of the file."
                )
            self._check_expected(expect)
            self._begin_lease(key, fetched)
            if placed is None:
                self._index = self._open_index(blobs[0])
                with about(self._path):
                    placed = place(self._index.tensors, blobs[1:], header, described.page_size)
            else:
                assert isinstance(described.index, Index), "placed by structure()"
                self._index = described.index
            self._placed = placed
            self._source = source_of(key)
            self._origin = (
                None
                if anew or memory_of(file) is not None
                else _Origin(self._path, file.fileno(), header, self._source, mmap)
            )
        except BaseException:
            self._data_key.close()
            raise
        return self

    def _key(self) -> Key:
        """Returns the data key, which a forked child fetches again. Raises ClosedError, ForkError,
        KeyUnavailableError while it is withheld."""
        if self._lease is not None:
            self._lease.check()
        try:
            check_open(self._data_key)
        except errors.ForkError:
            with opening():
                if self._source is not None and not is_usable(self._data_key):
                    key, fetched = self._source.key(), clock()
                    self._data_key = unwrap(key, self._header)
                    self._pages = None  # they are under the parent's key
                    self._begin_lease(key, fetched)
        return self._data_key

    def _begin_lease(self, key: AnyKey, fetched: float) -> None:
        self._lease = lease_of(key, self._data_key, self._header, fetched)
        if self._lease is not None:
            self._lease.add(self)

    def withhold(self) -> None:
        """Wipes the data key; for the lease of a key that is held for a time."""
        self._data_key.close()

    def restore(self, key: Key) -> None:
        """Goes on with the data key."""
        if self._file is not None:
            self._data_key = another(key)

    def _read_at(self, offset: int, count: int, what: str | SealedTensor) -> bytes:
        """Returns a part of the file; `what` names it, or is the tensor to which it belongs in the
        table."""
        file = self._opened()
        memory = memory_of(file)
        if memory is not None:  # of others, who may change it: what is checked is a copy
            return bytes(memory[offset : offset + count])
        parts: list[bytes] = []
        while count:
            try:
                piece = os.pread(file.fileno(), count, offset)
            except OSError as error:
                part = self._part(what)
                raise errors.FileReadError(
                    f"{part[0].upper()}{part[1:]} of {self._path!a} cannot be read: "
                    f"{error.strerror}; check the disk the file is on."
                ).of_system(error.errno, self._path) from None
            if not piece:
                raise errors.FileFormatError(
                    f"The file {self._path!a} became shorter while it was read: it ends within "
                    f"{self._part(what)}; open it again when nothing writes to it."
                )
            parts.append(piece)
            count -= len(piece)
            offset += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_expected(self, expect: Expected | None) -> None:
        if expect is None:
            return
        if self.file_id != expect.file_id:
            raise errors.IntegrityError(
                f"{self._path!a} is another file than expected: its id is {self.file_id}, not "
                f"{expect.file_id}; use the file that was pinned, or pin this one if it is right."
            )
        if self.generation < expect.generation:
            raise errors.IntegrityError(
                f"{self._path!a} is older than expected: it is of generation {self.generation}, "
                f"and {expect.generation} was pinned; use the newer file."
            )

    def _open_index(self, blob: Blob) -> Index:
        tensor = self._header.index
        assert isinstance(tensor, SealedTensor), "a sealed index"
        with self._buffer(self._file_pages([blob], anonymous=True), tensor, blob) as buffer:
            # Names and shapes are shown to the caller, so they need no wiped memory.
            return parse_index(buffer.read())

    def _file_pages(self, blobs: list[Blob], *, anonymous: bool) -> FilePages:
        """Returns the FilePages for buffers over these blobs, which are in order."""
        size = self._header.page_size
        begin = blobs[0].start if blobs else 0
        end = blobs[-1].start + blobs[-1].npages * size if blobs else 0
        pages = FilePages(self._key(), self._header.cipher, size, begin, end, anonymous)
        if self._lease is not None:
            pages.lease(self._lease)
        return pages

    def _part(self, what: str | SealedTensor) -> str:
        """Returns the name of a part of the file in errors."""
        return what if isinstance(what, str) else f"the table for {self._called(what)}"

    def _called(self, tensor: SealedTensor) -> str:
        """Returns the name of a tensor, or of the index, in errors."""
        return "the index" if tensor is self._header.index else f"tensor {shown(tensor.name)}"

    def _buffer(self, pages: FilePages, tensor: SealedTensor, blob: Blob) -> EncryptedBuffer:
        """Returns a buffer over a tensor's pages, if its records match its table_mac."""
        records = self._read_at(blob.records, blob.npages * RECORD_BYTES, tensor)
        made = mac(self._key(), self._header.cipher, tensor.store_id, records)
        if not hmac.compare_digest(tensor.table_mac, made):
            raise errors.IntegrityError(
                f"The versions and tags of {self._called(tensor)} in {self._path!a} do not match "
                f"their own tag: they were changed since the file was sealed, or are of an older "
                f"one; use a good copy of the file.",
                name=tensor.name,
            )
        file = self._opened()
        memory = memory_of(file)
        if memory is not None:
            return pages.buffer_in(
                memory[blob.start :],
                tensor.nbytes,
                store_id=tensor.store_id,
                records=records,
                name=tensor.name,
            )
        return pages.buffer(
            file.fileno(),
            blob.start,
            tensor.nbytes,
            store_id=tensor.store_id,
            records=records,
            name=tensor.name,
            origin=self._origin,
            path=self._path,
        )

    def _tensor_buffer(self, name: str, report: Report | None = None) -> EncryptedBuffer:
        tensor, blob = self._placed[name]
        self._opened()
        self._key()  # first, because it drops a parent's pages
        pages = self._pages
        if pages is None:
            blobs = [place[1] for place in self._placed.values()]
            pages = self._pages = self._file_pages(blobs, anonymous=self._anonymous)
        buffer = self._buffer(pages, tensor, blob)
        if not self._anonymous and memory_of(self._opened()) is None:
            warn_if_unshared(self._path)
        if report is not None:
            report(tensor.nbytes)
        return buffer

    # ---- tensors ----

    def _names(self) -> Placed:
        self._opened()
        return self._placed

    def _info(self, name: str) -> TensorInfo:
        tensor = self._placed[name][0]
        return TensorInfo(tensor.dtype, tensor.shape, tensor.nbytes)

    def _texts(self) -> dict[str, str]:
        return self._index.metadata

    def _slice_of(self, name: str, info: TensorInfo) -> TensorSlice:
        tensor = self._stored(name)
        return TensorSlice(name, info.dtype, info.shape, self._framework, tensor, None)

    # ---- the file ----

    @property
    def context(self) -> dict[str, str]:
        """What the file's data key was wrapped for, texts by name; empty for a file of format 1."""
        return dict(self._header.context or {})

    @property
    def file_id(self) -> str:
        """The file's id, 32 hexadecimal digits."""
        return self._header.file_id.hex()

    @property
    def generation(self) -> int:
        """The file's generation, from 1."""
        return self._header.generation

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._header.page_size

    @property
    def cipher(self) -> str:
        """Name of the cipher suite."""
        return self._header.cipher

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._file is None

    def close(self) -> None:
        """Wipes the data key and closes the file. Tensors that were returned stay valid. May be
        repeated."""
        file, self._file = self._file, None
        self._origin = self._pages = self._lease = None
        if file is not None:
            file.close()
            self._data_key.close()

    def _opened(self) -> Any:
        if self._file is None:
            raise self._closed_already()
        return self._file

    def _description(self) -> str:
        return f"{self._path!a}, {len(self._placed)} tensors, {self.file_id}:{self.generation}"


def open_sealed(
    path: str | os.PathLike[str],
    *,
    key: AnyKey,
    expect: Expected | None = None,
    mmap: bool = True,
    context: Mapping[str, str] | None = None,
) -> SealedFile:
    """Does safe_open(), for arguments that were checked, but for `context`."""
    texts = given(context)
    file = open_file(path)
    try:
        return SealedFile._of(
            path, file, read_all(file), key=key, expect=expect, mmap=mmap, context=texts
        )
    except BaseException:
        file.close()
        raise


# ---- for the other modules of the package --------------------------------------------------------


def opened_over(
    path: str | os.PathLike[str],
    file: BinaryIO,
    header: Header,
    *,
    key: AnyKey,
    expect: Expected | None,
    mmap: bool,
    anew: bool = False,
    context: Mapping[str, str] | None = None,
) -> SealedFile:
    """Returns a SealedFile over an open file whose header was read; see SealedFile._of()."""
    return SealedFile._of(
        path, file, header, key=key, expect=expect, mmap=mmap, anew=anew, context=context
    )


def header_of(file: SealedFile) -> SealedHeader:
    """Returns the file's header, whose tag has matched."""
    return file._header


def data_of(file: SealedFile) -> tuple[int, int]:
    """Returns where the file's data begin and end."""
    return file._extent


def placed_in(file: SealedFile) -> Placed:
    """Returns the file's tensors by name, and where they lie."""
    return file._placed


def data_key_of(file: SealedFile) -> Key:
    """Returns the key from which the file's subkeys are derived. Raises ClosedError, ForkError."""
    return file._key()


def read_at(file: SealedFile, offset: int, count: int, what: str) -> bytes:
    """Returns `count` bytes of the file, which errors call `what`. Raises FileReadError,
    FileFormatError, ClosedError."""
    return file._read_at(offset, count, what)


def descriptor_of(file: SealedFile) -> int:
    """Returns the file's descriptor. Raises ClosedError."""
    number: int = file._opened().fileno()
    return number
