# SPDX-License-Identifier: Apache-2.0
"""Moves what a store or an arena holds to another key, a step at a time, and tells how much a key
has sealed.

The work is a generator: each next() does one step of at most STEP bytes and yields how many bytes
of ciphertext are done with. Whoever runs it may stop between two steps, for a moment or for good;
the pages stay usable, and another generator goes on.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import errors
from ..binding import OK, SUITES, check, ffi, lib
from ..binding.arguments import integer
from ..binding.status import BufferCall

__all__ = [
    "STEP",
    "KeyUse",
    "Native",
    "Steps",
    "checked_rate",
    "run",
]

#: Bytes of ciphertext of one step, or one page where that is more.
STEP = 1 << 20

#: Yields how many bytes each step was about.
Steps = Iterator[int]

#: From this part of a bound on, KeyUse.warn() warns.
_WARN_FROM = 0.5

#: Pages under one AEGIS key. Nonces are counters and never repeat, so that no birthday bound of
#: nonces applies; this is what the draft of AEGIS (draft-irtf-cfrg-aegis-aead) allows for random
#: nonces, and less than counters would.
_AEGIS_PAGES = 1 << 48


@dataclass(frozen=True)
class KeyUse:
    """How much the key of a buffer or an arena has sealed."""

    #: Pages sealed under the key since it was new, each write of a page counted. About: counts of
    #: threads that write at once may be lost.
    pages_sealed: int
    #: The most pages that should be sealed under one key of this cipher.
    pages_limit: int
    #: The highest version that a page has, and that one may have under this key.
    highest_version: int
    version_limit: int
    #: Pages that there are, and how many were moved to this key; all, unless `moving`.
    pages: int
    pages_moved: int
    #: True while pages may be under the key before, because a rekey() has not come to its end.
    moving: bool

    @property
    def fraction(self) -> float:
        """The part of the nearest of the two bounds that is used up, from 0 to 1."""
        versions = self.highest_version / self.version_limit if self.version_limit else 1.0
        return min(max(self.pages_sealed / self.pages_limit, versions), 1.0)

    def warn(self, name: str) -> KeyUse:
        """Returns itself; warns with KeyUsageWarning when half of a bound is used up."""
        if self.fraction >= _WARN_FROM:
            warnings.warn(
                f"The key of {name!a} has used {self.fraction:.0%} of what one key should seal; "
                f"call rekey().",
                errors.KeyUsageWarning,
                stacklevel=3,
            )
        return self


def _pages_limit(cipher: str, page_size: int) -> int:
    blocks = SUITES[cipher].blocks_log2
    return (1 << blocks) * 16 // page_size if blocks else _AEGIS_PAGES


class Native:
    """A native store or arena, to be moved to another key where it lies."""

    __slots__ = ("_begin", "_cipher", "_handle", "_move", "_name", "_page_size", "_store", "_use")

    def __init__(
        self, kind: str, handle: Any, *, name: str, cipher: str, page_size: int, store: Any = None
    ) -> None:
        """`kind` is "store" or "arena", `handle` the native object."""
        self._begin, self._move, self._use = (
            getattr(lib, f"ccmem_{kind}_{what}") for what in ("rekey", "move", "key_use")
        )
        self._handle, self._name, self._store = handle, name, store
        self._cipher, self._page_size = cipher, page_size

    def _check(self, status: int) -> None:
        """Raises the exception for a status."""
        if status == lib.CCMEM_ERR_REKEY:
            raise errors.RekeyingError(
                f"Another thread moves the pages of {self._name!a} to another key now; wait until "
                f"it has finished."
            )
        if status != OK:
            check(
                status,
                BufferCall(
                    "rekey()",
                    self._name,
                    nbytes=1 << 63,
                    page_size=self._page_size,
                    store=self._store,
                ),
            )

    def use(self) -> KeyUse:
        """Returns what the key has sealed. Raises ClosedError, ForkError."""
        found = ffi.new("ccmem_key_use *")
        self._check(self._use(self._handle, found))
        return KeyUse(
            pages_sealed=int(found.pages_sealed),
            pages_limit=_pages_limit(self._cipher, self._page_size),
            highest_version=int(found.highest_version),
            version_limit=int(found.version_limit),
            pages=int(found.pages),
            pages_moved=int(found.pages_moved),
            moving=bool(found.moving),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of ciphertext that there are."""
        return self.use().pages * self._page_size

    def steps(self, key: Any) -> Steps:
        """Moves all pages to subkeys of the native `key`; None: of a random one. First finishes a
        move that was begun before, and does no more than that when `key` is None. Raises
        IntegrityError, RekeyingError, VersionExhaustedError, OutOfMemoryError,
        PlaintextBudgetError, LockedMemoryError, EntropyError, ClosedError, ForkError."""
        if self.use().moving:
            yield from self._rest()
            if key is None:
                return
        self._check(self._begin(self._handle, ffi.NULL if key is None else key))
        yield from self._rest()

    def _rest(self) -> Steps:
        count = max(STEP // self._page_size, 1)
        done = ffi.new("uint64_t *", count)
        while done[0] == count:
            self._check(self._move(self._handle, count, done))
            if done[0]:
                yield int(done[0]) * self._page_size


def checked_rate(bytes_per_second: Any) -> float | None:
    """Returns a limit of bytes a second; None: no limit. Raises ArgumentError,
    ArgumentTypeError."""
    if bytes_per_second is None:
        return None
    rate = integer("bytes_per_second", bytes_per_second)
    if rate <= 0:
        raise errors.ArgumentError(
            f"bytes_per_second is {rate}; it must be at least 1, or None for no limit."
        )
    return float(rate)


def run(
    steps: Steps,
    *,
    total: int = 0,
    bytes_per_second: float | None = None,
    progress: Callable[[int, int], object] | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> int:
    """Runs all steps, no faster than the limit, calls `progress` with the bytes done and the total
    after each, and returns the bytes done. `wait` waits so many seconds, or raises to stop."""
    done, begun = 0, time.monotonic()
    for count in steps:
        done += count
        if progress is not None:
            progress(min(done, total), total)
        wait(
            max(done / bytes_per_second - (time.monotonic() - begun), 0.0)
            if bytes_per_second
            else 0.0
        )
    return done
