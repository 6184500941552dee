# SPDX-License-Identifier: Apache-2.0
"""Puts a native store in the place of another that holds the same: a frozen one, whose pages are
sealed once, or one that can be written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..binding import OK, Call, check, ffi, lib, wiped
from ..binding.owned import STORE
from .store import Store, exchange, fail, handle

__all__ = ["BLOCK", "like_store", "put_of", "replace_store", "transfer", "transfer_steps"]

#: Bytes of plaintext that are opened at a time: whole pages, whatever the page size is.
BLOCK = 1 << 20


def put_of(place: int) -> Any:
    """Returns the native function that puts bytes into a new store of this freshness, in order."""
    return lib.ccmem_store_fill if place == lib.CCMEM_FRESH_ONCE else lib.ccmem_store_write


def transfer(source: Store, offset: int, nbytes: int, target: Any, put: Any, to: Store) -> None:
    """Puts `nbytes` bytes of `source` from `offset` on into the native store `target`, from its
    beginning on, 1 MiB of plaintext at a time. Failures of `put` are told as those of `to`. Raises
    IntegrityError, ClosedError, ForkError, OutOfMemoryError."""
    if not nbytes:
        return
    pointer, memory = wiped.block(min(nbytes, BLOCK))
    try:
        for at in range(0, nbytes, BLOCK):
            _put(source, offset, at, min(nbytes - at, BLOCK), pointer, target, put, to)
    finally:
        wiped.wipe(memory)


def transfer_steps(
    source: Store, offset: int, nbytes: int, target: Any, put: Any, to: Store
) -> Iterator[int]:
    """Does transfer(), and yields the bytes of each step; between two steps no plaintext is
    kept."""
    for at in range(0, nbytes, BLOCK):
        count = min(nbytes - at, BLOCK)
        pointer, memory = wiped.block(count)
        try:
            _put(source, offset, at, count, pointer, target, put, to)
        finally:
            wiped.wipe(memory)
        yield count


def _put(
    source: Store, offset: int, at: int, count: int, pointer: Any, target: Any, put: Any, to: Store
) -> None:
    status = lib.ccmem_store_read(handle(source), offset + at, pointer, count)
    if status != OK:
        fail(source, status, offset + at, count)
    status = put(target, at, pointer, count)
    if status != OK:
        fail(to, status, at, count)


def like_store(native: Any, key: Any, place: int, nbytes: int) -> Any:
    """Returns a new native store like another, under the native `key` or (None) a random one, whose
    versions lie as `place` says. Raises OutOfMemoryError, LockedMemoryError, ForkError."""
    out = STORE.cell()
    action = f"another store of {nbytes} bytes"
    status = lib.ccmem_store_like(native, ffi.NULL if key is None else key, place, out)
    check(status, Call(action, "buffer"))
    return STORE.own(out)


def replace_store(store: Store, native: Any, place: int) -> None:
    """Puts a new native store with the same contents, under a random key, in the place of `native`,
    which stays as it is for calls that are under way. Its versions lie as `place` says. Raises
    IntegrityError, OutOfMemoryError, LockedMemoryError, ClosedError, ForkError."""
    new = like_store(native, None, place, store.nbytes)
    transfer(store, 0, store.nbytes, new, put_of(place), store)
    exchange(store, native, new)
