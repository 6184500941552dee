# SPDX-License-Identifier: Apache-2.0
"""The only module that touches the native one: start-up, names of its constants, its errors.

Importing it starts the native library: the tier that PYCCMEM_TIER names, or the best one, passes
its known-answer tests (the others are tested before their first use); PYCCMEM_NUM_THREADS bounds
the threads of a bulk operation; PYCCMEM_FAULT names the mechanism of mappings.
"""

from __future__ import annotations

import errno
import os
import warnings
from typing import Any

import numpy as np

from . import errors
from ._native import ffi, lib

__all__ = [
    "AUTHENTICATED",
    "BUFFER_PAGE_SIZE",
    "CIPHERS",
    "DEFAULT_CIPHER",
    "FAULTS",
    "LEVELS",
    "OK",
    "TENSOR_PAGE_SIZE",
    "TIERS",
    "active_tier",
    "anchor",
    "check",
    "features",
    "ffi",
    "lib",
    "lost_page",
    "tier_number",
    "usable_tiers",
]

OK: int = lib.CCMEM_OK

#: Cipher suites by name, the default first.
CIPHERS: dict[str, int] = {
    "aegis-128x2": lib.CCMEM_AEGIS_128X2,
    "aes-128-xts": lib.CCMEM_AES_128_XTS,
    "aes-256-xts": lib.CCMEM_AES_256_XTS,
}

#: The cipher of everything that is made without naming one.
DEFAULT_CIPHER = "aegis-128x2"

#: The names of those whose pages have a tag, so that every change is noticed.
AUTHENTICATED = frozenset(
    name for name, number in CIPHERS.items() if lib.ccmem_cipher_authenticated(number)
)

#: Bytes of a page where none are named.
BUFFER_PAGE_SIZE = 4096
TENSOR_PAGE_SIZE = 4096

#: Names of the secret-memory levels, weakest first.
LEVELS: dict[int, str] = {
    lib.CCMEM_SECRET_NONE: "none",
    lib.CCMEM_SECRET_MLOCK: "mlock",
    lib.CCMEM_SECRET_MEMFD: "secretmem",
}

#: Every tier by name, best first, whether this processor can run it or not.
TIERS: dict[str, int] = {
    ffi.string(lib.ccmem_tier_name(tier)).decode(): tier
    for tier in reversed(range(lib.CCMEM_TIER_COUNT))
}


#: How a mapping learns of a touch, by the name that PYCCMEM_FAULT takes.
FAULTS: dict[str, int] = {
    "auto": lib.CCMEM_FAULT_AUTO,
    "uffd": lib.CCMEM_FAULT_UFFD,
    "uffd-signal": lib.CCMEM_FAULT_UFFD_SIGNAL,
    "uffd-copy": lib.CCMEM_FAULT_UFFD_COPY,
    "sigsegv": lib.CCMEM_FAULT_SIGSEGV,
}


def anchor(owner: Any) -> Any:
    """Something that keeps `owner`, made by ffi.gc(), out of the garbage collector's sight.

    When a reference cycle is collected, cffi runs the destructors of all its members first, and
    finalizers (`__del__`) that come after may still use the objects, or even save them. An ndarray
    is not tracked by the collector, so to it the reference in this one comes from outside: `owner`
    is never destroyed by a collection, only when its last reference goes.
    """
    holder = np.empty((), dtype=object)
    holder[()] = owner
    return holder


def usable_tiers() -> list[str]:
    """Names of the tiers that this processor can run and that passed their test, best first."""
    return [name for name, tier in TIERS.items() if lib.ccmem_tier_usable(tier)]


def active_tier() -> str:
    """Name of the tier in use."""
    return str(ffi.string(lib.ccmem_tier_name(lib.ccmem_tier_active())).decode())


def features() -> dict[str, bool]:
    """Processor features that the tiers ask for, and whether this process may use them."""
    found: dict[str, bool] = {}
    present = ffi.new("int *")
    while name := lib.ccmem_cpu_feature(len(found), present):
        found[ffi.string(name).decode()] = bool(present[0])
    return found


def tier_number(name: str | None) -> int:
    """The native number of a usable tier; of the one in use for None. The first question for a tier
    runs its known-answer tests. Raises TierError, SelfTestError."""
    if name is None:
        return int(lib.ccmem_tier_active())
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(
            f"tier must be a tier's name or None, not {type(name).__name__}."
        )
    status = lib.ccmem_tier_check(TIERS[name]) if name in TIERS else lib.CCMEM_ERR_TIER
    check(status, action=f"the {name} tier", setting="tier", tier=name)
    return TIERS[name]


def _memlock_limit() -> str:
    """RLIMIT_MEMLOCK of this process in words."""
    try:
        import resource

        soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    except (ImportError, OSError, ValueError):
        return "unknown"
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"


def _memory_limits() -> str:
    """The limits of this process that a refusal of memory may come from, in words."""
    found = ""
    try:
        with open("/proc/sys/vm/max_map_count", "rb") as file:
            most = int(file.read())
        with open("/proc/self/maps", "rb") as file:
            number = sum(1 for _ in file)
        if number > most - 64:
            found = (
                f" (this process has {number} mappings, and vm.max_map_count allows {most}: raise "
                f"it with 'sysctl -w vm.max_map_count=NUMBER', or encrypt many tensors together "
                f"in a pyccmem.Arena)"
            )
    except (OSError, ValueError, MemoryError):
        pass
    try:
        import resource

        soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError, ValueError, MemoryError):
        return found
    if soft != resource.RLIM_INFINITY:
        found += f" (RLIMIT_AS, 'ulimit -v', is {soft // 1024} KiB)"
    return found


def _tier_message(setting: str, tier: str) -> str:
    known = "is not a tier" if tier not in TIERS else "is a tier that this processor cannot run"
    usable = ", ".join(usable_tiers())
    auto = "leave it unset" if setting.isupper() else "pass None"
    return f"{setting}={tier!r} {known}; use one of {usable}, or {auto} for the default."


#: Set in a page's version word while it is written.
_WRITING = 1 << 63


def lost_page(store: Any, name: str, page: int) -> errors.FileReadError | None:
    """The error for a page of a sealed file that could not be had from it; None for any other."""
    path = lib.ccmem_store_lost(store, page) if store is not None else ffi.NULL
    if not path:
        return None
    filename = os.fsdecode(ffi.string(path))
    return errors.FileReadError(
        f"Page {page} of {name!a} cannot be had from its file {filename!a}: it was cut short while "
        f"it was open, or its file system failed. Nothing of the page was handed out; mend the "
        f"file, or use a good copy, and load it again: what is open stays without the page."
    ).of_system(errno.EIO, filename)


def _changed_page(name: str, page_size: int, nbytes: int, store: Any) -> errors.PyccmemError:
    """What the last CCMEM_ERR_INTEGRITY of a store in this thread means."""
    failure = lib.ccmem_last_failure()
    page, version = int(failure.page), int(failure.version)
    lost = lost_page(store, name, page)
    if lost is not None:
        return lost
    first = page * page_size
    where = f"Page {page} of buffer {name!a} (bytes {first} to {min(first + page_size, nbytes) - 1}"
    if version >= _WRITING:
        version -= _WRITING
        what = f"{where}) is marked as being written, and nothing is writing"
    elif version:
        what = (
            f"{where}, version {version}) does not match its tag: its ciphertext, its tag or its "
            f"version was changed since it was written"
        )
    else:
        what = f"{where}) is marked as never written, but was written"
    return errors.IntegrityError(
        f"{what}. Nothing of it was handed out; write the whole page anew from a good copy, or use "
        f"the other pages only.",
        name=name,
        page=page,
        version=version,
        offset=first,
    )


def check(status: int, **context: Any) -> None:
    """Does nothing for CCMEM_OK, and raises the exception that any other status stands for.

    This is the one place where a native status becomes an exception. `context` holds what the
    caller knows and the sentence should say: `subject` ("key" or "buffer"), `action`, `offset`,
    `length`, `nbytes`, `name`, `page_size` and `store` of a buffer, `setting`, `tier`, `require`,
    `path`, `errno`; `unwrapping` a key, `mapping` a file's pages; `window` of a mapping and what
    it `pinned`.
    """
    if status == OK:
        return
    if status == lib.CCMEM_ERR_INTEGRITY:
        # First of all: which page it was is known until the next failure in this thread.
        if "page_size" in context:
            raise _changed_page(
                context["name"], context["page_size"], context["nbytes"], context.get("store")
            )
        if "unwrapping" in context:
            raise errors.IntegrityError(
                "The wrapped key cannot be unwrapped with this key: it was wrapped under another "
                "one, or changed since; use the key that it was wrapped under."
            )
        raise errors.IntegrityError(
            "The message does not match its tag: the ciphertext, the tag, the nonce, the "
            "associated data or the key is not what it was when the message was sealed; nothing "
            "was decrypted, so ask for the message again."
        )
    native = ffi.string(lib.ccmem_status_text(status)).decode()
    subject = context.get("subject", "object")
    action = context.get("action", "this operation")
    if status == lib.CCMEM_ERR_READONLY:
        raise errors.ReadOnlyError(
            f"Buffer {context['name']!a} is read-only, since its pages lie in a sealed file that "
            f"other processes may have loaded too; make a writable copy of the tensor with "
            f"tensor.copy(key=...)."
        )
    if status == lib.CCMEM_ERR_RANGE and "mapping" in context:
        raise errors.FileFormatError(
            f"The file {context.get('path', '')!a} ends before the pages of "
            f"{context['name']!a}, which begin at byte {context['offset']} and take "
            f"{context['length']} bytes; use the whole file."
        )
    if status == lib.CCMEM_ERR_RANGE:
        offset, length, nbytes = context["offset"], context["length"], context["nbytes"]
        raise errors.RangeError(
            f"{length} bytes at offset {offset} reach outside the buffer of {nbytes} bytes; "
            f"offset must be at least 0 and offset plus length at most {nbytes}."
        )
    if status == lib.CCMEM_ERR_FORK:
        raise errors.ForkError(
            f"This {subject} belongs to the process that this one was forked from, and its keys "
            f"do not follow a fork; make a new key and a new buffer in the child, or start it "
            f"with the 'spawn' method."
        )
    if status == lib.CCMEM_ERR_CLOSED:
        raise errors.ClosedError(
            f"This {subject} was closed when the garbage collector found it in a cycle of objects "
            f"that nothing else refers to; read what you need before."
        )
    if status == lib.CCMEM_ERR_EQUAL_HALVES:
        raise errors.InvalidKeyError(
            "The two halves of the XTS key are equal, which voids its security; use a key whose "
            "first half K1 and second half K2 differ (IEEE 1619-2018, 5.1)."
        )
    if status == lib.CCMEM_ERR_NOMEM:
        raise errors.OutOfMemoryError(
            f"The system refused the memory for {action}, or another mapping or file descriptor "
            f"for it{_memory_limits()}; free some, or ask for less."
        )
    if status == lib.CCMEM_ERR_BUDGET:
        state = ffi.new("ccmem_plaintext_stats *")
        lib.ccmem_plaintext_get_stats(state)
        raise errors.PlaintextBudgetError(
            f"The plaintext budget of {state.budget} bytes, of which {state.reserved} are taken, "
            f"leaves no room for {action}; close mappings and arrays that are no longer used, ask "
            f"for less (of a mapping with window=), or raise it with set_plaintext_budget()."
        )
    if status == lib.CCMEM_ERR_PINNED:
        raise errors.PlaintextBudgetError(
            f"The window of {context['window']} bytes cannot keep {context['pinned']} more bytes "
            f"pinned, since {lib.CCMEM_WINDOW_BLOCKS} of its blocks must stay free for the rest of "
            f"the mapping; pin less at a time, or map with a larger window."
        )
    if status == lib.CCMEM_ERR_FAULT:
        number = context.get("errno") or 0
        raise errors.FaultMechanismError(
            f"The fault mechanism {context.get('setting', '')!r} cannot be had here "
            f"({os.strerror(number)}); "
            f"leave PYCCMEM_FAULT unset for whichever the system has (userfaultfd, or SIGSEGV with "
            f"Linux 5.7 or newer), or use open() or indexing, which need neither."
        )
    if status == lib.CCMEM_ERR_THREAD:
        raise errors.FaultMechanismError(
            f"The system refused a thread that this mechanism of mappings needs "
            f"({os.strerror(context.get('errno') or 0)}): this user's or this container's limit of "
            f"processes and threads is reached ('ulimit -u' in the shell, pids.max of the cgroup, "
            f"'docker run --pids-limit=', TasksMax= in a systemd unit), or there is no room for a "
            f"stack; raise the limit, leave PYCCMEM_FAULT unset for a mechanism that needs no "
            f"thread, or use open() or indexing, which need none."
        )
    if status == lib.CCMEM_ERR_MAPPED:
        raise errors.MappingConflictError(
            f"Another mapping of {context['name']!a} covers some of the same bytes, and one of the "
            f"two is of mode 'r+', so that each would undo what the other writes; leave the other "
            f"mapping first, or map both with mode 'r'."
        )
    if status == lib.CCMEM_ERR_MEMLOCK:
        raise errors.LockedMemoryError(
            f"There is no locked memory left for {action}: RLIMIT_MEMLOCK is {_memlock_limit()}; "
            f"close keys and buffers no longer in use, encrypt many tensors together in a "
            f"pyccmem.Arena, which takes one key for all, or raise the limit ('ulimit -l' in the "
            f"shell, LimitMEMLOCK= in a systemd unit, 'docker run --ulimit memlock=BYTES')."
        )
    if status == lib.CCMEM_ERR_SECRETMEM:
        required = context.get("require")
        best = LEVELS[lib.ccmem_secret_probe()]
        if required is None:
            raise errors.SecretMemoryError(
                f"There is no memory for secrets to be had for {action}: the system refuses both "
                f"memfd_secret(2) and mlock(2), or to keep memory out of dumps and children "
                f"(madvise(2)); allow these calls in the sandbox that this process runs in."
            )
        raise errors.SecretMemoryError(
            f"Secret memory of level {required!r} cannot be had here, where the best level is "
            f"{best!r}; enable memfd_secret (Linux 5.14 or newer, secretmem.enable=1 on the "
            f"kernel's command line before 6.5) or do not require it."
        )
    if status == lib.CCMEM_ERR_VERSION:
        raise errors.VersionExhaustedError(
            "A page has no unused version left under its key and cannot be written again: it has "
            "used up all of them, or its version and the copy of it are both damaged, so that "
            "nothing tells which are unused. Copy the contents to a new buffer, which has keys of "
            "its own."
        )
    if status == lib.CCMEM_ERR_TIER:
        raise errors.TierError(
            _tier_message(context.get("setting", "tier"), context.get("tier", ""))
        )
    if status == lib.CCMEM_ERR_SELFTEST:
        raise errors.SelfTestError(
            f"The known-answer test of {action} gave a wrong answer; the processor or this build "
            f"of pyccmem is faulty, so nothing was encrypted and nothing should be."
        )
    if status == lib.CCMEM_ERR_ENTROPY:
        raise errors.EntropyError(
            f"The system's random generator failed during {action}; getrandom(2) must be allowed "
            f"in this process."
        )
    if status == lib.CCMEM_ERR_IO:
        number = context.get("errno") or 0
        path = context.get("path", "")
        if "mapping" in context:
            raise errors.FileReadError(
                f"The pages of {context['name']!a} cannot be had from their file {path!a}: "
                f"{os.strerror(number)}; check the disk the file is on, or use a regular file that "
                f"is open for reading."
            ).of_system(number, path)
        raise errors.KeyFileError(
            f"The key file {path!r} cannot be read: {os.strerror(number)}; name a regular file "
            f"that this user may read."
        ).of_system(number, path)
    if status == lib.CCMEM_ERR_KEYFILE:
        raise errors.InvalidKeyError(
            f"The key file {context.get('path', '')!r} does not hold a key; it must hold exactly "
            f"32 bytes, or 64 hexadecimal digits in ASCII or UTF-8, with nothing but spaces and "
            f"ends of lines after them."
        )
    # CCMEM_ERR_ARGUMENT: the callers check their arguments, so what remains has no better words.
    raise errors.ArgumentError(f"An argument of {action} was refused: {native}.")


def _start() -> None:
    """Starts the native library as the environment asks. Raises TierError, ConfigError, ..."""
    wanted = os.environ.get("PYCCMEM_TIER", "")
    status = lib.ccmem_init(os.fsencode(wanted) if wanted else ffi.NULL)
    if status == lib.CCMEM_ERR_TIER:
        # Nothing is known of the tiers before a start, and the error is to name the usable ones.
        lib.ccmem_init(ffi.NULL)
    check(status, setting="PYCCMEM_TIER", tier=wanted, action="the cipher code")
    if wanted and active_tier() != wanted:
        # The first start in a process decides; a later import cannot move to another tier.
        raise errors.TierError(
            f"PYCCMEM_TIER={wanted!r} comes too late, this process already uses "
            f"{active_tier()!r}; set it before pyccmem is first imported."
        )

    threads = os.environ.get("PYCCMEM_NUM_THREADS", "")
    if threads:
        most = int(lib.CCMEM_MAX_THREADS)
        # ASCII digits only: int() would also take "1_0", "+1" and other scripts' digits.
        digits = threads.isascii() and threads.isdigit() and len(threads) <= 6
        if not digits or not 1 <= int(threads) <= most:
            raise errors.ConfigError(
                f"PYCCMEM_NUM_THREADS={threads!r} is not a number of threads; set a whole number "
                f"from 1 to {most}, or leave it unset for one thread a processor."
            )
        check(lib.ccmem_set_threads(int(threads)), action="PYCCMEM_NUM_THREADS")

    if not wanted and active_tier() == "portable":
        why = (
            "failed the known-answer tests of its AES instructions"
            if features().get("aes")
            else "has no AES instructions that pyccmem can use"
        )
        warnings.warn(
            f"This processor {why}, so pyccmem runs its portable constant-time code, which is "
            f"correct but slower by a factor of ten or more. PYCCMEM_TIER=portable silences this.",
            errors.PortableTierWarning,
            stacklevel=2,
        )


_start()
