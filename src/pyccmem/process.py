# SPDX-License-Identifier: Apache-2.0
"""Functions for the whole process: counts of open buffers, threads, the plaintext budget, the
self-test."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import errors
from .arena import totals
from .binding import CIPHERS, LEVELS, TIERS, Call, active_tier, check, ffi, lib, wiped
from .binding.arguments import byte_count, integer
from .binding.status import TierCall
from .buffer import EncryptedBuffer, open_buffers
from .core.kv_tables import open_caches
from .core.store import handle, shared_by
from .counters import ProcessStats
from .keys import Key

__all__ = [
    "get_num_threads",
    "get_plaintext_budget",
    "selftest",
    "set_num_threads",
    "set_plaintext_budget",
    "stats",
]


def stats() -> ProcessStats:
    """Returns what this process protects now: `buffers` (open ones, and tensors in arenas), `bytes`
    of plaintext they hold, `ciphertext_bytes` in whole pages, `overhead_bytes` besides them,
    `integrity_failures` (times one of their pages did not match its tag), `fresh_bytes` (of
    plaintext, whose pages cannot be put back from an earlier time; see EncryptedTensor.fresh);
    `caches`, open key-value caches, forks among them; `tier`, `threads`, and `level`, the best
    secret-memory level available ("secretmem", "mlock" or "none"). For the memory of plaintext
    arrays: `plain_blocks` (in use), `plain_in_use` (their bytes), `plain_peak` (the most at once)
    and `plain_kept` (wiped bytes kept for reuse).

    For all plaintext, which is that memory and the windows of mappings: `plaintext_budget` (None:
    no limit), `plaintext_reserved` (what the budget is checked against: arrays, and windows whether
    filled or not), `plaintext_resident` (bytes that hold plaintext now), `plaintext_peak` (the most
    at once), `plaintext_byte_seconds` (resident bytes times the seconds for which they were). For
    mappings: `map_faults` (touches of absent blocks), `map_fills` (blocks opened), `map_read_ahead`
    (blocks opened before a touch), `map_evictions`, `map_write_backs` (blocks sealed)."""
    buffers = open_buffers()
    arenas = totals()
    sums = {name: arenas[name] for name in ("overhead_bytes", "integrity_failures", "fresh_bytes")}
    files = set()
    for buffer in buffers:
        shared = shared_by(buffer)
        try:
            counts = buffer.stats()
            if buffer.fresh:
                sums["fresh_bytes"] += buffer.nbytes
        except errors.ClosedError:  # another thread closed it after the list was made
            continue
        sums["overhead_bytes"] += counts["overhead_bytes"]
        if shared not in files:  # the buffers of a file are counted together
            sums["integrity_failures"] += counts["integrity_failures"]
        if shared is not None and shared not in files:
            files.add(shared)
            sums["overhead_bytes"] += shared.overhead()
    plain = wiped.stats()
    budget = _plaintext()
    regions = ffi.new("ccmem_region_stats *")
    lib.ccmem_regions_get_stats(regions)
    return ProcessStats(
        buffers=len(buffers) + arenas["stores"],
        bytes=sum(buffer.nbytes for buffer in buffers) + arenas["bytes"],
        ciphertext_bytes=arenas["ciphertext_bytes"]
        + sum(-(-buffer.nbytes // buffer.page_size) * buffer.page_size for buffer in buffers),
        overhead_bytes=sums["overhead_bytes"],
        integrity_failures=sums["integrity_failures"],
        fresh_bytes=sums["fresh_bytes"],
        caches=sum(1 for _ in open_caches()),
        tier=active_tier(),
        threads=get_num_threads(),
        level=LEVELS[lib.ccmem_secret_probe()],
        plain_blocks=plain["plain_blocks"],
        plain_in_use=plain["plain_in_use"],
        plain_peak=plain["plain_peak"],
        plain_kept=plain["plain_kept"],
        plaintext_budget=int(budget.budget) or None,
        plaintext_reserved=int(budget.reserved),
        plaintext_resident=int(budget.resident),
        plaintext_peak=int(budget.peak),
        plaintext_byte_seconds=float(budget.byte_seconds),
        map_faults=int(regions.faults),
        map_fills=int(regions.fills),
        map_read_ahead=int(regions.read_ahead),
        map_evictions=int(regions.evictions),
        map_write_backs=int(regions.write_backs),
    )


def _plaintext() -> Any:
    """Returns the native counters of the plaintext budget."""
    budget = ffi.new("ccmem_plaintext_stats *")
    lib.ccmem_plaintext_get_stats(budget)
    return budget


def set_plaintext_budget(nbytes: int | str | None) -> None:
    """Bounds the plaintext of the whole process: what windows of mappings, arrays that tensors
    return, scoped opens and tiles of products take together. `nbytes` is a number of bytes or text
    such as "256MiB"; None: no bound, as at the start. A call that would exceed the bound raises
    PlaintextBudgetError.

    Raises PlaintextBudgetError, and changes nothing, if more is taken now; ArgumentError,
    ArgumentTypeError."""
    limit = 0 if nbytes is None else byte_count("nbytes", nbytes)
    status = lib.ccmem_set_plaintext_budget(limit)
    if status == lib.CCMEM_ERR_BUDGET:
        taken = int(_plaintext().reserved)
        raise errors.PlaintextBudgetError(
            f"The budget cannot be {limit} bytes while {taken} are taken; close mappings and drop "
            f"arrays first, or set at least that much."
        )
    check(status, Call("set_plaintext_budget"))


def get_plaintext_budget() -> int | None:
    """Returns the bound that was set, in bytes, or None."""
    return int(_plaintext().budget) or None


def set_num_threads(threads: int) -> None:
    """Sets how many threads, the caller's included, one bulk read or write may use, for the whole
    process: 1 to 256. Raises ArgumentError, ArgumentTypeError."""
    threads = integer("threads", threads)
    most = int(lib.CCMEM_MAX_THREADS)
    if not 1 <= threads <= most:
        raise errors.ArgumentError(f"threads is {threads}; it must be from 1 to {most}.")
    check(lib.ccmem_set_threads(threads), Call("set_num_threads"))


def get_num_threads() -> int:
    """Returns the number that was set, or the size of the process's CPU affinity if none was."""
    return int(lib.ccmem_threads())


def _notices_changes(buffer: EncryptedBuffer) -> str | None:
    """Changes one bit of a tag, and puts it back later. Returns what went wrong, or None."""
    if buffer.verify():
        return "a page as it was written does not match its tag"
    records = ffi.new("uint64_t **"), ffi.new("uint8_t **")
    check(lib.ccmem_store_records(handle(buffer), *records), Call(subject="buffer"))
    tag = records[1][0]
    tag[0] ^= 1
    try:
        buffer.read(0, 1)
    except errors.IntegrityError:
        noticed = buffer.verify() == [0]
    else:
        noticed = False
    tag[0] ^= 1
    if not noticed:
        return "a changed tag is not noticed"
    return "a tag put back does not match" if buffer.verify() else None


def _round_trip(cipher: str) -> str | None:
    """Writes and reads a buffer in whole and in part. Returns what went wrong, or None."""
    size, page = 3 * 4096 + 100, 4096
    plain = os.urandom(size)
    with (
        Key.generate() as key,
        EncryptedBuffer(size, key=key, cipher=cipher, page_size=page) as buffer,
    ):
        if buffer.read() != bytes(size):
            return "a new buffer does not read as zeros"
        buffer.write(plain)
        stored = bytes(buffer.ciphertext)
        if buffer.read() != plain:
            return "what was written is not what is read"
        if any(plain[at : at + 16] in stored for at in range(0, size - 16, 16)):
            return "the stored bytes hold plaintext"
        before = buffer.versions
        out = bytearray(50)
        if buffer.read_into(out, page - 25) != len(out) or out != plain[page - 25 : page + 25]:
            return "a read across two pages is wrong"
        buffer.write(out, page - 25)
        moved = [int(n) for n in buffer.versions - before]
        if moved != [1, 1, 0, 0]:
            return "a write did not move just the pages it touched to their next versions"
        if buffer.read() != plain:
            return "a write of the same bytes changed others"
        if bytes(buffer.ciphertext)[: 2 * page] == stored[: 2 * page]:
            return "a new version has the ciphertext of the old one"
        return _notices_changes(buffer) if buffer.authenticated else None


def selftest() -> dict[str, Any]:
    """Runs the known-answer tests of every tier that this processor can run, and writes and reads
    buffers of every cipher with the tier in use. With tags, also changes a page and expects an
    error.

    Returns {"tier": the one in use, "tiers": {name: "passed" or "unusable", which is no failure:
    the processor lacks what the tier needs}, "buffers": {cipher: "passed"}}. Raises SelfTestError,
    which says what failed; its `result` attribute is the same dict with "failed" in it.
    """
    problems: list[str] = []

    def outcome(name: str, test: Callable[[], str | None]) -> str:
        try:
            problem = test()
        except errors.TierError:
            return "unusable"
        except errors.SelfTestError as error:
            problem = str(error)
        if problem is None:
            return "passed"
        problems.append(f"{name}: {problem.rstrip('.')}")
        return "failed"

    def known_answers(tier: str) -> None:
        check(lib.ccmem_selftest(TIERS[tier]), TierCall(f"the {tier} tier", "tier", tier))

    result: dict[str, Any] = {
        "tier": active_tier(),
        "tiers": {
            tier: outcome(tier, lambda tier=tier: known_answers(tier))  # type: ignore[misc]
            for tier in TIERS
        },
        "buffers": {
            cipher: outcome(cipher, lambda cipher=cipher: _round_trip(cipher))  # type: ignore[misc]
            for cipher in CIPHERS
        },
    }
    if problems:
        raise errors.SelfTestError(f"The self-test failed: {'; '.join(problems)}.", result)
    return result
