# SPDX-License-Identifier: Apache-2.0
"""Puts a native store in the place of another that holds the same: a frozen one, whose pages are
sealed once, or one that can be written."""

from __future__ import annotations

from typing import Any

from ..binding import OK, Call, check, lib, wiped
from ..binding.owned import STORE
from .store import Store, exchange, fail, handle

__all__ = ["BLOCK", "put_of", "replace_store", "transfer"]

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
    native = handle(source)
    pointer, memory = wiped.block(min(nbytes, BLOCK))
    try:
        for at in range(0, nbytes, BLOCK):
            count = min(nbytes - at, BLOCK)
            status = lib.ccmem_store_read(native, offset + at, pointer, count)
            if status != OK:
                fail(source, status, offset + at, count)
            status = put(target, at, pointer, count)
            if status != OK:
                fail(to, status, at, count)
    finally:
        wiped.wipe(memory)


def replace_store(store: Store, native: Any, place: int) -> None:
    """Puts a new native store with the same contents, under a random key, in the place of `native`,
    which stays as it is for calls that are under way. Its versions lie as `place` says. Raises
    IntegrityError, OutOfMemoryError, LockedMemoryError, ClosedError, ForkError."""
    out = STORE.cell()
    action = f"another store of {store.nbytes} bytes"
    check(lib.ccmem_store_like(native, place, out), Call(action, "buffer"))
    new = STORE.own(out)
    transfer(store, 0, store.nbytes, new, put_of(place), store)
    exchange(store, native, new)
