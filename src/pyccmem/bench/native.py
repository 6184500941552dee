# SPDX-License-Identifier: Apache-2.0
"""The timed loops of the native core, in Python's words. Times are in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from .. import binding
from ..binding import ffi, lib
from ..buffer import EncryptedBuffer
from ..core.store import handle
from .rounds import CheckError, Plan

__all__ = [
    "KEY_BYTES",
    "PAGE",
    "TAGGED",
    "TAG_BYTES",
    "ceiling",
    "ceiling_wall",
    "copies_seconds",
    "gather",
    "memcpy",
    "must_equal",
    "open_to_scratch",
    "pages_seconds",
    "plain_read",
    "reads_seconds",
    "representatives",
    "store_of",
    "threads",
]

#: The page size that a benchmark uses unless it says otherwise.
PAGE = 4096

#: AES rounds for 16 bytes, by cipher: those of FIPS 197; an update of AEGIS-128X2 is 8 rounds in
#: each of two lanes, for two blocks in each (RFC 10032).
AES_ROUNDS = {name: suite.aes_rounds for name, suite in binding.SUITES.items()}

#: Bytes of the key: K1 || K2 for XTS.
KEY_BYTES = {name: suite.subkey_size for name, suite in binding.SUITES.items()}

#: The ciphers whose pages carry a tag, and its size.
TAGGED = binding.AUTHENTICATED
TAG_BYTES = max(suite.tag_size for suite in binding.SUITES.values())


def _checked(status: int, action: str) -> None:
    binding.check(status, binding.Call(action, "buffer"))


def address(array: Any, *, writable: bool = False) -> Any:
    """The array's first byte as a native pointer, valid while the array lives."""
    return ffi.from_buffer("uint8_t[]", array, require_writable=writable)


def ceiling(tier: str, cipher: str, repeats: int) -> float:
    """Bytes a second of a loop of nothing but the tier's AES instruction; 0 for "portable"."""
    return float(lib.ccmem_measure_ceiling(binding.TIERS[tier], AES_ROUNDS[cipher], repeats))


def ceiling_wall(tier: str, cipher: str, repeats: int) -> float:
    """Time that `ceiling` itself takes, to choose its repeats by."""
    start = perf_counter()
    ceiling(tier, cipher, repeats)
    return perf_counter() - start


def pages_seconds(tier: str, cipher: str, seal: bool, source: Any, out: Any, repeats: int) -> float:
    """Time for `repeats` passes that each seal or open all pages of `source` into `out`, which is
    `source` itself or, to open with an authenticated cipher, elsewhere: then the pages of `source`
    are sealed in place first, not timed."""
    seconds = ffi.new("double *")
    status = lib.ccmem_measure_pages(
        binding.TIERS[tier],
        binding.CIPHERS[cipher],
        lib.CCMEM_MEASURE_SEAL if seal else lib.CCMEM_MEASURE_OPEN,
        address(source, writable=True),
        address(out, writable=True),
        PAGE,
        len(source) // PAGE,
        repeats,
        seconds,
    )
    if status == lib.CCMEM_ERR_INTEGRITY:
        raise CheckError(f"{tier}, {cipher}: a sealed page does not open again.")
    _checked(status, "timing the page kernel")
    return float(seconds[0])


def memcpy(out: Any, source: Any) -> float:
    """One memcpy of all of `source` to `out`; returns the time it took."""
    return float(
        lib.ccmem_measure_memcpy(address(out, writable=True), address(source), source.nbytes)
    )


def plain_read(memory: Any) -> float:
    """One pass of loads over all of `memory`; returns the time it took."""
    return float(lib.ccmem_measure_plain_read(address(memory), memory.nbytes))


def open_to_scratch(buffer: EncryptedBuffer, scratch: Any) -> float:
    """One pass that decrypts the whole buffer through `scratch`, as much at a time as fits."""
    seconds = ffi.new("double *")
    _checked(
        lib.ccmem_measure_open_to_scratch(
            store_of(buffer), address(scratch, writable=True), scratch.nbytes, seconds
        ),
        "timing a pass through scratch",
    )
    return float(seconds[0])


def gather(buffer: EncryptedBuffer, offsets: Any, run: int, out: Any) -> None:
    """Decrypts `run` bytes from each of the offsets (uint64) into `out`, in one native call."""
    status = lib.ccmem_store_gather(
        store_of(buffer),
        ffi.from_buffer("uint64_t[]", offsets),
        len(offsets),
        run,
        address(out, writable=True),
    )
    _checked(status, "gathering rows")


def store_of(buffer: EncryptedBuffer) -> Any:
    """The native store behind a buffer, for the loops that must not cross the interpreter."""
    return handle(buffer)


def reads_seconds(buffer: EncryptedBuffer, count: int, dependent: bool) -> float:
    """Time of `count` reads of 64 bytes at random places of the buffer through the C API."""
    seconds = ffi.new("double *")
    _checked(
        lib.ccmem_measure_random_reads(store_of(buffer), count, dependent, seconds),
        "timing random reads",
    )
    return float(seconds[0])


def copies_seconds(memory: Any, count: int, dependent: bool) -> float:
    """Time of the same walk over plain memory."""
    seconds = ffi.new("double *")
    _checked(
        lib.ccmem_measure_random_copies(address(memory), memory.nbytes, count, dependent, seconds),
        "timing random copies",
    )
    return float(seconds[0])


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Bulk operations use `number` threads inside, and as many as before afterwards."""
    before = lib.ccmem_threads()
    _checked(lib.ccmem_set_threads(number), "setting the number of threads")
    try:
        yield
    finally:
        _checked(lib.ccmem_set_threads(before), "setting the number of threads")


def representatives(plan: Plan) -> tuple[str, ...]:
    """The first cipher asked for of either kind, with tags and without: what costs the same for
    both key sizes of XTS need not be measured twice."""
    kinds = {cipher in TAGGED: cipher for cipher in reversed(plan.ciphers)}
    return tuple(cipher for cipher in plan.ciphers if cipher in kinds.values())


def must_equal(got: Any, expected: Any, what: str) -> None:
    """Raises CheckError unless the two hold the same bytes."""
    if memoryview(got).cast("B") != memoryview(expected).cast("B"):
        raise CheckError(f"{what}: the result is wrong, so its speed means nothing.")
