# SPDX-License-Identifier: Apache-2.0
"""Memory encryption by hardware, as Linux, CPUID and the processor's registers show it, on systems
that are laid out as files; CPUID itself on this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from laid_out import AMD, AMD_GUEST, HYGON_GUEST, INTEL, INTEL_GUEST, cpuinfo, lay_out

from pyccmem import host
from pyccmem.binding import cpuid

CPUID = Callable[[int, int], tuple[int, int, int, int]]


def leaves(**found: tuple[int, int, int, int]) -> CPUID:
    """A processor with these leaves, by names such as x8000001f."""
    by_number = {int(name[1:], 16): registers for name, registers in found.items()}
    by_number.setdefault(0, (16, 1, 2, 3))
    return lambda leaf, _: by_number.get(leaf, (0, 0, 0, 0))


def name(text: bytes, order: tuple[int, int, int], eax: int = 0) -> tuple[int, int, int, int]:
    registers = [eax, 0, 0, 0]
    for at, place in enumerate(order):
        registers[place] = int.from_bytes(text[4 * at : 4 * at + 4], "little")
    return tuple(registers)  # type: ignore[return-value]


def register(root: Path, number: int, value: int) -> None:
    """Lays out the file of a processor's registers: 8 bytes at the place of each."""
    path = root / "dev/cpu/0/msr"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        os.pwrite(file.fileno(), value.to_bytes(8, "little"), number)


HYPERV = {
    "x40000000": name(b"Microsoft Hv", (1, 2, 3), 0x4000000C),
    "x40000003": (0, 1 << 22, 0, 0),
}
TDX = name(b"IntelTDX    ", (1, 3, 2))
TSM = "sys/kernel/config/tsm/report/one/provider"
SEV_SNP = dict.fromkeys(("sev", "sev-es", "sev-snp"), "active")

#: What is there, CPUID, and the states expected.
CASES: dict[str, tuple[dict[str, str | bytes | None], CPUID | None, dict[str, str]]] = {
    "nothing to see": ({}, None, dict.fromkeys(("sme", "sev", "tme", "tdx", "csv"), "unknown")),
    "AMD without": ({"proc/cpuinfo": AMD}, None, {"sme": "absent", "sev": "absent"}),
    "SME offered": (
        {"proc/cpuinfo": cpuinfo("AuthenticAMD", "sme"), "proc/cmdline": "quiet"},
        None,
        {"sme": "available", "tme": "absent"},
    ),
    "SME on": (
        {
            "proc/cpuinfo": cpuinfo("AuthenticAMD", "sme"),
            "proc/cmdline": "quiet mem_encrypt=on ro\n",
        },
        None,
        {"sme": "active"},
    ),
    "SME not switched on by the firmware": (
        {"proc/cpuinfo": AMD, "proc/cmdline": "mem_encrypt=on"},
        None,
        {"sme": "absent"},
    ),
    "a host of SEV": (
        {"proc/cpuinfo": AMD, "sys/module/kvm_amd/parameters/sev": "Y\n"},
        None,
        {"sev": "available", "sev-snp": "absent"},
    ),
    "TME offered": (
        {"proc/cpuinfo": cpuinfo("GenuineIntel", "tme")},
        None,
        {"tme": "available", "sme": "absent"},
    ),
    "an AMD guest without CPUID": ({"proc/cpuinfo": AMD_GUEST}, None, {"sev": "unknown"}),
    "an AMD guest with nothing": (
        {"proc/cpuinfo": AMD_GUEST},
        leaves(x8000001F=(0, 0, 0, 0)),
        {"sev": "absent", "sev-es": "absent", "sev-snp": "absent", "sme": "unknown"},
    ),
    "an AMD guest to which SEV is offered": (
        {"proc/cpuinfo": AMD_GUEST},
        leaves(x8000001F=(0b00010, 0, 0, 0)),
        {"sev": "available", "sev-es": "absent", "sev-snp": "absent"},
    ),
    "an AMD guest to which all is offered": (
        {"proc/cpuinfo": AMD_GUEST},
        leaves(x8000001F=(0b11010, 0, 0, 0)),
        {"sev": "available", "sev-es": "available", "sev-snp": "available"},
    ),
    "a guest of SEV by its flag": (
        {"proc/cpuinfo": cpuinfo("AuthenticAMD", "hypervisor", "sev")},
        None,
        {"sev": "active", "sev-es": "unknown"},
    ),
    "a guest of SEV-SNP by its device": (
        {"proc/cpuinfo": AMD_GUEST, "dev/sev-guest": ""},
        None,
        SEV_SNP,
    ),
    "a guest of SEV-SNP in a container": (
        {"proc/cpuinfo": AMD_GUEST, "sys/devices/virtual/misc/sev-guest/uevent": ""},
        None,
        SEV_SNP,
    ),
    "a guest of SEV-SNP by its privilege level": (
        {"proc/cpuinfo": AMD_GUEST, "sys/devices/system/cpu/sev/vmpl": "0\n"},
        None,
        SEV_SNP,
    ),
    "a guest of SEV-SNP by configfs-tsm": (
        {"proc/cpuinfo": AMD_GUEST, TSM: "sev_guest\n"},
        None,
        SEV_SNP | {"tdx": "absent"},
    ),
    "configfs-tsm without a report": (
        {"proc/cpuinfo": AMD_GUEST, "sys/kernel/config/tsm/report": None},
        None,
        {"sev": "unknown"},
    ),
    "a guest of SEV-SNP on Hyper-V": (
        {"proc/cpuinfo": AMD_GUEST},
        leaves(**HYPERV, x4000000C=(1, 2, 0, 0)),
        SEV_SNP,
    ),
    "Hyper-V without isolation": (
        {"proc/cpuinfo": AMD_GUEST},
        leaves(**HYPERV, x4000000C=(0, 0, 0, 0)),
        {"sev-snp": "absent"},
    ),
    "another hypervisor with the same leaf": (
        {"proc/cpuinfo": AMD_GUEST},
        leaves(
            **HYPERV | {"x40000000": name(b"KVMKVMKVM\0\0\0", (1, 2, 3))}, x4000000C=(0, 2, 0, 0)
        ),
        {"sev-snp": "absent"},
    ),
    "an Intel guest with nothing": (
        {"proc/cpuinfo": INTEL_GUEST},
        leaves(),
        {"tdx": "absent", "tme": "unknown"},
    ),
    "a guest of TDX by its flag": (
        {"proc/cpuinfo": cpuinfo("GenuineIntel", "hypervisor", "tdx_guest")},
        None,
        {"tdx": "active"},
    ),
    "a guest of TDX by CPUID": (
        {"proc/cpuinfo": INTEL_GUEST},
        leaves(x21=TDX),
        {"tdx": "active", "sev": "absent"},
    ),
    "a guest of TDX by its device": (
        {"proc/cpuinfo": INTEL_GUEST, "sys/devices/virtual/misc/tdx_guest/uevent": ""},
        None,
        {"tdx": "active"},
    ),
    "a guest of TDX by configfs-tsm": (
        {"proc/cpuinfo": INTEL_GUEST, TSM: "tdx_guest\n"},
        None,
        {"tdx": "active"},
    ),
    "a guest of TDX on Hyper-V": (
        {"proc/cpuinfo": INTEL_GUEST},
        leaves(**HYPERV, x4000000C=(1, 3, 0, 0)),
        {"tdx": "active"},
    ),
    "a host of TDX": (
        {"proc/cpuinfo": cpuinfo("GenuineIntel", "tdx_host_platform")},
        None,
        {"tdx": "available"},
    ),
    "a guest of CSV": (
        {"proc/cpuinfo": HYGON_GUEST, "dev/csv-guest": ""},
        None,
        {"csv": "active", "sev": "absent"},
    ),
    "a host of CSV": (
        {"proc/cpuinfo": cpuinfo("HygonGenuine", "sev")},
        None,
        {"csv": "available", "sev": "absent"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_states(case: str, tmp_path: Path) -> None:
    files, ask, expected = CASES[case]
    found = host.memory_encryption(str(lay_out(tmp_path, files)), ask)
    assert set(found) == {"sme", "sev", "sev-es", "sev-snp", "tme", "tdx", "csv"}
    assert {key: found[key]["state"] for key in expected} == expected
    assert all(one["evidence"] for one in found.values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0b000, ("absent", "absent", "absent")),
        (0b001, ("active", "absent", "absent")),
        (0b011, ("active", "active", "absent")),
        (0b111, ("active", "active", "active")),
    ],
)
def test_sev_status(value: int, expected: tuple[str, ...], tmp_path: Path) -> None:
    """The register that only root can read says it for sure, whatever CPUID offers."""
    lay_out(tmp_path, {"proc/cpuinfo": AMD_GUEST})
    register(tmp_path, 0xC0010131, value)
    found = host.memory_encryption(str(tmp_path), leaves(x8000001F=(0b11010, 0, 0, 0)))
    assert tuple(found[key]["state"] for key in ("sev", "sev-es", "sev-snp")) == expected
    lay_out(tmp_path, {"proc/cpuinfo": HYGON_GUEST})
    found = host.memory_encryption(str(tmp_path))
    assert (found["csv"]["state"], found["sev"]["state"]) == (expected[0], "absent")


def test_a_trace_counts_where_the_register_is_hidden(tmp_path: Path) -> None:
    lay_out(tmp_path, {"proc/cpuinfo": AMD_GUEST})
    register(tmp_path, 0xC0010131, 0)
    found = host.memory_encryption(str(tmp_path), leaves(**HYPERV, x4000000C=(1, 2, 0, 0)))
    assert found["sev-snp"]["state"] == "active"


@pytest.mark.parametrize(("value", "expected"), [(0b10, "active"), (0b01, "absent")])
def test_tme_activate(value: int, expected: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"proc/cpuinfo": cpuinfo("GenuineIntel", "tme")})
    register(tmp_path, 0x982, value)
    assert host.memory_encryption(str(tmp_path))["tme"]["state"] == expected


def test_a_short_register_says_nothing(tmp_path: Path) -> None:
    lay_out(
        tmp_path, {"proc/cpuinfo": cpuinfo("GenuineIntel", "tme"), "dev/cpu/0/msr": b"\xff" * 9}
    )
    assert host.memory_encryption(str(tmp_path))["tme"]["state"] == "available"


def test_a_physical_machine_is_no_guest(tmp_path: Path) -> None:
    """What a guest alone is asked for is not asked for where the flag `hypervisor` is missing."""
    ask = leaves(x21=TDX, x8000001F=(0b11010, 0, 0, 0))
    for text in (AMD, INTEL):
        lay_out(tmp_path, {"proc/cpuinfo": text})
        found = host.memory_encryption(str(tmp_path), ask)
        assert {one["state"] for one in found.values()} == {"absent"}


# ---- CPUID of this machine -----------------------------------------------------------------------


def vendor() -> str:
    try:
        return host.processor().vendor
    except OSError:
        return ""


@pytest.mark.skipif(not vendor(), reason="/proc/cpuinfo names no vendor")
def test_cpuid_names_the_vendor() -> None:
    registers = cpuid(0)
    text = b"".join(registers[at].to_bytes(4, "little") for at in (1, 3, 2))
    assert text.decode() == vendor()
    assert bool(cpuid(1)[2] >> 31) == host.processor().virtual


def test_leaves_that_are_not_there_are_zeros() -> None:
    """A processor answers for its last leaf instead."""
    last = cpuid(0)[0]
    if not last:
        pytest.skip("no CPUID on this architecture")
    assert cpuid(last + 1) == cpuid(0x3FFFFFFF) == cpuid(0xBFFFFFFF) == (0, 0, 0, 0)
    assert cpuid(0x80000000)[0] > 0x80000000
    if not host.processor().virtual:
        assert cpuid(0x40000000) == (0, 0, 0, 0)


def test_cpuid_is_that_of_the_system() -> None:
    """The same as the kernel's driver says, where it may be asked."""
    try:
        descriptor = os.open("/dev/cpu/0/cpuid", os.O_RDONLY)
    except OSError:
        pytest.skip("needs /dev/cpu/0/cpuid, and root")
    try:
        for leaf in (0x80000002, 0x80000003, 0x80000008):
            said = os.pread(descriptor, 16, leaf)
            assert b"".join(n.to_bytes(4, "little") for n in cpuid(leaf)) == said, hex(leaf)
    finally:
        os.close(descriptor)
