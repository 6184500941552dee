# SPDX-License-Identifier: Apache-2.0
"""The native library's suites, tiers, levels and mechanisms by name, and the defaults."""

from __future__ import annotations

from typing import NamedTuple

from .native import ffi, lib

__all__ = [
    "AUTHENTICATED",
    "BUFFER_PAGE_SIZE",
    "CIPHERS",
    "DEFAULT_CIPHER",
    "FAULTS",
    "LEVELS",
    "SUITES",
    "TENSOR_PAGE_SIZE",
    "TIERS",
    "Suite",
    "active_tier",
    "features",
    "usable_tiers",
]


class Suite(NamedTuple):
    """A cipher suite, as the native library describes it."""

    number: int
    subkey_size: int  # bytes of the key that is derived for a store
    tag_size: int  # bytes of a page's tag; 0: pages have no tags, and changes go unnoticed
    aes_rounds: int  # AES rounds for each 16 bytes; 0: the suite is not made of AES
    key_bits: int  # of the cipher's own key
    blocks_log2: int  # log2 of the blocks of 16 bytes that one key should seal; 0: 2^48 pages
    standards: str  # that define the cipher and its mode


def _suites() -> dict[str, Suite]:
    found = {}
    for number in range(lib.CCMEM_CIPHER_COUNT):
        suite = lib.ccmem_suite_of(number)
        name = ffi.string(suite.name).decode()
        found[name] = Suite(
            number,
            suite.subkey_size,
            suite.tag_size,
            suite.aes_rounds,
            suite.key_bits,
            suite.blocks_log2,
            ffi.string(suite.standards).decode(),
        )
    return found


#: The cipher of buffers and tensors for which no cipher is named.
DEFAULT_CIPHER = "aegis-128x2"

_found = _suites()

#: Cipher suites by name, the default first.
SUITES: dict[str, Suite] = {DEFAULT_CIPHER: _found.pop(DEFAULT_CIPHER), **_found}

#: The native number of each suite, by name.
CIPHERS: dict[str, int] = {name: suite.number for name, suite in SUITES.items()}

#: Names of the suites whose pages have a tag, so that every change is noticed.
AUTHENTICATED = frozenset(name for name, suite in SUITES.items() if suite.tag_size)

#: Bytes of a page unless the caller names a size.
BUFFER_PAGE_SIZE = 4096
TENSOR_PAGE_SIZE = 4096

#: Names of the secret-memory levels, weakest first.
LEVELS: dict[int, str] = {
    lib.CCMEM_SECRET_NONE: "none",
    lib.CCMEM_SECRET_MLOCK: "mlock",
    lib.CCMEM_SECRET_MEMFD: "secretmem",
}

#: Every tier by name, best first, including those that this processor cannot run.
TIERS: dict[str, int] = {
    ffi.string(lib.ccmem_tier_name(tier)).decode(): tier
    for tier in reversed(range(lib.CCMEM_TIER_COUNT))
}


#: The mechanisms by which a mapping learns of a touch, by the names that PYCCMEM_FAULT takes.
FAULTS: dict[str, int] = {
    "auto": lib.CCMEM_FAULT_AUTO,
    "uffd": lib.CCMEM_FAULT_UFFD,
    "uffd-signal": lib.CCMEM_FAULT_UFFD_SIGNAL,
    "uffd-copy": lib.CCMEM_FAULT_UFFD_COPY,
    "sigsegv": lib.CCMEM_FAULT_SIGSEGV,
}


def usable_tiers() -> list[str]:
    """Returns the names of the tiers that this processor can run and that passed their test, best
    first."""
    return [name for name, tier in TIERS.items() if lib.ccmem_tier_usable(tier)]


def active_tier() -> str:
    """Returns the name of the tier in use."""
    return str(ffi.string(lib.ccmem_tier_name(lib.ccmem_tier_active())).decode())


def features() -> dict[str, bool]:
    """Returns the processor features that the tiers need, True where this process may use them."""
    found: dict[str, bool] = {}
    present = ffi.new("int *")
    while name := lib.ccmem_cpu_feature(len(found), present):
        found[ffi.string(name).decode()] = bool(present[0])
    return found


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """Returns what CPUID says of a leaf: eax, ebx, ecx, edx; zeros for one that there is not, and
    where there is no CPUID."""
    found = ffi.new("uint32_t[4]")
    lib.ccmem_cpuid(leaf, subleaf, found)
    eax, ebx, ecx, edx = map(int, found)
    return eax, ebx, ecx, edx
