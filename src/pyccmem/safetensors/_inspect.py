# SPDX-License-Identifier: Apache-2.0
"""Tells what a sealed file says of itself, and checks whether all of it is as it was sealed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from .. import errors
from ..files.safetensors_header import about, open_file, read_all, shown
from ._format import Index
from ._progress import Progress, check_progress, reporting
from ._reader import (
    SealedFile,
    data_of,
    expected,
    header_of,
    open_sealed,
    placed_in,
    structure,
)
from ._tensor_file import TensorInfo, buffer_of
from ._tensor_file import described as described_tensors
from .providers import AnyKey

__all__ = ["Damage", "FileInfo", "damage_of", "inspect_file", "verify_file"]

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class FileInfo:
    """What inspect_file() found. Without a key none of it is authenticated: it may be forged."""

    file_id: str
    generation: int
    cipher: str
    page_size: int
    #: Bytes of the file.
    nbytes: int
    #: What wraps the data key: "key" (a Key), "scrypt", "argon2id", or a provider's name.
    provider: str
    key_id: str
    parameters: dict[str, str]
    #: 1 or 2; in 2 the data key is bound to a context, which is empty in 1.
    format: int
    context: dict[str, str]
    names_sealed: bool
    #: True when the header matched its tag.
    authenticated: bool
    #: Pages of each blob that holds a tensor, by the blob's name, in the order of the file.
    pages: dict[str, int]
    #: The tensors in the order of the file, and the metadata; None while their names are sealed.
    tensors: dict[str, TensorInfo] | None
    metadata: dict[str, str] | None

    @property
    def pin(self) -> str:
        """The pin that `expect` takes: "FILE_ID:GENERATION"."""
        return f"{self.file_id}:{self.generation}"

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields in types that JSON has."""
        found = {"pin": self.pin, **asdict(self)}
        if self.tensors is not None:
            found["tensors"] = {
                name: {"dtype": info.dtype, "shape": list(info.shape), "nbytes": info.nbytes}
                for name, info in self.tensors.items()
            }
        return found


def inspect_file(
    path: _Path, key: AnyKey | None = None, *, expect: Any = None, context: Any = None
) -> FileInfo:
    """Returns what the header of a sealed file says. With the key it is authenticated, and sealed
    names are shown. Without the key it may be forged.

    Raises FileReadError, FileFormatError for a file that is not sealed or breaks the format's
    rules; with a key also what load_file() raises. Raises ArgumentError for `expect` or
    `context` without a key.
    """
    pinned = expected(expect)
    if key is None:
        if pinned is not None or context is not None:
            what = "expect" if context is None else "context"
            raise errors.ArgumentError(f"{what} means nothing without a key; pass the key, too.")
        with open_file(path) as file:
            header = read_all(file)
        with about(os.fsdecode(path)):
            described, blobs, _, placed = structure(header)
        tensors = None
        if placed is not None:
            tensors = {
                name: TensorInfo(tensor.dtype, tensor.shape, tensor.nbytes)
                for name, (tensor, _) in placed.items()
            }
        size, index = header.size, described.index
        metadata = dict(index.metadata) if isinstance(index, Index) else None
        pages = {blob.name: blob.npages for blob in blobs}
    else:
        with open_sealed(path, key=key, expect=pinned, context=context) as opened:
            described, size = header_of(opened), data_of(opened)[1]
            tensors = described_tensors(opened)
            metadata = opened.metadata() or {}
            pages = {blob.name: blob.npages for _, blob in placed_in(opened).values()}
    sealed = not isinstance(described.index, Index)
    if sealed and key is None:
        pages.pop(next(iter(pages)))  # the pages of the index
    return FileInfo(
        file_id=described.file_id.hex(),
        generation=described.generation,
        cipher=described.cipher,
        page_size=described.page_size,
        nbytes=size,
        provider=described.provider,
        key_id=described.wrapped.key_id,
        parameters=dict(described.wrapped.parameters),
        format=1 if described.context is None else 2,
        context=dict(described.context or {}),
        names_sealed=sealed,
        authenticated=key is not None,
        pages=pages,
        tensors=tensors,
        metadata=metadata,
    )


@dataclass(frozen=True)
class Damage:
    """What of a tensor is not as it was sealed: these of its pages, or (None) its records."""

    tensor: str
    pages: list[int] | None
    npages: int


def damage_of(
    path: _Path,
    key: AnyKey,
    *,
    expect: Any = None,
    mmap: bool = True,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> tuple[SealedFile, list[Damage]]:
    """Checks every page. Returns the file, closed, and what is not as it was sealed. Raises what
    safe_open() raises for damage to the header."""
    check_progress(progress)
    found: list[Damage] = []
    with open_sealed(path, key=key, expect=expected(expect), mmap=mmap, context=context) as opened:
        total = sum(tensor.nbytes for tensor, _ in placed_in(opened).values())
        with reporting(progress, path, total) as report:
            done = 0
            for name, (tensor, blob) in placed_in(opened).items():
                try:
                    with buffer_of(opened, name) as buffer:
                        bad = buffer.verify()
                    if bad:
                        found.append(Damage(name, bad, blob.npages))
                except errors.IntegrityError:
                    found.append(Damage(name, None, blob.npages))
                done += tensor.nbytes
                report(done, total)
    return opened, found


def verify_file(
    path: _Path,
    key: AnyKey,
    *,
    expect: Any = None,
    mmap: bool = True,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> None:
    """Checks all of a sealed file: header, table and every page, a tensor at a time, in several
    threads. Returns no plaintext. `expect`, `mmap`, `context` and `progress` are as for
    load_file().

    Raises IntegrityError, whose `name` is the first damaged tensor and whose `page` its first
    damaged page (None when all of its versions and tags are in doubt), and what load_file() raises
    for a sealed file.
    """
    opened, damage = damage_of(
        path, key, expect=expect, mmap=mmap, progress=progress, context=context
    )
    if not damage:
        return
    first = damage[0]
    where = (
        f"page {first.pages[0]} of tensor {shown(first.tensor)}"
        if first.pages
        else f"the table for tensor {shown(first.tensor)}"
    )
    raise errors.IntegrityError(
        f"{os.fspath(path)!r} was changed since it was sealed: {where} does not match its tag, and "
        f"{len(damage)} of {len(placed_in(opened))} tensors are damaged in all; use a good copy of "
        f"the file.",
        name=first.tensor,
        page=first.pages[0] if first.pages else None,
        offset=first.pages[0] * opened.page_size if first.pages else None,
    )
