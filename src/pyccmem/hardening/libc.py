# SPDX-License-Identifier: Apache-2.0
"""The C library's functions that set and ask what holds for a process, through ctypes: these calls
are rare, and none of them sees a secret."""

from __future__ import annotations

import ctypes
import errno
import os

__all__ = [
    "NOT_OFFERED",
    "Operators",
    "address_of",
    "allocate",
    "get_dumpable",
    "library_of",
    "lock_all",
    "mallopt",
    "no_ptracer",
    "peek",
    "release",
    "set_dumpable",
    "trim",
]

#: What a call returns in place of an errno when this C library does not have the function.
NOT_OFFERED = errno.ENOSYS

# linux/prctl.h
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_PTRACER = 0x59616D61

# sys/mman.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Place(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


class _Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _prctl(option: int, value: int = 0) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def get_dumpable() -> int:
    """Returns what PR_GET_DUMPABLE says: 0 no, 1 yes, 2 for root alone; -1 if it says nothing."""
    return _prctl(_PR_GET_DUMPABLE)


def set_dumpable(value: int) -> int:
    """Returns 0, or the errno."""
    return 0 if _prctl(_PR_SET_DUMPABLE, value) == 0 else ctypes.get_errno()


def no_ptracer() -> int:
    """Takes back what PR_SET_PTRACER allowed. Returns 0, or the errno: EINVAL without Yama."""
    return 0 if _prctl(_PR_SET_PTRACER, 0) == 0 else ctypes.get_errno()


def mallopt(parameter: int, value: int) -> bool:
    """Returns True when the C library has mallopt(3) and took the value."""
    function = getattr(_libc, "mallopt", None)
    return function is not None and int(function(parameter, value)) == 1


def trim() -> bool:
    """Gives free pages of all arenas back to the system. Returns False without malloc_trim(3)."""
    function = getattr(_libc, "malloc_trim", None)
    if function is None:
        return False
    function(ctypes.c_size_t(0))
    return True


def lock_all(*, future: bool) -> int:
    """Locks all pages that are used, as they come into use. Returns 0, or the errno."""
    flags = _MCL_CURRENT | _MCL_ONFAULT | (_MCL_FUTURE if future else 0)
    return 0 if _libc.mlockall(flags) == 0 else ctypes.get_errno()


def address_of(name: str) -> int | None:
    """Returns the address that a library loaded now would call by this name; None if none has
    it."""
    try:
        return ctypes.cast(getattr(_libc, name), ctypes.c_void_p).value
    except AttributeError:
        return None


def library_of(name: str) -> str | None:
    """Returns the file of the library whose function is called by this name; None if none has
    it."""
    address, place = address_of(name), _Place()
    if address is None or not _libc.dladdr(ctypes.c_void_p(address), ctypes.byref(place)):
        return None
    return os.fsdecode(place.file or b"") or None


# ---- blocks that are looked at after they were freed


_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = (ctypes.c_size_t,)
_libc.free.restype = None
_libc.free.argtypes = (ctypes.c_void_p,)


def allocate(nbytes: int) -> int | None:
    """Returns the address of a block of malloc(3)."""
    found: int | None = _libc.malloc(nbytes)
    return found


#: Frees a block of allocate().
release = _libc.free


class Operators:
    """`operator new` and the sized `operator delete` of C++ that a library loaded now would call,
    by their names in the Itanium ABI, which all compilers for Linux share. Raises AttributeError
    where there are none."""

    def __init__(self) -> None:
        self.new = _libc["_Znwm"]  # by item: a function of one's own, not shared with others
        self.new.restype = ctypes.c_void_p
        self.new.argtypes = (ctypes.c_size_t,)
        self.delete = _libc["_ZdlPvm"]
        self.delete.restype = None
        self.delete.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def peek(address: int, into: ctypes.Array[ctypes.c_char]) -> int:
    """Copies what lies at an address of this process, mapped or not, to fill `into`. Returns the
    number of bytes. process_vm_readv(2) may always read its own process, also when that is not
    dumpable and /proc/self/mem is therefore closed to it. Raises OSError when a filter of system
    calls refuses that."""
    to = _Span(ctypes.addressof(into), len(into))
    source = _Span(address, len(into))
    one = ctypes.c_ulong(1)
    got = _libc.process_vm_readv(
        os.getpid(), ctypes.byref(to), one, ctypes.byref(source), one, ctypes.c_ulong(0)
    )
    if got < 0 and ctypes.get_errno() != errno.EFAULT:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return max(int(got), 0)
