# SPDX-License-Identifier: Apache-2.0
"""Lines about pyccmem itself in this process: its kernels and their test, where keys lie, whether
pages were changed, and how much plaintext it may hold."""

from __future__ import annotations

from collections import Counter

from .. import errors, host
from ..arena import open_arenas
from ..binding import AUTHENTICATED, LEVELS, TIERS, active_tier, check, lib
from ..binding.status import TierCall
from ..buffer import open_buffers
from ..core.kv_tables import KVTables, open_caches
from ..core.secret_level import wanted_level
from ..process import stats
from .line import BAD, GOOD, WEAK, Finding
from .subject import Subject

__all__ = ["integrity", "plaintext_budget", "secret_memory", "self_tests", "tier"]


def tier(subject: Subject) -> Finding:
    """Which kernels run."""
    name = active_tier()
    seen = f"{name}, on {host.processor_name(str(subject.root))}"
    if name == "portable":
        return Finding(
            WEAK,
            f"{seen}: constant-time, but slow, so that calls hold plaintext for longer",
            "use a processor with AES instructions, and do not set PYCCMEM_TIER=portable",
        )
    return Finding(GOOD, seen)


def self_tests(_: Subject) -> Finding:
    """Runs the known-answer tests of the tier in use."""
    name = active_tier()
    try:
        check(lib.ccmem_selftest(TIERS[name]), TierCall(f"the {name} tier", "tier", name))
    except errors.SelfTestError as error:
        return Finding(
            BAD, str(error).rstrip("."), "do not use this machine; `pyccmem selftest` tells more"
        )
    return Finding(GOOD, f"the known-answer tests of {name} passed just now")


def secret_memory(_: Subject) -> Finding:
    """Where keys lie: those of all open buffers, arenas and caches, and the next one."""
    levels = Counter(buffer.level for buffer in open_buffers())
    levels.update(arena.level for arena in open_arenas())
    levels.update(filter(None, map(_level_of, open_caches())))
    best = LEVELS[lib.ccmem_secret_probe()]
    wanted = wanted_level(None, None)
    following = "mlock" if wanted == "mlock, and no other" else best
    seen = ", ".join(f"{count} at {name}" for name, count in levels.items())
    seen = f"new keys at {following}" + (f"; keys in use: {seen}" if seen else "")
    if best == "none" or (wanted == "secretmem" and best != wanted):
        remedy = "raise `ulimit -l` (LimitMEMLOCK=), or ask for less by PYCCMEM_SECRET"
        return Finding(BAD, f"no key can be made; this process reaches the level {best}", remedy)
    if {following, *levels} - {"secretmem"}:
        if best != "secretmem":
            remedy = (
                "use Linux 6.5 or newer, or boot with `secretmem.enable=1`; allow "
                "memfd_secret in the container's seccomp profile; raise `ulimit -l`"
            )
        else:
            remedy = "do not ask for level='mlock', nor set PYCCMEM_SECRET=mlock"
        return Finding(WEAK, f"{seen}; mlock is open to root, and to hibernation", remedy)
    return Finding(GOOD, seen)


def _level_of(cache: KVTables) -> str | None:
    """Returns where a cache's key lies; None if another thread closed it, and for one that encrypts
    nothing, of which `caches` tells."""
    try:
        level = cache.level
    except errors.ClosedError:
        return None
    return None if level == "none" else level


def integrity(_: Subject) -> Finding:
    """Whether changes of ciphertext are noticed, and whether there were any."""
    now = stats()
    failures, damaged = now["integrity_failures"], sum(map(_was_changed, open_caches()))
    seen = f"{now['buffers']} buffers and tensors, {now['caches']} caches"
    if now["bytes"]:
        seen += (
            f"; {now['fresh_bytes']} of {now['bytes']} bytes are fresh: frozen, in sealed files, "
            f"or with versions in locked memory"
        )
    if failures or damaged:
        return Finding(
            BAD,
            f"{failures} times a page did not match its tag, and in {damaged} caches a block did "
            f"not ({seen})",
            "find out who changed memory (verify() lists pages); make what is damaged anew",
        )
    without = {b.name for b in open_buffers() if not b.authenticated}
    without |= {arena.name for arena in open_arenas() if arena.cipher not in AUTHENTICATED}
    if without:
        return Finding(
            WEAK,
            f"changes go unnoticed in {_names(without)}, which use XTS ({seen})",
            "use the cipher aegis-128x2, the default",
        )
    return Finding(GOOD, f"no page failed to match its tag ({seen})")


def _was_changed(cache: KVTables) -> bool:
    """Returns True when a block of a cache, or of a fork of it, did not match its tag."""
    try:
        return cache.stats()["integrity_failures"] > 0
    except (errors.ClosedError, errors.ForkError):
        return False


def _names(names: set[str], most: int = 3) -> str:
    """Returns some of the names, and how many more there are."""
    told = ", ".join(f"{name!a}" for name in sorted(names)[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"


def plaintext_budget(_: Subject) -> Finding:
    """How much plaintext pyccmem may hold at once, and held."""
    now = stats()
    budget, peak = now["plaintext_budget"], now["plaintext_peak"]
    seen = f"{now['plaintext_resident']} bytes in the clear now, {peak} at the most"
    remedy = "pyccmem.set_plaintext_budget('256MiB'), or what the program needs, at the start"
    if budget is None:
        return Finding(WEAK, f"no limit; {seen}", remedy)
    if peak > budget:
        return Finding(WEAK, f"limit {budget} bytes, set when more had been open; {seen}", remedy)
    return Finding(GOOD, f"limit {budget} bytes; {seen}")
