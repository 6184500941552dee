# SPDX-License-Identifier: Apache-2.0
"""Tells whether the hardware of this host encrypts its memory, as far as a process can know."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["memory_encryption", "processor_name"]

#: The states that memory_encryption() reports.
ACTIVE = "active"  # this system runs under it
AVAILABLE = "available"  # the processor offers it; whether it is switched on cannot be seen
ABSENT = "absent"
UNKNOWN = "unknown"


def _cpuinfo(root: Path) -> tuple[str, str, set[str]]:
    """Returns model name, vendor and flags of the first processor in /proc/cpuinfo."""
    model, vendor, flags = "", "", set[str]()
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return model, vendor, flags
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        match name.strip():
            case "model name":
                model = value.strip()
            case "vendor_id":
                vendor = value.strip()
            case "flags":
                flags = set(value.split())
    return model, vendor, flags


def processor_name(root: str = "/") -> str:
    """Returns the processor's model name, or the name of its architecture if the system tells no
    more."""
    return _cpuinfo(Path(root))[0] or platform.processor() or platform.machine() or UNKNOWN


def _switched_on(path: Path) -> bool:
    """Returns True when a module parameter reads as yes."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() in ("Y", "1")
    except OSError:
        return False


def memory_encryption(root: str = "/") -> dict[str, dict[str, str]]:
    """Returns the state of each memory-encryption technology, with the reason for saying so.

    Keys: `sme`, `sev`, `sev-es`, `sev-snp` (AMD), `tme`, `tdx` (Intel), `csv` (Hygon). Each value
    has `state` ("active": this system runs under it, "available": the processor offers it,
    "absent", "unknown") and `evidence`. A virtual machine cannot see what its host does with
    its own memory, so SME and TME are unknown in one. `root` is the directory to look below.
    """
    base = Path(root)
    _, vendor, flags = _cpuinfo(base)
    guest = "hypervisor" in flags
    amd, hygon, intel = (
        vendor == name for name in ("AuthenticAMD", "HygonGenuine", "GenuineIntel")
    )
    result: dict[str, dict[str, str]] = {}

    def say(name: str, state: str, evidence: str) -> None:
        result[name] = {"state": state, "evidence": evidence}

    def of_guest(
        name: str, flag: str, applies: bool, traces: tuple[str, ...], host_parameter: str
    ) -> None:
        """Reports a technology for guests. `traces` are files that it leaves in a guest; outside a
        virtual machine the processor's flag says what is offered."""
        trace = next((trace for trace in traces if (base / trace).exists()), None)
        if trace:
            say(name, ACTIVE, f"/{trace} exists, which only its guests have")
        elif not flags:
            say(name, UNKNOWN, "the system does not list the processor's flags")
        elif not applies:
            say(name, ABSENT, "this processor's maker does not offer it")
        elif guest and flag in flags:
            say(name, ACTIVE, f"this virtual machine's processor has the flag {flag}")
        elif guest and not intel:
            # Linux clears these flags where it cannot read the host's own settings, as in a guest.
            say(name, UNKNOWN, "a virtual machine need not show it; its kernel's log may")
        elif guest:
            say(name, ABSENT, f"this virtual machine's processor lacks the flag {flag}")
        elif _switched_on(base / host_parameter):
            say(name, AVAILABLE, f"the host offers it to guests (/{host_parameter})")
        elif flag in flags:
            say(name, AVAILABLE, f"the processor has the flag {flag}")
        else:
            say(name, ABSENT, f"the processor lacks the flag {flag}")

    def of_host(name: str, flag: str, applies: bool, how: str) -> None:
        """Reports a technology that encrypts all memory of a physical machine."""
        if guest:
            say(name, UNKNOWN, "a virtual machine cannot see what its host encrypts")
        elif not flags:
            say(name, UNKNOWN, "the system does not list the processor's flags")
        elif applies and flag in flags:
            say(name, AVAILABLE, f"the processor has the flag {flag}; {how}")
        else:
            say(name, ABSENT, f"the processor lacks the flag {flag}")

    kvm_amd = "sys/module/kvm_amd/parameters"
    # SEV-SNP contains SEV-ES, which contains SEV.
    snp = ("dev/sev-guest", "sys/devices/system/cpu/sev/vmpl")
    of_host("sme", "sme", amd or hygon, "whether it is on stands in the kernel's log only")
    of_guest("sev", "sev", amd, snp, f"{kvm_amd}/sev")
    of_guest("sev-es", "sev_es", amd, snp, f"{kvm_amd}/sev_es")
    of_guest("sev-snp", "sev_snp", amd, snp, f"{kvm_amd}/sev_snp")
    of_host("tme", "tme", intel, "whether it is on is the firmware's setting")
    # Linux sets one flag in a guest of TDX, and the other on a host that can have such guests.
    tdx = "tdx_guest" if guest else "tdx_host_platform"
    of_guest("tdx", tdx, intel, ("dev/tdx_guest",), "sys/module/kvm_intel/parameters/tdx")
    # Linux shows Hygon's CSV as SEV, from which it was derived; newer kernels use its own name.
    csv = "csv" if "csv" in flags else "sev"
    of_guest("csv", csv, hygon, ("dev/csv-guest",), f"{kvm_amd}/sev")
    return result
