# SPDX-License-Identifier: Apache-2.0
"""Turns native statuses into exceptions. No other module does.

The caller of a native function describes its call by a context, an object of one of the classes
here. `_TABLE` gives the exception for a status in a context, and its sentence, whose fields are
attributes of the context or _FACTS of the process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import errors
from .native import OK, ffi, lib
from .suites import LEVELS, TIERS, usable_tiers

__all__ = [
    "BufferCall",
    "CacheCall",
    "Call",
    "FilePagesCall",
    "KeyCall",
    "KeyFileCall",
    "MappingCall",
    "StartMappingCall",
    "TierCall",
    "UnwrapCall",
    "check",
    "lost_page",
]


# ---- contexts ------------------------------------------------------------------------------------


class Call:
    """A call of which only the action and its subject are known."""

    __slots__ = ("action", "subject")

    def __init__(self, action: str = "this operation", subject: str = "object") -> None:
        self.action, self.subject = action, subject


class KeyCall(Call):
    """A call that makes a key, which must be of level `require`, if that is not None."""

    __slots__ = ("require",)

    def __init__(self, action: str, require: str | None) -> None:
        super().__init__(action, "key")
        self.require = require


class KeyFileCall(KeyCall):
    """A call that reads a key from the file `path`. `errno` is the system's number of a failure."""

    __slots__ = ("errno", "path")

    def __init__(self, action: str, require: str | None, path: str, errno: int | None) -> None:
        super().__init__(action, require)
        self.path, self.errno = path, errno


class UnwrapCall(KeyCall):
    """A call that unwraps a key."""

    __slots__ = ()


class TierCall(Call):
    """A call for the tier that `setting` names: an argument or an environment variable."""

    __slots__ = ("setting", "tier")

    def __init__(self, action: str, setting: str, tier: str) -> None:
        super().__init__(action)
        self.setting, self.tier = setting, tier


class FilePagesCall(Call):
    """A call that maps or reads `length` bytes of pages from byte `offset` of the file `path`, for
    the buffer `name`."""

    __slots__ = ("errno", "length", "name", "offset", "path")

    def __init__(
        self, action: str, name: str, path: str, offset: int, length: int, errno: int
    ) -> None:
        super().__init__(action, "key")
        self.name, self.path, self.errno = name, path, errno
        self.offset, self.length = offset, length


class BufferCall(Call):
    """A call for `length` bytes from `offset` on of a buffer, whose native store is `store`."""

    __slots__ = ("length", "name", "nbytes", "offset", "page_size", "store")

    def __init__(
        self,
        action: str,
        name: str,
        *,
        nbytes: int,
        page_size: int,
        store: Any,
        offset: int = 0,
        length: int = 0,
    ) -> None:
        super().__init__(action, "buffer")
        self.name, self.nbytes, self.page_size, self.store = name, nbytes, page_size, store
        self.offset, self.length = offset, length


class MappingCall(BufferCall):
    """A call of a mapping of a buffer. Its window has `window` bytes; the call asks to pin `pinned`
    bytes."""

    __slots__ = ("errno", "pinned", "setting", "window")

    def __init__(
        self,
        action: str,
        name: str,
        *,
        nbytes: int,
        page_size: int,
        store: Any,
        errno: int,
        window: int = 0,
        pinned: int = 0,
    ) -> None:
        super().__init__(action, name, nbytes=nbytes, page_size=page_size, store=store)
        self.subject, self.setting, self.errno = "mapping", "", errno
        self.window, self.pinned = window, pinned


class StartMappingCall(Call):
    """A call that makes a mapping of the buffer `name` by the mechanism `setting`."""

    __slots__ = ("errno", "name", "setting")

    def __init__(self, action: str, name: str, setting: str, errno: int) -> None:
        super().__init__(action, "buffer")
        self.name, self.setting, self.errno = name, setting, errno


class CacheCall(KeyCall):
    """A call of the key-value cache `name`: for sequence `sequence` of layer `layer`, or for all of
    it where these are None. `limits` says what the numbers could have been."""

    __slots__ = ("layer", "limits", "name", "sequence")

    def __init__(
        self,
        action: str,
        name: str,
        layer: int | None = None,
        sequence: int | None = None,
        *,
        require: str | None = None,
        limits: str = "",
    ) -> None:
        super().__init__(action, require)
        self.subject, self.name, self.limits = "cache", name, limits
        self.layer, self.sequence = layer, sequence

    @property
    def where(self) -> str:
        """Which part of the cache it is for."""
        if self.layer is None:
            return ""
        sequence = "" if self.sequence is None else f", sequence {self.sequence}"
        return f" (layer {self.layer}{sequence})"


# ---- facts of the process ------------------------------------------------------------------------


def _memlock_limit() -> str:
    """Returns RLIMIT_MEMLOCK of this process in words."""
    try:
        import resource

        soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    except (ImportError, OSError, ValueError):
        return "unknown"
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"


def _memory_limits() -> str:
    """Returns the limits of this process that may be why memory was refused, in words."""
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


def _budget(name: str) -> int:
    state = ffi.new("ccmem_plaintext_stats *")
    lib.ccmem_plaintext_get_stats(state)
    return int(getattr(state, name))


#: What a sentence may name besides the context's attributes.
_FACTS: dict[str, Callable[[Any], Any]] = {
    "best_level": lambda _: LEVELS[lib.ccmem_secret_probe()],
    "budget": lambda _: _budget("budget"),
    "budget_taken": lambda _: _budget("reserved"),
    "free_blocks": lambda _: int(lib.CCMEM_WINDOW_BLOCKS),
    "memlock_limit": lambda _: _memlock_limit(),
    "memory_limits": lambda _: _memory_limits(),
    "reason": lambda context: os.strerror(context.errno or 0),
    "usable_tiers": lambda _: ", ".join(usable_tiers()),
}


class _Fields(dict[str, Any]):
    """The fields of a sentence, found when it names them."""

    def __init__(self, context: Call, status: int) -> None:
        super().__init__(native=ffi.string(lib.ccmem_status_text(status)).decode())
        self._context = context

    def __missing__(self, name: str) -> Any:
        fact = _FACTS.get(name)
        return getattr(self._context, name) if fact is None else fact(self._context)


# ---- exceptions that are more than a sentence ----------------------------------------------------

#: Set in a page's version word while it is written.
_WRITING = 1 << 63


def lost_page(store: Any, name: str, page: int) -> errors.FileReadError | None:
    """Returns the error for a page that could not be read from its sealed file; None for any other
    page."""
    path = lib.ccmem_store_lost(store, page) if store is not None else ffi.NULL
    if not path:
        return None
    filename = os.fsdecode(ffi.string(path))
    return errors.FileReadError(
        f"Page {page} of {name!a} cannot be read from its file {filename!a}: it was cut short "
        f"while it was open, or its file system failed. None of the page was returned; mend the "
        f"file, or use a good copy, and load it again: tensors that are open stay without the page."
    ).of_system(errno.EIO, filename)


def _changed_page(context: BufferCall) -> errors.PyccmemError:
    """Returns the exception for the last CCMEM_ERR_INTEGRITY of a store in this thread."""
    failure = lib.ccmem_last_failure()
    page, version, name = int(failure.page), int(failure.version), context.name
    lost = lost_page(context.store, name, page)
    if lost is not None:
        return lost
    first = page * context.page_size
    last = min(first + context.page_size, context.nbytes) - 1
    where = f"Page {page} of buffer {name!a} (bytes {first} to {last}"
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
        f"{what}. None of it was returned; write the whole page anew from a good copy, or use "
        f"the other pages only.",
        name=name,
        page=page,
        version=version,
        offset=first,
    )


def _changed_cache(context: CacheCall) -> errors.PyccmemError:
    return errors.IntegrityError(
        f"A block of cache {context.name!a}{context.where} does not match its tag: its ciphertext "
        f"or its tag was changed since it was sealed. Nothing of it was handed out, and nothing "
        f"has changed; make a new cache and fill it again, or load one from a file.",
        name=context.name,
    )


def _unusable_tier(context: TierCall) -> errors.PyccmemError:
    setting, tier = context.setting, context.tier
    known = "is not a tier" if tier not in TIERS else "is a tier that this processor cannot run"
    usable = ", ".join(usable_tiers())
    auto = "leave it unset" if setting.isupper() else "pass None"
    return errors.TierError(
        f"{setting}={tier!r} {known}; use one of {usable}, or {auto} for the default."
    )


# ---- the table -----------------------------------------------------------------------------------


class _Meaning(NamedTuple):
    """An exception, and its sentence."""

    error: type[errors.PyccmemError]
    sentence: str
    #: True: the exception has the context's `errno`, and its `path` as the name of the file.
    of_system: bool = False


_WITHHELD = _Meaning(
    errors.KeyUnavailableError,
    "The key of this sealed file is withheld: it was held for as long as its max_age allows, or "
    "its service has taken it back, and it was not fetched again since. Nothing was returned; what "
    "is open works again when the service gives the key.",
)

_FROZEN = _Meaning(
    errors.FrozenError,
    "Buffer {name!a} is frozen: each of its pages is sealed once, so that none can be put back "
    "from an earlier time; call thaw() to write to it, or write to a copy(), or make the tensors "
    "in an Arena without frozen=True.",
)

_TABLE: dict[tuple[int, type[Call]], _Meaning | Callable[[Any], errors.PyccmemError]] = {
    (lib.CCMEM_ERR_INTEGRITY, BufferCall): _changed_page,
    (lib.CCMEM_ERR_INTEGRITY, UnwrapCall): _Meaning(
        errors.IntegrityError,
        "The wrapped key cannot be unwrapped with this key: it was wrapped under another one, or "
        "changed since; use the key that it was wrapped under.",
    ),
    (lib.CCMEM_ERR_INTEGRITY, CacheCall): _changed_cache,
    (lib.CCMEM_ERR_RANGE, CacheCall): _Meaning(
        errors.RangeError,
        "{action} of cache {name!a}{where} asks for tokens that are not there: {limits}.",
    ),
    (lib.CCMEM_ERR_FORK, CacheCall): _Meaning(
        errors.ForkError,
        "Cache {name!a} belongs to the process that this one was forked from, and its key does not "
        "follow a fork; make a new cache in the child, or export it before the fork and load the "
        "file there.",
    ),
    (lib.CCMEM_ERR_CLOSED, CacheCall): _Meaning(
        errors.ClosedError,
        "Cache {name!a} was erased, or a fork of it was: its key is gone, so that nobody can open "
        "what it held; make a new cache.",
    ),
    (lib.CCMEM_ERR_VERSION, CacheCall): _Meaning(
        errors.VersionExhaustedError,
        "The key of cache {name!a} has no unused number left to seal tokens under; export the "
        "cache and load the file, which gives it a new key.",
    ),
    (lib.CCMEM_ERR_ARGUMENT, CacheCall): _Meaning(
        errors.ArgumentError,
        "An argument of {action} of cache {name!a}{where} was refused: {limits}.",
    ),
    (lib.CCMEM_ERR_INTEGRITY, Call): _Meaning(
        errors.IntegrityError,
        "The message does not match its tag: the ciphertext, the tag, the nonce, the associated "
        "data or the key is not what it was when the message was sealed; nothing was decrypted, so "
        "ask for the message again.",
    ),
    (lib.CCMEM_ERR_READONLY, BufferCall): _Meaning(
        errors.ReadOnlyError,
        "Buffer {name!a} is read-only, since its pages lie in a sealed file that other processes "
        "may have loaded too; make a writable copy of the tensor with tensor.copy(key=...).",
    ),
    (lib.CCMEM_ERR_FROZEN, BufferCall): _FROZEN,
    (lib.CCMEM_ERR_WITHHELD, Call): _WITHHELD,
    (lib.CCMEM_ERR_FROZEN, StartMappingCall): _FROZEN,
    (lib.CCMEM_ERR_RANGE, FilePagesCall): _Meaning(
        errors.FileFormatError,
        "The file {path!a} ends before the pages of {name!a}, which begin at byte {offset} and "
        "take {length} bytes; use the whole file.",
    ),
    (lib.CCMEM_ERR_RANGE, BufferCall): _Meaning(
        errors.RangeError,
        "{length} bytes at offset {offset} reach outside the buffer of {nbytes} bytes; offset must "
        "be at least 0 and offset plus length at most {nbytes}.",
    ),
    (lib.CCMEM_ERR_FORK, Call): _Meaning(
        errors.ForkError,
        "This {subject} belongs to the process that this one was forked from, and its keys do not "
        "follow a fork; make a new key and a new buffer in the child, or start it with the 'spawn' "
        "method.",
    ),
    (lib.CCMEM_ERR_CLOSED, Call): _Meaning(
        errors.ClosedError,
        "This {subject} was closed when the garbage collector found it in a cycle of objects that "
        "nothing else refers to; read what you need before.",
    ),
    (lib.CCMEM_ERR_EQUAL_HALVES, Call): _Meaning(
        errors.InvalidKeyError,
        "The two halves of the XTS key are equal, which voids its security; use a key whose first "
        "half K1 and second half K2 differ (IEEE 1619-2018, 5.1).",
    ),
    (lib.CCMEM_ERR_NOMEM, Call): _Meaning(
        errors.OutOfMemoryError,
        "The system refused the memory for {action}, or another mapping or file descriptor for it"
        "{memory_limits}; free some, or ask for less.",
    ),
    (lib.CCMEM_ERR_BUDGET, Call): _Meaning(
        errors.PlaintextBudgetError,
        "The plaintext budget of {budget} bytes, of which {budget_taken} are taken, leaves no room "
        "for {action}; close mappings and arrays that are no longer used, ask for less (of a "
        "mapping with window=), or raise it with set_plaintext_budget().",
    ),
    (lib.CCMEM_ERR_PINNED, MappingCall): _Meaning(
        errors.PlaintextBudgetError,
        "The window of {window} bytes cannot keep {pinned} more bytes pinned, since {free_blocks} "
        "of its blocks must stay free for the rest of the mapping; pin less at a time, or map with "
        "a larger window.",
    ),
    (lib.CCMEM_ERR_FAULT, StartMappingCall): _Meaning(
        errors.FaultMechanismError,
        "The fault mechanism {setting!r} is not available here ({reason}); leave PYCCMEM_FAULT "
        "unset for whichever the system has (userfaultfd, or SIGSEGV with Linux 5.7 or newer), or "
        "use open() or indexing, which need neither.",
    ),
    (lib.CCMEM_ERR_THREAD, StartMappingCall): _Meaning(
        errors.FaultMechanismError,
        "The system refused a thread that this mechanism of mappings needs ({reason}): this user's "
        "or this container's limit of processes and threads is reached ('ulimit -u' in the shell, "
        "pids.max of the cgroup, 'docker run --pids-limit=', TasksMax= in a systemd unit), or "
        "there is no room for a stack; raise the limit, leave PYCCMEM_FAULT unset for a mechanism "
        "that needs no thread, or use open() or indexing, which need none.",
    ),
    (lib.CCMEM_ERR_MAPPED, StartMappingCall): _Meaning(
        errors.MappingConflictError,
        "Another mapping of {name!a} covers some of the same bytes, and one of the two is of mode "
        "'r+', so that each would undo what the other writes; leave the other mapping first, or "
        "map both with mode 'r'.",
    ),
    (lib.CCMEM_ERR_MEMLOCK, Call): _Meaning(
        errors.LockedMemoryError,
        "There is no locked memory left for {action}: RLIMIT_MEMLOCK is {memlock_limit}; close "
        "keys and buffers no longer in use, encrypt many tensors together in a pyccmem.Arena, "
        "which takes one key for all, or raise the limit ('ulimit -l' in the shell, LimitMEMLOCK= "
        "in a systemd unit, 'docker run --ulimit memlock=BYTES').",
    ),
    (lib.CCMEM_ERR_SECRETMEM, Call): _Meaning(
        errors.SecretMemoryError,
        "No memory for secrets is available for {action}: the system refuses both "
        "memfd_secret(2) and mlock(2), or to keep memory out of dumps and children (madvise(2)); "
        "allow these calls in the sandbox that this process runs in.",
    ),
    (lib.CCMEM_ERR_VERSION, Call): _Meaning(
        errors.VersionExhaustedError,
        "A page has no unused version left under its key and cannot be written again: it has used "
        "up all of them, or its version and the copy of it are both damaged, so that nothing tells "
        "which are unused. Call rekey(), which gives the buffer (or arena) another key with new "
        "versions, or copy the contents to a new buffer.",
    ),
    (lib.CCMEM_ERR_TIER, TierCall): _unusable_tier,
    (lib.CCMEM_ERR_SELFTEST, Call): _Meaning(
        errors.SelfTestError,
        "The known-answer test of {action} gave a wrong answer; the processor or this build of "
        "pyccmem is faulty, so nothing was encrypted and nothing should be.",
    ),
    (lib.CCMEM_ERR_ENTROPY, Call): _Meaning(
        errors.EntropyError,
        "The system's random generator failed during {action}; getrandom(2) must be allowed in "
        "this process.",
    ),
    (lib.CCMEM_ERR_IO, FilePagesCall): _Meaning(
        errors.FileReadError,
        "The pages of {name!a} cannot be read from their file {path!a}: {reason}; check the disk "
        "the file is on, or use a regular file that is open for reading.",
        of_system=True,
    ),
    (lib.CCMEM_ERR_IO, KeyFileCall): _Meaning(
        errors.KeyFileError,
        "The key file {path!r} cannot be read: {reason}; name a regular file that this user may "
        "read.",
        of_system=True,
    ),
    (lib.CCMEM_ERR_KEYFILE, KeyFileCall): _Meaning(
        errors.InvalidKeyError,
        "The key file {path!r} does not hold a key; it must hold exactly 32 bytes, or 64 "
        "hexadecimal digits in ASCII or UTF-8, with nothing but spaces and ends of lines after "
        "them.",
    ),
}

#: For CCMEM_ERR_ARGUMENT and all other statuses. Callers check their arguments, so this is rare.
_REFUSED = _Meaning(errors.ArgumentError, "An argument of {action} was refused: {native}.")

#: For CCMEM_ERR_SECRETMEM when a level was required.
_NO_SUCH_LEVEL = _Meaning(
    errors.SecretMemoryError,
    "Secret memory of level {require!r} is not available here, where the best level is "
    "{best_level!r}; enable memfd_secret (Linux 5.14 or newer, secretmem.enable=1 on the kernel's "
    "command line before 6.5) or do not require it.",
)


def _without_secret_memory(context: KeyCall) -> errors.PyccmemError:
    status = lib.CCMEM_ERR_SECRETMEM
    meaning = _TABLE[status, Call] if context.require is None else _NO_SUCH_LEVEL
    assert isinstance(meaning, _Meaning), "a sentence"
    return _exception(meaning, context, status)


_TABLE[lib.CCMEM_ERR_SECRETMEM, KeyCall] = _without_secret_memory
for _status in (lib.CCMEM_ERR_FAULT, lib.CCMEM_ERR_THREAD, lib.CCMEM_ERR_MAPPED):
    _TABLE[_status, MappingCall] = _TABLE[_status, StartMappingCall]


_CALL = Call()


def _exception(meaning: _Meaning, context: Any, status: int) -> errors.PyccmemError:
    error: Any = meaning.error(meaning.sentence.format_map(_Fields(context, status)))
    if meaning.of_system:
        error.of_system(context.errno, context.path)
    return error  # type: ignore[no-any-return]


def check(status: int, context: Call = _CALL) -> None:
    """Raises the exception for a status other than CCMEM_OK; does nothing for CCMEM_OK."""
    if status == OK:
        return
    # The native library remembers which page failed only until the next failure in this thread, so
    # the table's entries look at it before they call anything native that can fail.
    for kind in type(context).__mro__:
        meaning = _TABLE.get((status, kind))
        if meaning is not None:
            break
    else:
        meaning = _REFUSED
    if isinstance(meaning, _Meaning):
        raise _exception(meaning, context, status)
    raise meaning(context)
