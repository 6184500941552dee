# SPDX-License-Identifier: Apache-2.0
"""Tells whether the hardware of this host encrypts its memory, as far as a process can know.

Looks at what Linux shows (flags of the processor, devices and entries of sysfs, the command line of
the kernel), at CPUID, which every process may ask, and at registers of the processor that only root
can read. Leaves, bits and registers: AMD APM volume 2, chapter 15.34, and volume 3, appendix E;
Intel SDM volume 4 and the TDX module's CPUID leaf 0x21; Microsoft's TLFS, leaf 0x4000000C.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .processor import processor

__all__ = ["ABSENT", "ACTIVE", "AVAILABLE", "UNKNOWN", "memory_encryption"]

#: The states that memory_encryption() reports.
ACTIVE = "active"  # this system runs under it
AVAILABLE = "available"  # the processor offers it; whether it is switched on cannot be seen
ABSENT = "absent"
UNKNOWN = "unknown"

#: Returns eax, ebx, ecx and edx of a leaf and a subleaf; zeros where there is none.
CPUID = Callable[[int, int], tuple[int, int, int, int]]

_SEV_STATUS = 0xC0010131  # AMD: which forms of SEV this guest runs under
_TME_ACTIVATE = 0x982  # Intel: bit 1 switches TME on

#: Each form of AMD's encryption of guests: its bit in SEV_STATUS, its bit in eax of leaf
#: 0x8000001F, and the end of a name of Linux.
_SEV = {"sev": (0, 1, "sev"), "sev-es": (1, 3, "sev_es"), "sev-snp": (2, 4, "sev_snp")}

#: What drivers leave in guests of SEV-SNP, TDX and CSV alone. A container has a /dev of its own,
#: but sysfs is the system's.
_TRACES = {
    "sev-snp": ("dev/sev-guest", "sys/devices/virtual/misc/sev-guest"),
    "tdx": ("dev/tdx_guest", "sys/devices/virtual/misc/tdx_guest"),
    "csv": ("dev/csv-guest", "sys/devices/virtual/misc/csv-guest"),
}

#: A virtual machine privilege level, which only SEV-SNP has (Linux 6.12).
_VMPL = "sys/devices/system/cpu/sev/vmpl"

#: Providers of reports, as configfs-tsm names them in `provider`.
_PROVIDERS = {"sev_guest": "sev-snp", "tdx_guest": "tdx", "csv_guest": "csv"}

#: Kinds of isolation of Hyper-V and Azure, by Microsoft's number.
_ISOLATION = {2: "sev-snp", 3: "tdx"}


class _Host:
    """What there is to see of one host."""

    def __init__(self, root: str, cpuid: CPUID | None) -> None:
        self.base = Path(root)
        self._cpuid = cpuid
        self.found = processor(root)
        self.flags, self.guest = self.found.flags, self.found.virtual

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        """Returns a leaf of CPUID; zeros where it cannot be asked."""
        return (0, 0, 0, 0) if self._cpuid is None else self._cpuid(leaf, 0)

    @property
    def has_cpuid(self) -> bool:
        """True where CPUID can be asked: leaf 0 is never empty."""
        return any(self.cpuid(0))

    def name(self, leaf: int, *order: int) -> bytes:
        """Returns the twelve characters that a leaf has in ebx (1), ecx (2) and edx (3)."""
        registers = self.cpuid(leaf)
        return b"".join(registers[at].to_bytes(4, "little") for at in order)

    def register(self, number: int) -> int | None:
        """Returns a register of the processor; None where the system does not let us read it."""
        try:
            with open(self.base / "dev/cpu/0/msr", "rb", buffering=0) as file:
                value = os.pread(file.fileno(), 8, number)
        except OSError:
            return None
        return int.from_bytes(value, "little") if len(value) == 8 else None

    def bit(self, number: int, bit: int) -> bool | None:
        """Returns a bit of a register; None where it cannot be read."""
        value = self.register(number)
        return None if value is None else bool(value >> bit & 1)

    def words(self, path: str) -> list[str]:
        """Returns the words of a file of the system; none where it cannot be read."""
        try:
            text = (self.base / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.split()

    def switched_on(self, path: str) -> bool:
        """Returns True when a module parameter reads as yes."""
        return self.words(path) in (["Y"], ["1"])

    def traces(self) -> dict[str, str]:
        """Returns the technologies that this guest runs under, each with what shows it."""
        found: dict[str, str] = {}
        for name, paths in _TRACES.items():
            for path in (*paths, _VMPL) if name == "sev-snp" else paths:
                if (self.base / path).exists():
                    found.setdefault(name, f"/{path} exists, which only its guests have")
        reports = self.base / "sys/kernel/config/tsm/report"
        try:
            entries = sorted(reports.iterdir())
        except OSError:
            entries = []
        for entry in entries:
            provider = self.words(f"sys/kernel/config/tsm/report/{entry.name}/provider")
            if provider and provider[0] in _PROVIDERS:
                found.setdefault(_PROVIDERS[provider[0]], f"configfs-tsm's provider: {provider[0]}")
        if self.guest and self.name(0x21, 1, 3, 2) == b"IntelTDX    ":
            found.setdefault("tdx", "CPUID leaf 0x21 names it")
        # Of Hyper-V: bit 22 of ebx says that there is the leaf of isolation.
        hyperv = self.name(0x40000000, 1, 2, 3) == b"Microsoft Hv"
        if hyperv and self.cpuid(0x40000003)[1] >> 22 & 1:
            kind = _ISOLATION.get(self.cpuid(0x4000000C)[1] & 0xF)
            if kind:
                found.setdefault(kind, "CPUID leaf 0x4000000C, Hyper-V's, names it")
        return found


def memory_encryption(root: str = "/", cpuid: CPUID | None = None) -> dict[str, dict[str, str]]:
    """Returns the state of each memory-encryption technology, with the reason for saying so.

    Keys: `sme`, `sev`, `sev-es`, `sev-snp` (AMD), `tme`, `tdx` (Intel), `csv` (Hygon). Each value
    has `state` ("active": this system runs under it, "available": the processor offers it,
    "absent", "unknown") and `evidence`. A virtual machine cannot see what its host does with
    its own memory, so SME and TME are unknown in one. What it sees of its own encryption is what
    its host shows it: the proof is an attestation report, which this does not ask for. `root` is
    the directory to look below; `cpuid` asks the processor.
    """
    host = _Host(root, cpuid)
    amd, hygon, intel = (
        host.found.vendor == name for name in ("AuthenticAMD", "HygonGenuine", "GenuineIntel")
    )
    traces = host.traces()
    kvm_amd = "sys/module/kvm_amd/parameters"
    # Linux sets one flag in a guest of TDX, and the other on a host that can have such guests.
    tdx = "tdx_guest" if host.guest else "tdx_host_platform"
    # Linux shows Hygon's CSV as SEV, from which it was derived; newer kernels use its own name.
    csv = "csv" if "csv" in host.flags else "sev"
    result = {
        "sme": _sme(host, amd or hygon),
        **{name: _sev(host, name, amd, traces) for name in _SEV},
        "tme": _tme(host, intel),
        "tdx": _of_guest(
            host, traces.get("tdx"), tdx, intel, "sys/module/kvm_intel/parameters/tdx"
        ),
        "csv": _sev_status(host, "sev", traces.get("csv"), hygon)
        or _of_guest(host, traces.get("csv"), csv, hygon, f"{kvm_amd}/sev"),
    }
    return {name: {"state": state, "evidence": why} for name, (state, why) in result.items()}


_Found = tuple[str, str]


def _sme(host: _Host, applies: bool) -> _Found:
    """Returns AMD's encryption of all memory of a physical machine."""
    found = _of_host(host, "sme", applies, "the firmware may encrypt by itself (TSME), unseen")
    # Linux clears the flag where the firmware has not switched SME on.
    if found[0] == AVAILABLE and "mem_encrypt=on" in host.words("proc/cmdline"):
        return ACTIVE, "the processor has the flag sme, the kernel's command line mem_encrypt=on"
    return found


def _tme(host: _Host, applies: bool) -> _Found:
    """Returns Intel's encryption of all memory of a physical machine."""
    found = _of_host(host, "tme", applies, "whether it is on is the firmware's setting")
    if found[0] != AVAILABLE:
        return found
    on = host.bit(_TME_ACTIVATE, 1)
    if on is None:
        return found
    state = ACTIVE if on else ABSENT
    return state, f"the firmware has it switched {'on' if on else 'off'} (IA32_TME_ACTIVATE)"


def _of_host(host: _Host, flag: str, applies: bool, how: str) -> _Found:
    """Returns a technology that encrypts all memory of a physical machine."""
    if host.guest:
        return UNKNOWN, "a virtual machine cannot see what its host encrypts"
    if not host.flags:
        return UNKNOWN, "the system does not list the processor's flags"
    if applies and flag in host.flags:
        return AVAILABLE, f"the processor has the flag {flag}; {how}"
    return ABSENT, f"the processor lacks the flag {flag}"


def _sev(host: _Host, name: str, applies: bool, traces: dict[str, str]) -> _Found:
    """Returns one form of AMD's encryption of guests. SEV-SNP contains SEV-ES, which contains
    SEV."""
    flag, trace = _SEV[name][2], traces.get("sev-snp")
    status = _sev_status(host, name, trace, applies)
    parameter = f"sys/module/kvm_amd/parameters/{flag}"
    found = status or _of_guest(host, trace, flag, applies, parameter)
    if found[0] != UNKNOWN or not (host.guest and applies and host.has_cpuid):
        return found
    # Linux looks here for the bit of an address that marks an encrypted page, and cannot encrypt
    # without.
    if host.cpuid(0x8000001F)[0] >> _SEV[name][1] & 1:
        return (
            AVAILABLE,
            "the hypervisor offers it, says CPUID 0x8000001F; the kernel's log may say if it is on",
        )
    return ABSENT, "the hypervisor does not offer it, says CPUID 0x8000001F"


def _sev_status(host: _Host, name: str, trace: str | None, applies: bool) -> _Found | None:
    """Returns what the guest's own register says of one form of SEV; None where it cannot be read.
    A layer between guest and hypervisor may hide the register, where there is a trace."""
    on = host.bit(_SEV_STATUS, _SEV[name][0]) if host.guest and applies else None
    if on is None or (trace and not on):
        return None
    return (ACTIVE if on else ABSENT), f"the register SEV_STATUS says {'yes' if on else 'no'}"


def _of_guest(
    host: _Host, trace: str | None, flag: str, applies: bool, host_parameter: str
) -> _Found:
    """Returns a technology for guests. `trace` is what shows it in a guest; outside a virtual
    machine the processor's flag says what is offered."""
    if trace:
        return ACTIVE, trace
    if not host.flags:
        return UNKNOWN, "the system does not list the processor's flags"
    if not applies:
        return ABSENT, "this processor's maker does not offer it"
    if host.guest:
        if flag in host.flags:
            return ACTIVE, f"this virtual machine's processor has the flag {flag}"
        if flag != "tdx_guest":
            # Linux clears these where it cannot read the host's own settings, as in a guest.
            return UNKNOWN, "a virtual machine need not show it; its kernel's log may"
        return ABSENT, f"this virtual machine's processor lacks the flag {flag}"
    if host.switched_on(host_parameter):
        return AVAILABLE, f"the host offers it to guests (/{host_parameter})"
    if flag in host.flags:
        return AVAILABLE, f"the processor has the flag {flag}"
    return ABSENT, f"the processor lacks the flag {flag}"
