# SPDX-License-Identifier: Apache-2.0
"""Sealer: encrypts the pages of a file while it is written."""

from __future__ import annotations

from typing import Any

from .. import errors
from ..binding import AUTHENTICATED, CIPHERS, DEFAULT_CIPHER, Call, anchor, check, ffi, lib, wiped
from ..binding.arguments import checked_page_size, exact_bytes, input_buffer, integer, output_buffer
from ..binding.owned import SEALER
from ..core.resource import Resource
from ..keys import Key, native_key

__all__ = ["Sealer"]


class Sealer(Resource):
    """Seals the pages of one store of a file, each once, in order, all at version 1. A buffer that
    EncryptedBuffer._mapped() makes with the same key and store id opens them.

    `store_id` must be 16 fresh random bytes: two sealers with the same key and id would use nonces
    twice. Pages have `page_size` bytes, a power of two from 4096 to 65536. A sealer does not follow
    a fork: in the child its use raises ForkError.
    """

    __slots__ = ("_anchor", "_page_size", "_sealer")

    _instead_of_a_copy = "make a new one with a store id of its own"

    def __init__(
        self, key: Key, store_id: Any, page_size: int, *, cipher: str = DEFAULT_CIPHER
    ) -> None:
        """Raises ArgumentError (for a cipher without tags; PageSizeError for the page size),
        ArgumentTypeError, ClosedError or ForkError for the key, LockedMemoryError,
        OutOfMemoryError."""
        self._sealer: Any = None
        self._anchor: Any = None
        with exact_bytes(
            "store_id", store_id, (lib.CCMEM_STORE_ID_SIZE,), errors.ArgumentError
        ) as source:
            identity = bytes(ffi.buffer(source))
        self._page_size = checked_page_size(page_size)
        if not isinstance(cipher, str) or cipher not in AUTHENTICATED:
            raise errors.ArgumentError(
                f"cipher is {cipher!r}, which has no tags to check a file's pages against; use "
                f"{DEFAULT_CIPHER!r}."
            )
        out = SEALER.cell()
        status = lib.ccmem_sealer_new(
            native_key(key), CIPHERS[cipher], identity, self._page_size, out
        )
        check(status, Call("a sealer", "key"))
        self._sealer = SEALER.own(out)
        self._anchor = anchor(self._sealer)

    def seal(self, first_page: int, plain: Any, out: Any) -> bytes:
        """Encrypts the bytes of `plain` into `out`, as the pages from number `first_page` on, the
        last page filled up with zeros. `out` is a writable buffer of exactly these pages, or
        `plain` itself if that is whole pages. Returns their tags, 16 bytes a page.

        Raises ArgumentError, and seals nothing, for a page at or below one that was sealed before,
        for an `out` of another size, or one that overlaps `plain` in another way; BufferTypeError,
        ClosedError, ForkError.
        """
        sealer = self._opened()
        first_page = integer("first_page", first_page)
        with input_buffer("plain", plain) as source, output_buffer("out", out) as target:
            return self._seal_all(sealer, first_page, source, target)

    def _seal_all(self, sealer: Any, first_page: int, source: Any, target: Any) -> bytes:
        """Does seal() for native buffers."""
        size = self._page_size
        count, rest = -(-len(source) // size), len(source) % size
        if len(target) != count * size:
            raise errors.ArgumentError(
                f"out has {len(target)} bytes; the pages of {len(source)} bytes need "
                f"{count * size}."
            )
        # docs/design/page-format.md: page numbers of all suites have 48 bits, as nonces of GCM do.
        if not 0 <= first_page <= 2**48 - max(count, 1):
            raise errors.ArgumentError(
                f"first_page is {first_page}; it must be from 0 to {2**48 - max(count, 1)}, as "
                f"the numbers of pages end at {2**48 - 1}."
            )
        begin, place = (int(ffi.cast("uintptr_t", memory)) for memory in (source, target))
        apart = begin + len(source) <= place or place + len(target) <= begin
        if not apart and (rest or begin != place):
            raise errors.ArgumentError(
                "out overlaps plain; use other memory, or the same bytes when they are whole pages."
            )
        record = ffi.new("uint8_t[]", 16 * count)
        whole = count - 1 if rest else count
        self._seal(sealer, first_page, whole, source, target, record)
        if rest:
            pointer, memory = wiped.block(size)
            try:
                ffi.memmove(pointer, source + whole * size, rest)
                last = first_page + whole
                self._seal(sealer, last, 1, pointer, target + whole * size, record + 16 * whole)
            finally:
                wiped.wipe(memory)
        return bytes(ffi.buffer(record))

    @staticmethod
    def _seal(sealer: Any, first: int, count: int, source: Any, target: Any, tags: Any) -> None:
        status = lib.ccmem_sealer_seal(sealer, first, count, source, target, tags)
        if status == lib.CCMEM_ERR_ARGUMENT:
            raise errors.ArgumentError(
                f"Page {first} is not above the pages that were sealed before; seal each page "
                f"once, in order, and begin a new file to change one."
            )
        check(status, Call("sealing pages", "sealer"))

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._sealer is None

    def close(self) -> None:
        """Wipes the keys, at once or when the last call that uses them returns. May be repeated."""
        self._sealer = None
        self._anchor = None

    def _opened(self) -> Any:
        """Returns the native sealer for one call. Raises ClosedError, ForkError."""
        sealer = self._sealer
        if sealer is None:
            raise errors.ClosedError(
                "This sealer is closed; make a new one, with another store id."
            )
        return sealer

    def _description(self) -> str:
        return f"for pages of {self._page_size} bytes"
