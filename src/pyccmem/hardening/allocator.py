# SPDX-License-Identifier: Apache-2.0
"""Finds out whose malloc() this process uses, and lets glibc's overwrite what is freed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from . import libc, library

__all__ = ["Owner", "owner", "perturb", "wiper"]

#: mallopt(3): the byte with which free() overwrites a block, exclusive-or 255.
_M_PERTURB = -6
_BYTE = 0xFF

#: Allocators that are put before the C library's, by a part of their library's name.
_OTHERS = ("jemalloc", "mimalloc", "tcmalloc", "snmalloc", "hoard", "hardened_malloc", "asan")


@dataclass(frozen=True)
class Owner:
    """Whose malloc() it is, and whether it knows M_PERTURB."""

    name: str
    perturbs: bool

    def __str__(self) -> str:
        return self.name


def owner() -> Owner:
    """Returns the owner of malloc(), by the library that has it."""
    file = os.path.basename(libc.library_of("malloc") or "")
    for name in _OTHERS:
        if name in file:
            return Owner(name, False)
    if libc.address_of("gnu_get_libc_version") is None:
        return Owner("musl" if "musl" in file else file or "an unknown malloc", False)
    # An executable or library of its own that has malloc() is not glibc's.
    if file.startswith(("libc.so", "libc-")):
        return Owner("glibc", True)
    return Owner(file or "an unknown malloc", False)


def wiper() -> str:
    """Returns what overwrites freed blocks in place of the allocator; "" when nothing does."""
    native = library.load()
    return "pyccmem's free()" if native is not None and native.ccmem_wiper_is_first() else ""


def perturb() -> bool:
    """Lets glibc overwrite what is freed from now on. Returns False where it is not glibc."""
    return owner().perturbs and libc.mallopt(_M_PERTURB, _BYTE)
