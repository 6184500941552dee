# SPDX-License-Identifier: Apache-2.0
"""The lines of posture() about the system, on systems that are laid out as files; and about another
process, of which /proc shows a part. What cannot be read is never good."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from laid_out import AMD, AMD_GUEST, INTEL, INTEL_GUEST, cpuinfo, lay_out, remove

from pyccmem.assessment import Line
from pyccmem.assessment.subject import Subject
from pyccmem.assessment.table import look

Files = dict[str, str | bytes | None]

KSM = "sys/kernel/mm/ksm"
THP = "sys/kernel/mm/transparent_hugepage/enabled"
LOCKDOWN = "sys/kernel/security/lockdown"
UFFD = "proc/sys/vm/unprivileged_userfaultfd"
RELEASE = "proc/sys/kernel/osrelease"
SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"

#: A system with hibernation, and no device for it.
SLEEPS: Files = {
    "proc/cpuinfo": AMD,
    "proc/cmdline": "quiet\n",
    "proc/swaps": SWAPS,
    "sys/power/state": "freeze mem disk\n",
    "sys/power/disk": "[platform] shutdown reboot suspend test_resume \n",
    "sys/power/resume": "0:0\n",
}


def device(number: str, uuid: str | None, *slaves: str, name: str = "dm-0") -> Files:
    """A block device of sysfs, with what it consists of."""
    place = f"sys/devices/virtual/block/{name}"
    files: Files = {f"{place}/dev": number, f"sys/dev/block/{number}": f"-> ../../../{place}"}
    if uuid is not None:
        files |= {f"{place}/dm/uuid": f"{uuid}\n", f"{place}/dm/name": "cryptswap\n"}
    for slave in slaves:
        files[f"{place}/slaves/{slave}"] = f"-> ../../{slave}"
    return files


#: For each line: what is there, the state, and a word of what was seen.
CASES: dict[str, dict[str, tuple[Files, str, str]]] = {
    "memory-encryption": {
        "none": ({"proc/cpuinfo": AMD}, "bad", "none: this processor"),
        "none, Intel": ({"proc/cpuinfo": INTEL}, "bad", "none"),
        "SME": (
            {"proc/cpuinfo": cpuinfo("AuthenticAMD", "sme"), "proc/cmdline": "mem_encrypt=on"},
            "good",
            "SME",
        ),
        "SME offered": ({"proc/cpuinfo": cpuinfo("AuthenticAMD", "sme")}, "unknown", "offered"),
        "TME offered": ({"proc/cpuinfo": cpuinfo("GenuineIntel", "tme")}, "unknown", "TME"),
        "a host of SEV": (
            {"proc/cpuinfo": AMD, "sys/module/kvm_amd/parameters/sev": "Y"},
            "bad",
            "neither SME nor TME",
        ),
        "SEV": (
            {"proc/cpuinfo": cpuinfo("AuthenticAMD", "hypervisor", "sev")},
            "weak",
            "without protection of its integrity",
        ),
        "SEV-SNP": ({"proc/cpuinfo": AMD_GUEST, "dev/sev-guest": ""}, "good", "attestation"),
        "TDX": (
            {"proc/cpuinfo": cpuinfo("GenuineIntel", "hypervisor", "tdx_guest")},
            "good",
            "TDX",
        ),
        "an Intel guest": ({"proc/cpuinfo": INTEL_GUEST}, "bad", "a virtual machine cannot see"),
        "an AMD guest without CPUID": ({"proc/cpuinfo": AMD_GUEST}, "unknown", "need not show"),
        "no flags": ({"proc/cpuinfo": "processor: 0\n"}, "unknown", "does not list"),
    },
    "hibernation": {
        "not offered": ({"proc/cpuinfo": AMD, "sys/power/state": "freeze mem\n"}, "good", "not"),
        "a virtual machine": (
            {"proc/cpuinfo": AMD_GUEST, "sys/power/state": "\n"},
            "good",
            "a guest cannot see",
        ),
        "disabled": (SLEEPS | {"sys/power/disk": "[disabled]\n"}, "good", "disabled"),
        "no place": (SLEEPS, "weak", "neither swap nor a device"),
        "swap, no device": (
            SLEEPS | {"proc/swaps": SWAPS + "/swapfile file 1 0 -2\n"},
            "weak",
            "there is swap",
        ),
        "named": (SLEEPS | {"proc/cmdline": "ro resume=/dev/sda2"}, "bad", "command line"),
        "plain": (
            SLEEPS | {"sys/power/resume": "8:2\n"} | device("8:2", None, name="sda2"),
            "bad",
            "in the clear",
        ),
        "dm-crypt": (
            SLEEPS | {"sys/power/resume": "254:0\n"} | device("254:0", "CRYPT-LUKS2-0123"),
            "good",
            "encrypted",
        ),
        "LVM over dm-crypt": (
            SLEEPS
            | {"sys/power/resume": "254:1\n"}
            | device("254:0", "CRYPT-LUKS2-0123")
            | device("254:1", "LVM-0123", "dm-0", name="dm-1"),
            "good",
            "encrypted",
        ),
        "LVM over a disk": (
            SLEEPS
            | {"sys/power/resume": "254:1\n"}
            | device("8:2", None, name="sda2")
            | device("254:1", "LVM-0123", "sda2", name="dm-1"),
            "bad",
            "in the clear",
        ),
        "a device that is not shown": (
            SLEEPS | {"sys/power/resume": "8:2\n"},
            "unknown",
            "8:2",
        ),
        "no choice": (SLEEPS | {"sys/power/disk": "platform\n"}, "unknown", "no choice"),
        "hidden": ({"proc/cpuinfo": AMD}, "unknown", "sys/power/state"),
    },
    "lockdown": {
        "none": ({LOCKDOWN: "[none] integrity confidentiality\n"}, "bad", "none"),
        "integrity": ({LOCKDOWN: "none [integrity] confidentiality\n"}, "weak", "integrity"),
        "confidentiality": ({LOCKDOWN: "none integrity [confidentiality]\n"}, "good", ""),
        "another": ({LOCKDOWN: "none [other]\n"}, "unknown", "other"),
        "not mounted": ({"proc/self/mounts": "proc /proc proc rw 0 0\n"}, "unknown", "mounted"),
        "not in the kernel": (
            {"proc/self/mounts": "securityfs /sys/kernel/security securityfs rw 0 0\n"},
            "bad",
            "no lockdown",
        ),
    },
    "kernel-wiping": {
        "on": ({"proc/cmdline": "ro init_on_free=1 quiet"}, "good", "init_on_free=1"),
        "on, spelt otherwise": ({"proc/cmdline": "init_on_free=on"}, "good", "on"),
        "off": ({"proc/cmdline": "init_on_free=0"}, "weak", "off"),
        "off, spelt otherwise": ({"proc/cmdline": "init_on_free=off"}, "weak", "off"),
        "the last counts": ({"proc/cmdline": "init_on_free=1 init_on_free=0"}, "weak", "off"),
        "built in": (
            {
                "proc/cmdline": "ro",
                "proc/config.gz": gzip.compress(b"# x\nCONFIG_INIT_ON_FREE_DEFAULT_ON=y\n"),
            },
            "good",
            "built",
        ),
        "built in, switched off": (
            {
                "proc/cmdline": "init_on_free=0",
                "proc/config.gz": gzip.compress(b"CONFIG_INIT_ON_FREE_DEFAULT_ON=y\n"),
            },
            "weak",
            "off",
        ),
        "not built in": (
            {
                "proc/cmdline": "ro",
                RELEASE: "6.1.0-x\n",
                "boot/config-6.1.0-x": "# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n",
            },
            "weak",
            "off",
        ),
        "not known": ({"proc/cmdline": "ro", RELEASE: "6.1.0"}, "unknown", "boot/config"),
        "damaged": (
            {"proc/cmdline": "ro", "proc/config.gz": b"\x1f\x8b\x08"},
            "unknown",
            "config.gz",
        ),
    },
    "huge-pages": {
        "always": (
            {THP: "[always] madvise never", "proc/7/status": "THP_enabled:\t1\n"},
            "weak",
            "",
        ),
        "not here": (
            {THP: "[always] madvise never", "proc/7/status": "THP_enabled:\t0\n"},
            "good",
            "PR_SET_THP_DISABLE",
        ),
        "madvise": ({THP: "always [madvise] never"}, "good", "madvise"),
        "never": ({THP: "always madvise [never]"}, "good", "never"),
        "another": ({THP: "always [inherit]"}, "unknown", "inherit"),
        "not in the kernel": ({"sys/kernel/mm": None}, "good", "no transparent"),
        "hidden": ({"sys/kernel": None}, "unknown", "sys/kernel/mm"),
    },
    "page-merging": {
        "off": ({f"{KSM}/run": "0", f"{KSM}/pages_shared": "0"}, "good", "off"),
        "undone": ({f"{KSM}/run": "2", f"{KSM}/pages_shared": "0"}, "good", "off"),
        "stopped": (
            {
                f"{KSM}/run": "0",
                f"{KSM}/pages_shared": "9",
                "proc/7/ksm_stat": "ksm_merging_pages 4\n",
            },
            "bad",
            "4 pages",
        ),
        "on": (
            {
                f"{KSM}/run": "1",
                f"{KSM}/pages_shared": "0",
                "proc/7/ksm_stat": "ksm_merging_pages 0\n",
            },
            "weak",
            "on",
        ),
        "on, not here": (
            {
                f"{KSM}/run": "1",
                f"{KSM}/pages_shared": "0",
                "proc/7/ksm_stat": "ksm_merging_pages 0\nksm_merge_any: no\nksm_mergeable: no\n",
            },
            "good",
            "not for this process",
        ),
        "on, and asked for": (
            {
                f"{KSM}/run": "1",
                f"{KSM}/pages_shared": "0",
                "proc/7/ksm_stat": "ksm_merging_pages 0\nksm_merge_any: yes\nksm_mergeable: yes\n",
            },
            "weak",
            "on",
        ),
        "does not tell": (
            {f"{KSM}/run": "1", f"{KSM}/pages_shared": "0", "proc/7/ksm_stat": "\n"},
            "unknown",
            "ksm_stat",
        ),
        "not in the kernel": ({"sys/kernel/mm": None}, "good", "no KSM"),
        "another": ({f"{KSM}/run": "3", f"{KSM}/pages_shared": "0"}, "unknown", "3"),
        "hidden": ({"sys/kernel": None}, "unknown", "sys/kernel/mm"),
    },
    "userfaultfd": {
        "for root": ({UFFD: "0\n"}, "good", ""),
        "for all": ({UFFD: "1\n"}, "weak", "any process"),
        "another": ({UFFD: "2\n"}, "unknown", "2"),
        "not in the kernel": ({"proc/sys/vm": None, RELEASE: "6.1.0-9"}, "good", "no userfaultfd"),
        "an old kernel": ({"proc/sys/vm": None, RELEASE: "4.19.0"}, "unknown", "5.2"),
        "hidden": ({RELEASE: "6.1.0-9"}, "unknown", "proc/sys/vm"),
    },
}

#: The process of the cases: one that is not this one.
PID = 7


def line(root: Path, name: str) -> Line:
    return {one.name: one for one in look(Subject(PID, root))}[name]


PAIRS = [(name, case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_states(name: str, case: str, tmp_path: Path) -> None:
    files, state, word = CASES[name][case]
    found = line(lay_out(tmp_path, files), name)
    assert (found.state, word in found.seen) == (state, True), found
    assert bool(found.remedy) == (state != "good")


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_what_cannot_be_read_is_never_good(name: str, case: str, tmp_path: Path) -> None:
    """Each file in turn becomes one that no read can read: what was not good does not become good,
    and what was good without that file stays as it was."""
    files, before, _ = CASES[name][case]
    good = 0
    for at, path in enumerate(path for path, contents in files.items() if contents is not None):
        root = lay_out(tmp_path / str(at), files)
        if (root / path).is_symlink():
            continue
        remove(root / path)
        (root / path).mkdir()
        state = line(root, name).state
        assert state != "good" or before == "good", path
        good += state == "good"
    if before == "good" and "hypervisor" not in str(files) and None not in files.values():
        assert good < len(files), "no file was looked at"


@pytest.mark.parametrize("name", CASES)
def test_every_state_of_a_line_is_tried(name: str) -> None:
    states = {state for _, state, _ in CASES[name].values()}
    assert {"good", "unknown"} < states


def test_nothing_is_good_on_a_system_that_shows_nothing(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        lines = look(Subject(PID, root))
        assert {one.state for one in lines} == {"unknown"}
        assert all(one.remedy for one in lines)


def test_a_device_of_userfaultfd_for_all(tmp_path: Path) -> None:
    lay_out(tmp_path, {UFFD: "0", "dev/userfaultfd": ""})
    (tmp_path / "dev/userfaultfd").chmod(0o600)
    assert line(tmp_path, "userfaultfd").state == "good"
    (tmp_path / "dev/userfaultfd").chmod(0o666)
    assert line(tmp_path, "userfaultfd").state == "weak"


# ---- another process, as /proc shows it ----------------------------------------------------------


def status(user: int, **fields: str) -> str:
    found = {"TracerPid": "0", "Uid": f"{user}\t{user}\t{user}\t{user}", "VmSwap": "12 kB"}
    return "".join(f"{name}:\t{value}\n" for name, value in (found | fields).items())


LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax core file size        {}  unlimited   bytes\n"
YAMA = "proc/sys/kernel/yama/ptrace_scope"
PATTERN = "proc/sys/kernel/core_pattern"
ME = os.getuid() or 1000


def process(limit: str = "unlimited", **fields: str) -> Files:
    """A process of another user than root, which is dumpable: its files belong to that user."""
    return {
        "proc/7/status": status(ME, **fields),
        "proc/7/limits": LIMITS.format(limit),
        "proc/7/coredump_filter": "00000033\n",
        PATTERN: "core\n",
        "proc/swaps": SWAPS,
    }


OUTSIDE: dict[str, dict[str, tuple[Files, str, str]]] = {
    "core-dumps": {
        "unlimited": (process(), "bad", "unlimited"),
        "none": (process("0"), "good", "0"),
        "none, but piped": (process("0") | {PATTERN: "|/bin/x %P"}, "bad", "program"),
        "one byte, piped": (process("1") | {PATTERN: "|/bin/x %P"}, "good", "1"),
        "no limits": (process() | {"proc/7/limits": "\n"}, "unknown", "limits"),
    },
    "dumpable": {"dumpable": (process(), "bad", "dumpable")},
    "ptrace": {
        "no Yama": (process() | {"proc/sys/kernel": None}, "bad", "any process"),
        "0": (process() | {YAMA: "0\n"}, "bad", "any process"),
        "1": (process() | {YAMA: "1\n"}, "weak", "started it"),
        "2": (process() | {YAMA: "2\n"}, "good", "ptrace_scope 2"),
        "3": (process() | {YAMA: "3\n"}, "good", "ptrace_scope 3"),
        "traced": (process(TracerPid="99") | {YAMA: "3\n"}, "bad", "99"),
    },
    "dontdump": {
        "the default": (process(), "bad", "33"),
        "nothing": (process() | {"proc/7/coredump_filter": "00000000\n"}, "good", "no dump"),
        "no number": (process() | {"proc/7/coredump_filter": "x\n"}, "unknown", "x"),
    },
    "swap": {"none": (process(), "good", "no swap")},
}
OUTSIDE_PAIRS = [(name, case) for name, cases in OUTSIDE.items() for case in cases]


def give(root: Path) -> Path:
    """Gives the process's files to its user, where this is root."""
    if os.getuid() == 0:
        for path in (root / "proc/7").iterdir():
            os.chown(path, ME, ME)
    return root


@pytest.mark.parametrize(("name", "case"), OUTSIDE_PAIRS)
def test_another_process(name: str, case: str, tmp_path: Path) -> None:
    files, state, word = OUTSIDE[name][case]
    found = line(give(lay_out(tmp_path, files)), name)
    assert (found.state, word in found.seen) == (state, True), found


@pytest.mark.parametrize(("name", "case"), OUTSIDE_PAIRS)
def test_another_process_that_cannot_be_read(name: str, case: str, tmp_path: Path) -> None:
    files, before, _ = OUTSIDE[name][case]
    for at, path in enumerate(path for path, contents in files.items() if contents is not None):
        root = give(lay_out(tmp_path / str(at), files))
        remove(root / path)
        (root / path).mkdir()
        state = line(root, name).state
        assert state != "good" or before == "good", path


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files away")
def test_a_process_that_is_not_dumpable(tmp_path: Path) -> None:
    """Its files are root's, though it is not."""
    root = lay_out(tmp_path, process() | {YAMA: "0\n"})
    for name in ("core-dumps", "dumpable", "ptrace"):
        assert line(root, name).state == "good", name
    give(root)
    for name in ("core-dumps", "dumpable", "ptrace"):
        assert line(root, name).state == "bad", name
    (root / "proc/7/status").write_text(status(0))
    assert line(root, "dumpable").state == "unknown"


# ---- swap: a file of it lies on the device of this very folder, which is laid out ----------------


def swap_on(folder: Path, *extra: str, **attributes: str | None) -> Path:
    """A system with a file of swap. `attributes`: of the device below it."""
    number = folder.stat().st_dev
    name = attributes.pop("name", None) or "dm-0"
    at = f"{os.major(number)}:{os.minor(number)}"
    files = process() | device(at, attributes.pop("uuid", None), name=name)
    for attribute, text in attributes.items():
        files[f"sys/devices/virtual/block/{name}/{attribute}"] = text
    files |= {"swapfile": "", "proc/swaps": SWAPS + "/swapfile file 1000 0 -2\n" + "".join(extra)}
    return give(lay_out(folder, files))


def test_swap(tmp_path: Path) -> None:
    cases = [
        ("bad", {"name": "sda2"}),
        ("good", {"uuid": "CRYPT-PLAIN-swap"}),
        ("bad", {"uuid": "LVM-0123"}),
        ("good", {"name": "zram0", "backing_dev": "none\n"}),
        ("good", {"name": "zram0"}),
        ("bad", {"name": "zram0", "backing_dev": "/dev/sda3\n"}),
    ]
    for at, (state, attributes) in enumerate(cases):
        folder = tmp_path / str(at)
        folder.mkdir()
        found = line(swap_on(folder, **attributes), "swap")
        assert found.state == state, (attributes, found)
        assert state == "good" or "12 kB" in found.seen


def test_swap_that_cannot_be_looked_at(tmp_path: Path) -> None:
    more = "/elsewhere file 10 0 -3\n"
    (tmp_path / "one").mkdir()
    root = swap_on(tmp_path / "one", more, uuid="CRYPT-PLAIN-swap")
    assert line(root, "swap").state == "unknown"
    (tmp_path / "two").mkdir()
    root = swap_on(tmp_path / "two", name="zram0", backing_dev="none\n")
    remove(root / "sys/devices/virtual/block/zram0/backing_dev")
    (root / "sys/devices/virtual/block/zram0/backing_dev").mkdir()
    assert line(root, "swap").state != "good"
