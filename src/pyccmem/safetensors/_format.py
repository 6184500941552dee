# SPDX-License-Identifier: Apache-2.0
"""Parses and writes the header of a sealed file, and checks every field.

A sealed file is a safetensors file whose `__metadata__` has the one entry "pyccmem", a JSON object:

    format      2 (1 in files of before contexts, which are read as well)
    file_id     16 random bytes; a save gives a new one, rewrap_file() keeps it
    generation  from 1; one more than that of the sealed file that was replaced
    cipher      "aegis-128x2"
    page_size   bytes of a page
    key         the data key, wrapped: {provider, key_id, wrapped, parameters, bound, context}
    tensors     {name: {dtype, shape, blob, nbytes, store_id, table_mac}}
    metadata    the __metadata__ of the plain file

The context says in the clear what the data key was wrapped for: the file's own id, and what its
writer named besides. `bound` is empty unless the provider takes no context: then `wrapped` is a
key-encryption key, and `bound` the data key wrapped under it (pyccmem.key_services.envelope). In
format 1 a key has neither.

Bytes are in lowercase hexadecimal. With sealed names, `index` takes the place of the last two:
{nbytes, store_id, table_mac} of the blob that holds them, sealed like a tensor.

Each blob is a U8 tensor of whole pages, of the tensor's own name, or t0, t1, ... with sealed names;
the index precedes them. The last one, the table, holds the header's tag, then for each blob in
order the versions (8 bytes each, little-endian) and the tags (16 bytes each) of its pages.

No key is used here: a header that parse() accepts is well formed, and no more is known of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import errors
from ..binding import AUTHENTICATED, CIPHERS, lib
from ..files.safetensors_header import (
    DTYPE_BITS,
    LENGTH_BYTES,
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    Entry,
    Header,
    parse_object,
    shown,
    tensor_bytes,
)
from ..key_services.context import canonical
from ..key_services.wrapped import MAX_PARAMETERS, MAX_TEXT, MAX_WRAPPED_BYTES, WrappedKey

__all__ = [
    "GGUF_KEY",
    "HEADER_CONTEXT",
    "INDEX_BLOB",
    "MAC_BYTES",
    "MAX_GENERATION",
    "METADATA_KEY",
    "RECORD_BYTES",
    "RESERVED_PREFIX",
    "Blob",
    "Index",
    "KeyEntry",
    "SealedHeader",
    "SealedTensor",
    "index_text",
    "key_text",
    "layout",
    "parse",
    "parse_index",
    "parse_key",
    "place",
    "serialized",
    "to_json",
    "wrong",
]

FORMAT = 2
_FORMATS = (1, 2)
METADATA_KEY = "pyccmem"
#: In the metadata of a plain file: the sealed file holds a GGUF file, as pyccmem.gguf says.
GGUF_KEY = "pyccmem.gguf"
RESERVED_PREFIX = "__pyccmem_"
INDEX_BLOB = "__pyccmem_index__"
TABLE_BLOB = "__pyccmem_table__"

#: The context of the header's tag. A table_mac has a random store id in its place.
HEADER_CONTEXT = b"pyccmem-header-1"

MAC_BYTES = 16
VERSION_BYTES = 8
TAG_BYTES = 16
RECORD_BYTES = VERSION_BYTES + TAG_BYTES

#: JSON numbers up to here mean the same to every reader (RFC 8259, section 6).
MAX_GENERATION = 2**53 - 1

_ID_BYTES = 16
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")
_NO_MAC = bytes(MAC_BYTES)


@dataclass(frozen=True)
class SealedTensor:
    """One tensor of the index, or the index itself (as a U8 tensor)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blob: str
    nbytes: int
    store_id: bytes
    table_mac: bytes = _NO_MAC


@dataclass(frozen=True)
class Index:
    """The part of a header that may be sealed: the tensors in the order of their blobs, and the
    user's metadata."""

    tensors: tuple[SealedTensor, ...]
    metadata: dict[str, str]


@dataclass(frozen=True)
class KeyEntry:
    """What a file says of its data key."""

    provider: str
    wrapped: WrappedKey
    #: The data key under what `wrapped` holds; empty when `wrapped` holds the data key itself.
    bound: bytes
    #: What the data key was wrapped for; None in a file of format 1.
    context: dict[str, str] | None


@dataclass(frozen=True)
class SealedHeader:
    """A header. `index` is the index itself, or the sealed blob that holds it."""

    file_id: bytes
    generation: int
    cipher: str
    page_size: int
    provider: str
    wrapped: WrappedKey
    #: The data key under what `wrapped` holds; empty when `wrapped` holds the data key itself.
    bound: bytes
    #: What the data key was wrapped for; None for a file of format 1.
    context: dict[str, str] | None
    index: Index | SealedTensor

    @property
    def key(self) -> KeyEntry:
        """What the header says of the data key."""
        return KeyEntry(self.provider, self.wrapped, self.bound, self.context)


@dataclass(frozen=True)
class Blob:
    """Where one blob lies in the file: its pages, and its records in the table."""

    name: str
    start: int
    npages: int
    records: int


def wrong(what: str) -> errors.FileFormatError:
    """Returns the exception for a header that breaks the format's rules."""
    return errors.FileFormatError(
        f"This sealed file is damaged, or was not made by pyccmem: {what}; use a good copy of it."
    )


# ---- from text ----


def _fields(value: object, names: tuple[str, ...], what: str) -> dict[str, Any]:
    if (
        not isinstance(value, dict)
        or len(value) != len(names)
        or any(n not in value for n in names)
    ):
        raise wrong(f"{what} must have exactly the fields {', '.join(names)}")
    return value


def _integer(value: object, least: int, most: int, what: str) -> int:
    # type() and not isinstance(), because True and False are ints in Python.
    if type(value) is not int or not least <= value <= most:
        raise wrong(f"{what} is {shown(value)}; it must be a whole number from {least} to {most}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not _encodable(value):
        raise wrong(f"{what} is {shown(value)}; it must be a text of at most {MAX_TEXT} characters")
    return value


def _encodable(text: str) -> bool:
    """Returns False for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _bytes(value: object, least: int, most: int, what: str) -> bytes:
    if (
        not isinstance(value, str)
        or not 2 * least <= len(value) <= 2 * most
        or not _HEX.match(value)
    ):
        size = f"{least}" if least == most else f"{least} to {most}"
        raise wrong(f"{what} is {shown(value)}; it must be {size} bytes in lowercase hexadecimal")
    return bytes.fromhex(value)


def _texts(value: object, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) and _encodable(name) and _encodable(text)
        for name, text in value.items()
    ):
        raise wrong(f"{what} is not an object of texts")
    return value


def _parameters(value: object) -> dict[str, str]:
    what = "the parameters of its key"
    found = _texts(value, what)
    if len(found) > MAX_PARAMETERS:
        raise wrong(f"{what} are {len(found)}; {MAX_PARAMETERS} are the most")
    for pair in found.items():
        for text in pair:
            _text(text, f"one of {what}")
    return found


def _context(value: object) -> dict[str, str]:
    found = _texts(value, "the context of its key")
    try:
        canonical(found)
        return found
    except errors.ArgumentError as error:
        why = str(error)
    raise wrong(f"the context of its key cannot be: {why.rstrip('.')}")


def parse_key(value: object, *, bound: bool = True) -> KeyEntry:
    """Returns what a file says of its data key; `bound`: as in format 2. Raises
    FileFormatError."""
    names = ("provider", "key_id", "wrapped", "parameters")
    key = _fields(value, (*names, "bound", "context") if bound else names, "its key")
    return KeyEntry(
        _text(key["provider"], "the provider of its key"),
        WrappedKey(
            _text(key["key_id"], "the id of its key"),
            _bytes(key["wrapped"], 1, MAX_WRAPPED_BYTES, "its wrapped key"),
            _parameters(key["parameters"]),
        ),
        _bytes(key["bound"], 0, MAX_WRAPPED_BYTES, "its bound key") if bound else b"",
        _context(key["context"]) if bound else None,
    )


def parse(header: Header) -> SealedHeader:
    """Returns what the header of a sealed file says. Raises FileFormatError with what is wrong."""
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        raise errors.FileFormatError(
            "This is a plain safetensors file, not a sealed one; seal it with encrypt_file() or "
            "`pyccmem encrypt`, or name the file that was sealed."
        )
    document = parse_object(text, "its description", wrong)
    version = document.get("format")
    if type(version) is int and version > FORMAT:
        raise errors.FileFormatError(
            f"This sealed file was made by a newer pyccmem: it is of format {shown(version)}, and "
            f"this version reads formats up to {FORMAT}; upgrade pyccmem."
        )
    bound = _integer(version, _FORMATS[0], FORMAT, "its format") > 1
    if len(header.metadata) != 1:
        raise wrong("its __metadata__ has more than the one entry 'pyccmem'")
    common = ("format", "file_id", "generation", "cipher", "page_size", "key")
    sealed = "index" in document
    _fields(
        document, (*common, "index") if sealed else (*common, "tensors", "metadata"), "the header"
    )
    cipher = document["cipher"]
    if not isinstance(cipher, str) or cipher not in CIPHERS:
        raise wrong(f"its cipher is {shown(cipher)}, which this version of pyccmem does not know")
    if cipher not in AUTHENTICATED:
        raise wrong(
            f"its cipher is {cipher}, which has no tags, so that no change would be noticed"
        )
    smallest, largest = lib.CCMEM_PAGE_SIZE_MIN, lib.CCMEM_PAGE_SIZE_MAX
    page_size = _integer(document["page_size"], smallest, largest, "its page_size")
    if page_size & (page_size - 1):
        raise wrong(f"its page_size is {page_size}; it must be a power of two")
    key = parse_key(document["key"], bound=bound)
    return SealedHeader(
        file_id=_bytes(document["file_id"], _ID_BYTES, _ID_BYTES, "its file_id"),
        generation=_integer(document["generation"], 1, MAX_GENERATION, "its generation"),
        cipher=cipher,
        page_size=page_size,
        provider=key.provider,
        wrapped=key.wrapped,
        bound=key.bound,
        context=key.context,
        index=_index_blob(document["index"])
        if sealed
        else _index(document["tensors"], document["metadata"], sealed=False),
    )


def _index_blob(value: object) -> SealedTensor:
    fields = _fields(value, ("nbytes", "store_id", "table_mac"), "its index")
    nbytes = _integer(fields["nbytes"], 1, MAX_ELEMENTS, "the size of its index")
    return SealedTensor(
        INDEX_BLOB,
        "U8",
        (nbytes,),
        INDEX_BLOB,
        nbytes,
        _bytes(fields["store_id"], _ID_BYTES, _ID_BYTES, "the store_id of its index"),
        _bytes(fields["table_mac"], MAC_BYTES, MAC_BYTES, "the table_mac of its index"),
    )


def parse_index(text: bytes) -> Index:
    """Returns what the text of an opened index says. Raises FileFormatError."""
    try:
        document = parse_object(text.decode("utf-8"), "its index", wrong)
    except UnicodeDecodeError:
        raise wrong("its index is not UTF-8") from None
    _fields(document, ("tensors", "metadata"), "its index")
    return _index(document["tensors"], document["metadata"], sealed=True)


def _index(tensors: object, metadata: object, *, sealed: bool) -> Index:
    if not isinstance(tensors, dict):
        raise wrong("its tensors are not an object")
    found = tuple(
        _tensor(name, value, f"t{at}" if sealed else name)
        for at, (name, value) in enumerate(tensors.items())
    )
    return Index(found, _texts(metadata, "its metadata"))


def _tensor(name: str, value: object, blob: str) -> SealedTensor:
    quoted = shown(name)
    what = f"tensor {quoted}"
    if not _encodable(name) or name.startswith(RESERVED_PREFIX) or name == "__metadata__":
        raise wrong(f"the name {quoted} is not one that a tensor may have")
    names = ("dtype", "shape", "blob", "nbytes", "store_id", "table_mac")
    fields = _fields(value, names, what)
    dtype, shape = fields["dtype"], fields["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise wrong(f"the dtype of {what} is {shown(dtype)}, which safetensors does not know")
    if not isinstance(shape, list) or not all(
        type(extent) is int and 0 <= extent <= MAX_ELEMENTS for extent in shape
    ):
        raise wrong(f"the shape of {what} is {shown(shape)}; it must be a list of whole numbers")
    nbytes = _integer(fields["nbytes"], 0, MAX_ELEMENTS, f"the size of {what}")
    needed = tensor_bytes(dtype, tuple(shape), quoted, wrong)
    if nbytes != needed:
        raise wrong(
            f"the size of {what} is {nbytes}; its dtype {dtype} and shape {shown(shape)} need "
            f"{shown(needed)}"
        )
    if fields["blob"] != blob:
        raise wrong(f"the blob of {what} is {shown(fields['blob'])}; it must be {shown(blob)}")
    return SealedTensor(
        name,
        dtype,
        tuple(shape),
        blob,
        nbytes,
        _bytes(fields["store_id"], _ID_BYTES, _ID_BYTES, f"the store_id of {what}"),
        _bytes(fields["table_mac"], MAC_BYTES, MAC_BYTES, f"the table_mac of {what}"),
    )


# ---- where the blobs lie ----


def layout(header: Header, page_size: int) -> tuple[list[Blob], int]:
    """Returns the blobs in order, without the table, and the offset of the table. Checks that each
    blob is whole pages, and that the table has the size that so many pages need. Raises
    FileFormatError."""
    entries = header.entries
    if not entries or entries[-1].name != TABLE_BLOB:
        raise wrong("its last tensor is not the table")
    if header.data_start % page_size:
        raise wrong(f"its data do not begin on a multiple of {page_size} bytes")
    *data, table = entries
    blobs: list[Blob] = []
    records = table.start + MAC_BYTES
    for entry in data:
        if entry.dtype != "U8" or entry.nbytes % page_size:
            raise wrong(f"tensor {shown(entry.name)} is not a blob of whole pages")
        npages = entry.nbytes // page_size
        blobs.append(Blob(entry.name, entry.start, npages, records))
        records += npages * RECORD_BYTES
    if table.dtype != "U8" or table.shape != (table.nbytes,) or table.end != records:
        raise wrong(
            f"its table has {table.nbytes} bytes; the pages of its tensors need "
            f"{records - table.start}"
        )
    return blobs, table.start


def place(
    tensors: tuple[SealedTensor, ...], blobs: list[Blob], header: Header, page_size: int
) -> dict[str, tuple[SealedTensor, Blob]]:
    """Returns each tensor with its blob by the tensor's name, in the order of the file. Checks that
    each tensor has one blob, of the pages that the tensor fills, and that no store id comes twice.
    Raises FileFormatError."""
    by_blob = {tensor.blob: tensor for tensor in tensors}
    if len(by_blob) != len(blobs) or any(blob.name not in by_blob for blob in blobs):
        raise wrong("its tensors and its blobs are not the same")
    if len({tensor.store_id for tensor in tensors}) != len(tensors):
        raise wrong("two of its tensors have one store_id")
    shapes = {entry.name: entry.shape for entry in header.entries}
    found: dict[str, tuple[SealedTensor, Blob]] = {}
    for blob in blobs:
        tensor = by_blob[blob.name]
        if blob.npages != _pages(tensor, page_size) or shapes[blob.name] != _blob_shape(
            tensor, page_size
        ):
            raise wrong(f"the blob of tensor {shown(tensor.name)} is not of the size it must have")
        found[tensor.name] = (tensor, blob)
    return found


def _pages(tensor: SealedTensor, page_size: int) -> int:
    return -(-tensor.nbytes // page_size)


def _blob_shape(tensor: SealedTensor, page_size: int) -> tuple[int, ...]:
    """Returns a shape that is never the tensor's own, so that no program takes the ciphertext for
    the tensor."""
    nbytes = _pages(tensor, page_size) * page_size
    return (nbytes, 1) if tensor.shape == (nbytes,) and tensor.blob == tensor.name else (nbytes,)


# ---- to text ----


def index_text(index: Index) -> dict[str, Any]:
    """Returns an index as the JSON object that parse() and parse_index() read."""
    return {
        "tensors": {
            tensor.name: {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "blob": tensor.blob,
                "nbytes": tensor.nbytes,
                "store_id": tensor.store_id.hex(),
                "table_mac": tensor.table_mac.hex(),
            }
            for tensor in index.tensors
        },
        "metadata": index.metadata,
    }


def key_text(key: KeyEntry) -> dict[str, Any]:
    """Returns an entry as the JSON object that parse_key() reads."""
    found: dict[str, Any] = {
        "provider": key.provider,
        "key_id": key.wrapped.key_id,
        "wrapped": key.wrapped.blob.hex(),
        "parameters": key.wrapped.parameters,
    }
    if key.context is not None:
        found |= {"bound": key.bound.hex(), "context": key.context}
    return found


def serialized(header: SealedHeader, tensors: tuple[SealedTensor, ...]) -> tuple[bytes, Header]:
    """Returns the bytes before the data, and the header as a reader sees it. `tensors` are those of
    all blobs in order, including a sealed index. The length does not depend on the table_macs.
    Raises ArgumentError if it is more than the format allows."""
    if isinstance(header.index, Index):
        index = index_text(header.index)
    else:
        own = header.index
        index = {
            "index": {
                "nbytes": own.nbytes,
                "store_id": own.store_id.hex(),
                "table_mac": own.table_mac.hex(),
            }
        }
    description = {
        "format": 1 if header.context is None else FORMAT,
        "file_id": header.file_id.hex(),
        "generation": header.generation,
        "cipher": header.cipher,
        "page_size": header.page_size,
        "key": key_text(header.key),
        **index,
    }
    page_size = header.page_size
    document: dict[str, Any] = {"__metadata__": {METADATA_KEY: to_json(description).decode()}}
    entries: list[Entry] = []
    at = pages = 0
    for tensor in tensors:
        npages = _pages(tensor, page_size)
        entries.append(
            Entry(tensor.blob, "U8", _blob_shape(tensor, page_size), at, at + npages * page_size)
        )
        at += npages * page_size
        pages += npages
    table = MAC_BYTES + pages * RECORD_BYTES
    entries.append(Entry(TABLE_BLOB, "U8", (table,), at, at + table))
    for entry in entries:
        document[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    text = to_json(document)
    text += b" " * (-(LENGTH_BYTES + len(text)) % page_size)
    if len(text) > MAX_HEADER_BYTES:
        raise errors.ArgumentError(
            f"The header of these tensors has {len(text)} bytes, and safetensors files may have "
            f"{MAX_HEADER_BYTES}; save them to several files."
        )
    raw = len(text).to_bytes(LENGTH_BYTES, "little") + text
    start = len(raw)
    entries = [replace(e, start=e.start + start, end=e.end + start) for e in entries]
    return raw, Header(raw, document["__metadata__"], entries, start + at + table)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Returns the text of a JSON object in UTF-8, as short as it can be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
