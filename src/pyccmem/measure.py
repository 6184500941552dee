# SPDX-License-Identifier: Apache-2.0
"""Timed loops for benchmarks. Only native code runs between two looks at the clock, so that no call
from the interpreter is part of the figure. `pyccmem bench` uses them.

Times are in seconds, by CLOCK_MONOTONIC. The loops time the library's own code, that of `tier`
("portable", "aesni", ...; None: the tier in use) if they take one, or what it is compared with: the
AES unit alone, copies, loads. Arrays are any C-contiguous objects with a buffer.

Wrong types raise BufferTypeError or ArgumentTypeError, unusable values ArgumentError, a tier that
this processor cannot run TierError, a closed buffer ClosedError, a changed page IntegrityError.
"""

from __future__ import annotations

import os
from collections import abc
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import errors
from .binding import FAULTS, OK, Call, check, ffi, lib, suites, tier_number
from .binding.arguments import checked_page_size, input_buffer, integer, output_buffer
from .binding.suites import Suite
from .buffer import EncryptedBuffer
from .core.store import fail, handle
from .kv_cache import KVCache
from .mapping import Mapping

__all__ = [
    "MECHANISMS",
    "OPERATIONS",
    "SUITES",
    "Suite",
    "ceiling",
    "gather",
    "mapped",
    "memcpy",
    "open_to_scratch",
    "pages",
    "plain_cache",
    "plain_read",
    "random_copies",
    "random_reads",
]

#: Cipher suites by name, the default first: sizes of key and tag, AES rounds for 16 bytes.
SUITES: abc.Mapping[str, Suite] = MappingProxyType(suites.SUITES)

#: Names of the mechanisms by which a mapping learns of a touch; a system need not have each.
MECHANISMS: tuple[str, ...] = tuple(FAULTS)

#: What pages() does.
OPERATIONS: tuple[str, ...] = ("seal", "open")

_LINE = 64  # bytes of one random read or copy
_LOADS = 256  # bytes that one turn of plain_read() loads
_MOST_LINES = 2**32 - 1  # that the generator of places chooses from
_MOST_COUNT = 2**63 - 1
_MOST_BLOCK = 2**40


def _counted(name: str, value: Any) -> int:
    """Returns `value` as a number of turns of a loop."""
    number = integer(name, value)
    if not 1 <= number <= _MOST_COUNT:
        raise errors.ArgumentError(f"{name} is {number}; it must be from 1 to 2^63 - 1.")
    return number


def _named(name: str, value: Any, names: abc.Iterable[str]) -> str:
    """Returns `value` if it is one of `names`."""
    if not isinstance(value, str):
        raise errors.ArgumentTypeError(f"{name} must be a str, not {type(value).__name__}.")
    if value not in names:
        raise errors.ArgumentError(
            f"{name} is {value[:40]!a}; it must be one of {', '.join(names)}."
        )
    return value


def _suite(cipher: Any) -> Suite:
    return SUITES[_named("cipher", cipher, SUITES)]


def _checked_buffer(buffer: Any) -> EncryptedBuffer:
    if not isinstance(buffer, EncryptedBuffer):
        raise errors.ArgumentTypeError(
            f"buffer must be an EncryptedBuffer, not {type(buffer).__name__}."
        )
    return buffer


def _checked_lines(name: str, nbytes: int) -> None:
    if not 1 <= nbytes // _LINE <= _MOST_LINES:
        raise errors.ArgumentError(
            f"{name} has {nbytes} bytes; to take {_LINE} at random it must have from {_LINE} to "
            f"{_LINE * (_MOST_LINES + 1) - 1}."
        )


def _address(memory: Any) -> int:
    return int(ffi.cast("uintptr_t", memory))


def _overlap(a: Any, b: Any) -> bool:
    """Returns True when two native buffers share a byte."""
    first, second = _address(a), _address(b)
    return first < second + len(b) and second < first + len(a)


# ---- the processor -------------------------------------------------------------------------------


def ceiling(tier: str | None, cipher: str, repeats: int) -> float:
    """Returns how many bytes a second the tier's AES instruction could encrypt if a cipher were
    nothing but its AES rounds: `repeats` rounds on eight registers that do not wait for each other.
    0 for a tier without such an instruction, and for a cipher that is not made of AES."""
    number, suite, repeats = tier_number(tier), _suite(cipher), _counted("repeats", repeats)
    return float(lib.ccmem_measure_ceiling(number, suite.aes_rounds, repeats))


def pages(
    tier: str | None,
    cipher: str,
    operation: str,
    source: Any,
    out: Any,
    repeats: int,
    *,
    page_size: int = 4096,
) -> float:
    """Times `repeats` passes, each of which seals or opens all pages of `source` into `out`, under
    a random key. Both are writable, have the same size, a multiple of `page_size`, and are either
    the same memory or do not overlap.

    To "open" with a cipher that has tags, `out` must be other memory than `source`, whose pages are
    first sealed in place, which is not timed. Raises IntegrityError when one of them does not open
    again: a fault of the tier's code.
    """
    number, suite, repeats = tier_number(tier), _suite(cipher), _counted("repeats", repeats)
    page_size = checked_page_size(page_size)
    seal = _named("operation", operation, OPERATIONS) == "seal"
    seconds = ffi.new("double *")
    with output_buffer("source", source) as given, output_buffer("out", out) as taken:
        if len(given) != len(taken) or len(given) % page_size or not len(given):
            raise errors.ArgumentError(
                f"source has {len(given)} bytes and out {len(taken)}; both must have the same "
                f"number of whole pages of {page_size} bytes, at least one."
            )
        in_place = _address(given) == _address(taken)
        if not in_place and _overlap(given, taken):
            raise errors.ArgumentError(
                "source and out overlap in part; pass the same memory twice, or memory apart."
            )
        if in_place and suite.tag_size and not seal:
            raise errors.ArgumentError(
                f"out is source, but pages of {cipher} cannot be opened in place time and again; "
                f"pass other memory as out."
            )
        status = lib.ccmem_measure_pages(
            number,
            suite.number,
            lib.CCMEM_MEASURE_SEAL if seal else lib.CCMEM_MEASURE_OPEN,
            given,
            taken,
            page_size,
            len(given) // page_size,
            repeats,
            seconds,
        )
    if status == lib.CCMEM_ERR_INTEGRITY:
        raise errors.IntegrityError(
            f"A page sealed with {cipher} by {tier or 'the tier in use'} does not open again, so "
            f"that its code computes something wrong; run pyccmem.selftest()."
        )
    check(status, Call("timing pages", "buffer"))
    return float(seconds[0])


# ---- plain memory --------------------------------------------------------------------------------


def memcpy(out: Any, source: Any) -> float:
    """Times one memcpy of all of `source` to `out`, of the same size and apart."""
    with output_buffer("out", out) as taken, input_buffer("source", source) as given:
        if len(taken) != len(given):
            raise errors.ArgumentError(
                f"source has {len(given)} bytes and out {len(taken)}; they must be of one size."
            )
        if _overlap(taken, given):
            raise errors.ArgumentError("source and out overlap; copy to memory apart.")
        return float(lib.ccmem_measure_memcpy(taken, given, len(given)))


def plain_read(memory: Any) -> float:
    """Times one pass that loads all of `memory`, a multiple of 256 bytes, by the widest loads of
    the tier in use, and does nothing with them."""
    with input_buffer("memory", memory) as given:
        if len(given) % _LOADS:
            raise errors.ArgumentError(
                f"memory has {len(given)} bytes; it must have a multiple of {_LOADS}."
            )
        return float(lib.ccmem_measure_plain_read(given, len(given)))


def random_copies(memory: Any, count: int, *, dependent: bool) -> float:
    """Times random_reads()'s walk with a copy of 64 plain bytes of `memory` in place of each
    read."""
    count = _counted("count", count)
    seconds = ffi.new("double *")
    with input_buffer("memory", memory) as given:
        _checked_lines("memory", len(given))
        status = lib.ccmem_measure_random_copies(given, len(given), count, bool(dependent), seconds)
    check(status, Call("timing random copies", "memory"))
    return float(seconds[0])


# ---- a buffer ------------------------------------------------------------------------------------


def random_reads(buffer: EncryptedBuffer, count: int, *, dependent: bool) -> float:
    """Times `count` reads of 64 bytes at random places of the buffer, each a multiple of 64.
    `dependent`: a place depends on the bytes read before, so that each read waits for the last one
    (latency); else reads may overlap (throughput)."""
    count, buffer = _counted("count", count), _checked_buffer(buffer)
    _checked_lines("buffer", buffer.nbytes)
    seconds = ffi.new("double *")
    status = lib.ccmem_measure_random_reads(handle(buffer), count, bool(dependent), seconds)
    if status != OK:
        fail(buffer, status, 0, buffer.nbytes)
    return float(seconds[0])


def open_to_scratch(buffer: EncryptedBuffer, scratch: Any) -> float:
    """Times one pass that decrypts the whole buffer through `scratch`, as much at a time as fits.
    The last piece stays there in the clear."""
    buffer = _checked_buffer(buffer)
    seconds = ffi.new("double *")
    with output_buffer("scratch", scratch) as memory:
        if not len(memory):
            raise errors.ArgumentError("scratch is empty; it must have at least one byte.")
        status = lib.ccmem_measure_open_to_scratch(handle(buffer), memory, len(memory), seconds)
    if status != OK:
        fail(buffer, status, 0, buffer.nbytes)
    return float(seconds[0])


def gather(buffer: EncryptedBuffer, offsets: npt.NDArray[np.uint64], run: int, out: Any) -> None:
    """Decrypts `run` bytes from each of the offsets, a C-contiguous array of uint64, into `out`,
    which has room for just these, in one native call. Not timed: a caller that makes many such
    calls takes the time of all. Raises RangeError; on IntegrityError all of `out` is zeros."""
    buffer, run = _checked_buffer(buffer), _counted("run", run)
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.uint64:
        kind = offsets.dtype if isinstance(offsets, np.ndarray) else type(offsets).__name__
        raise errors.ArgumentTypeError(f"offsets must be an array of uint64, not {kind}.")
    with input_buffer("offsets", offsets) as places, output_buffer("out", out) as memory:
        if len(memory) != offsets.size * run:
            raise errors.ArgumentError(
                f"out has {len(memory)} bytes for {offsets.size} runs of {run}; it must have room "
                f"for just these, {offsets.size * run} bytes."
            )
        words = ffi.cast("uint64_t *", places)
        status = lib.ccmem_store_gather(handle(buffer), words, offsets.size, run, memory)
    if status != OK:
        fail(buffer, status, int(offsets.flat[0]) if offsets.size else 0, run)


def mapped(buffer: EncryptedBuffer, window: int, mechanism: str, *, block: int = 0) -> Mapping:
    """Maps the whole buffer for reading, as its map() does, by the mechanism named (see MECHANISMS)
    instead of the best one, and in blocks of `block` bytes: a power of two, at least a page of the
    buffer and of the system; 0: as map() chooses. Raises FaultMechanismError where the system does
    not have the mechanism."""
    buffer, block = _checked_buffer(buffer), integer("block", block)
    fault = FAULTS[_named("mechanism", mechanism, MECHANISMS)]
    least = max(buffer.page_size, os.sysconf("SC_PAGESIZE"))
    if block and (block & (block - 1) or not least <= block <= _MOST_BLOCK):
        raise errors.ArgumentError(
            f"block is {block} bytes; it must be 0, or a power of two from {least} to 2^40."
        )
    return Mapping(
        buffer,
        0,
        (buffer.nbytes,),
        np.dtype(np.uint8),
        window,
        _block=block,
        _fault=fault,
    )


# ---- a cache that encrypts nothing ---------------------------------------------------------------


def plain_cache(
    layers: int,
    heads: int | Sequence[int],
    key_size: int | Sequence[int],
    value_size: int | Sequence[int] | None = None,
    *,
    dtype: str = "bfloat16",
    sequences: int = 1,
    name: str | None = None,
) -> KVCache:
    """Returns a KVCache that works as KVCache(...) with the same arguments does, by the same code,
    but holds keys and values **in the clear**: nothing is encrypted, and no change is noticed. A
    call of it takes what the same call of an encrypted cache takes without the cipher. For nothing
    else; `name` is "plain-cache-..." unless given.

    Not timed: a caller takes the time of its calls. Raises what KVCache() does.
    """
    return KVCache(
        layers,
        heads,
        key_size,
        value_size,
        dtype=dtype,
        sequences=sequences,
        name=name,
        _encrypted=False,
    )
