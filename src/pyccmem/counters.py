# SPDX-License-Identifier: Apache-2.0
"""What the methods `stats()` return: dictionaries whose names and types a type checker knows.

from pyccmem.counters import BufferStats

def report(counts: BufferStats) -> str:
    return f"{counts['pages_opened']} pages opened"
"""

from __future__ import annotations

from typing import TypedDict

__all__ = ["BatchCacheStats", "BufferStats", "CacheStats", "MappingStats", "ProcessStats"]


class BufferStats(TypedDict):
    """Counts since a buffer was made, by EncryptedBuffer.stats()."""

    reads: int  #: calls
    writes: int  #: calls
    bytes_read: int
    bytes_written: int
    pages_opened: int
    pages_sealed: int
    tweak_hits: int
    tweak_misses: int
    retries: int  #: reads repeated because of a concurrent write
    integrity_failures: int  #: times a page did not match its tag
    overhead_bytes: int  #: memory besides the pages


class CacheStats(TypedDict):
    """Counts for a key-value cache and its forks together, by KVCache.stats() and
    EncryptedCache.stats()."""

    blocks: int  #: of a head
    records: int  #: of tokens that are not in blocks yet
    ciphertext_bytes: int  #: of these
    memory_bytes: int  #: of all
    sealed: int
    opened: int
    integrity_failures: int


class BatchCacheStats(CacheStats):
    """Sums over the requests of a batch, by the cache of generate_batch()."""

    requests: int  #: that have something


class MappingStats(TypedDict):
    """What a mapping holds and did, by Mapping.stats()."""

    window: int  #: bytes
    block: int  #: bytes
    resident: int  #: bytes in the clear now
    peak: int  #: the most
    faults: int
    fills: int
    read_ahead: int
    evictions: int
    write_backs: int
    kernel_access: bool
    mechanism: str


class ProcessStats(TypedDict):
    """What this process protects now, by pyccmem.stats(), which explains each."""

    buffers: int
    bytes: int
    ciphertext_bytes: int
    overhead_bytes: int
    integrity_failures: int
    fresh_bytes: int
    caches: int
    tier: str
    threads: int
    level: str
    plain_blocks: int
    plain_in_use: int
    plain_peak: int
    plain_kept: int
    plaintext_budget: int | None
    plaintext_reserved: int
    plaintext_resident: int
    plaintext_peak: int
    plaintext_byte_seconds: float
    map_faults: int
    map_fills: int
    map_read_ahead: int
    map_evictions: int
    map_write_backs: int
