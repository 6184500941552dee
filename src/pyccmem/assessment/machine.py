# SPDX-License-Identifier: Apache-2.0
"""Lines that hold for the whole system: encryption by hardware, hibernation, what the kernel does
with memory and lets others do."""

from __future__ import annotations

import gzip
import re
import stat

from .. import host
from ..binding import cpuid
from ..hardening.swap import below
from .line import BAD, GOOD, UNKNOWN, WEAK, Finding
from .subject import Subject, Unseen

__all__ = [
    "hibernation",
    "huge_pages",
    "kernel_wiping",
    "lockdown",
    "memory_encryption",
    "page_merging",
    "userfaultfd",
]

_CONFIDENTIAL = (
    "run in a confidential virtual machine (SEV-SNP, TDX), and have its attestation checked"
)


def memory_encryption(subject: Subject) -> Finding:
    """Whether hardware encrypts the memory of this host or virtual machine."""
    ask = cpuid if subject.root.samefile("/") else None
    found = host.memory_encryption(str(subject.root), ask)
    virtual = host.processor(str(subject.root)).virtual
    active = {name: one for name, one in found.items() if one["state"] == host.ACTIVE}
    told = "; ".join(f"{name.upper()}: {one['evidence']}" for name, one in active.items())
    claim = "; a guest sees what its host shows it, attestation alone proves it"
    if active.keys() & {"sev-snp", "tdx"}:
        return Finding(GOOD, told + claim)
    if active.keys() & {"sev", "sev-es", "csv"}:
        return Finding(WEAK, f"{told}, without protection of its integrity{claim}", _CONFIDENTIAL)
    if active:
        return Finding(GOOD, told)
    names = ("sev", "sev-es", "sev-snp", "tdx", "csv") if virtual else ("sme", "tme")
    states = {name: found[name] for name in names}
    hidden = "; what its host does with its own memory, a virtual machine cannot see"
    for state, means in ((host.UNKNOWN, "not to be seen"), (host.AVAILABLE, "offered")):
        such = {name: one for name, one in states.items() if one["state"] == state}
        if such:
            told = "; ".join(f"{name.upper()}: {one['evidence']}" for name, one in such.items())
            return Finding(
                UNKNOWN,
                f"{means}: {told}{hidden if virtual else ''}",
                f"ask its owner, or {_CONFIDENTIAL}",
            )
    if virtual:
        return Finding(
            BAD, f"none: no SEV, TDX or CSV in this virtual machine{hidden}", _CONFIDENTIAL
        )
    return Finding(
        BAD,
        "none: this processor has neither SME nor TME, or the firmware has it switched off",
        f"switch on SME (mem_encrypt=on) or TME in the firmware, or {_CONFIDENTIAL}",
    )


def hibernation(subject: Subject) -> Finding:
    """Whether the system can write all memory to a disk and go off."""
    remedy = (
        "boot with `nohibernate`, or mask hibernate.target, hybrid-sleep.target and "
        "suspend-then-hibernate.target of systemd"
    )
    states = subject.read("sys/power/state").split()
    beyond = ""
    if host.processor(str(subject.root)).virtual:
        beyond = "; that its host saves this virtual machine whole, a guest cannot see"
    if "disk" not in states:
        return Finding(GOOD, f"not possible now{beyond}")
    if subject.chosen("sys/power/disk") == "disabled":
        return Finding(GOOD, f"disabled{beyond}")
    device = subject.read("sys/power/resume")
    if device != "0:0":
        place = subject.path(f"sys/dev/block/{device}")
        if not place.exists():
            raise Unseen(f"the device that it writes to, {device}, is not in /sys")
        kind, told = below(place.resolve())
        if kind == "encrypted":
            return Finding(GOOD, f"possible; the image is encrypted: {told}{beyond}")
        return Finding(BAD, f"possible, and the image is in the clear: {told}{beyond}", remedy)
    if any(word.startswith("resume=") for word in subject.read("proc/cmdline").split()):
        return Finding(BAD, f"possible, to a device that the command line names{beyond}", remedy)
    areas = len(subject.read("proc/swaps").splitlines()) - 1
    if areas > 0:
        return Finding(
            WEAK, f"possible: there is swap to write to, but no device set{beyond}", remedy
        )
    return Finding(WEAK, f"possible, but there is neither swap nor a device for it{beyond}", remedy)


def lockdown(subject: Subject) -> Finding:
    """Whether the kernel keeps root from reading all memory and from changing the kernel."""
    remedy = "boot with `lockdown=confidentiality` (and Secure Boot)"
    name = "sys/kernel/security/lockdown"
    if not subject.there(name):
        mounts = subject.read("proc/self/mounts").splitlines()
        if any(line.split()[1:3] == ["/sys/kernel/security", "securityfs"] for line in mounts):
            return Finding(BAD, "this kernel has no lockdown", remedy)
        raise Unseen(
            "/sys/kernel/security, which would tell, is not mounted here",
            "mount -t securityfs securityfs /sys/kernel/security",
        )
    mode = subject.chosen(name)
    if mode == "confidentiality":
        return Finding(GOOD, "confidentiality: root cannot read memory through the kernel")
    if mode == "integrity":
        return Finding(WEAK, "integrity: root cannot change the kernel, but read memory", remedy)
    if mode == "none":
        return Finding(BAD, "none: root can read all memory and load modules", remedy)
    raise Unseen(f"an unknown mode: {mode[:40]}")


def huge_pages(subject: Subject) -> Finding:
    """Whether the kernel copies memory into huge pages by itself."""
    name = "sys/kernel/mm/transparent_hugepage/enabled"
    if not subject.there(name):
        if subject.there("sys/kernel/mm"):
            return Finding(GOOD, "this kernel has no transparent huge pages")
        raise Unseen("/sys/kernel/mm is not there")
    mode = subject.chosen(name)
    if mode == "never":
        return Finding(GOOD, "never")
    if mode == "madvise":
        return Finding(GOOD, "madvise: for memory that asks for it, as pyccmem's ciphertext does")
    if mode != "always":
        raise Unseen(f"an unknown mode: {mode[:40]}")
    if subject.status("THP_enabled") == "0":
        return Finding(GOOD, "always, but not for this process (PR_SET_THP_DISABLE)")
    return Finding(
        WEAK,
        "always",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


def page_merging(subject: Subject) -> Finding:
    """Whether the kernel merges equal pages, by whose time others can test what a page holds."""
    beyond = ""
    if host.processor(str(subject.root)).virtual:
        beyond = "; what its host merges, a guest cannot see"
    name = "sys/kernel/mm/ksm/run"
    if not subject.there(name):
        if subject.there("sys/kernel/mm"):
            return Finding(GOOD, f"this kernel has no KSM{beyond}")
        raise Unseen("/sys/kernel/mm is not there")
    run = subject.read(name)
    shared = subject.read("sys/kernel/mm/ksm/pages_shared")
    if run == "2" or (run == "0" and shared == "0"):
        return Finding(GOOD, f"off (ksm/run is {run}){beyond}")
    if run not in ("0", "1"):
        raise Unseen(f"an unknown state of ksm/run: {run[:40]}")
    remedy = "echo 2 > /sys/kernel/mm/ksm/run"
    pairs = (line.rsplit(None, 1) for line in subject.own("ksm_stat").splitlines())
    found = {pair[0].rstrip(":"): pair[1] for pair in pairs if len(pair) == 2}
    merged = found.get("ksm_merging_pages")
    if merged is None:
        raise Unseen("ksm_stat does not tell how many pages of this process are merged")
    if merged != "0":
        return Finding(BAD, f"{merged} pages of this process are merged with others", remedy)
    if found.get("ksm_mergeable") == "no":
        return Finding(GOOD, f"on, but not for this process{beyond}")
    return Finding(WEAK, f"on; no page of this process is merged now{beyond}", remedy)


def userfaultfd(subject: Subject) -> Finding:
    """Whether any process may hold the kernel at a page fault for as long as it likes."""
    name = "proc/sys/vm/unprivileged_userfaultfd"
    if not subject.there(name):
        if not subject.there("proc/sys/vm"):
            raise Unseen("/proc/sys/vm is not there")
        release = re.match(r"(\d+)\.(\d+)", subject.read("proc/sys/kernel/osrelease"))
        # Linux had the call from 4.3 on and the setting from 5.2 on.
        if release and (int(release[1]), int(release[2])) >= (5, 2):
            return Finding(GOOD, "this kernel has no userfaultfd")
        raise Unseen(f"/{name} is not there, as before Linux 5.2")
    value = subject.read(name)
    if value == "1":
        return Finding(
            WEAK,
            "any process may handle the kernel's faults",
            "sysctl vm.unprivileged_userfaultfd=0",
        )
    if value != "0":
        raise Unseen(f"an unknown value: {value[:40]}")
    seen = "processes without privileges handle their own faults alone"
    try:
        mode = subject.path("dev/userfaultfd").stat().st_mode
    except FileNotFoundError:
        return Finding(GOOD, seen)
    except OSError as error:
        raise Unseen(f"/dev/userfaultfd cannot be looked at ({error.strerror})") from None
    if mode & stat.S_IROTH or mode & stat.S_IWOTH:
        return Finding(
            WEAK,
            "/dev/userfaultfd is open to all users",
            "chmod o= /dev/userfaultfd, by a udev rule",
        )
    return Finding(GOOD, seen)


def kernel_wiping(subject: Subject) -> Finding:
    """Whether the kernel overwrites pages when they are freed."""
    remedy = "boot with `init_on_free=1`"
    off = Finding(WEAK, "off: freed pages keep what they hold until they are used again", remedy)
    said = [
        word.partition("=")[2]
        for word in subject.read("proc/cmdline").split()
        if word.startswith("init_on_free=")
    ]
    # kstrtobool() of the kernel; the last word counts.
    if said:
        last = said[-1].lower()
        on = Finding(GOOD, f"on (init_on_free={said[-1][:10]})")
        return on if last == "on" or last[:1] in ("1", "y", "t") else off
    config = _config(subject)
    if "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" in config:
        return Finding(GOOD, "on, as this kernel was built")
    return off


def _config(subject: Subject) -> list[str]:
    """Returns the lines of the configuration that the kernel was built with. Raises Unseen."""
    if subject.there("proc/config.gz"):
        try:
            return (
                gzip.decompress(subject.path("proc/config.gz").read_bytes()).decode().splitlines()
            )
        except (OSError, EOFError, ValueError) as error:
            raise Unseen(f"/proc/config.gz cannot be read ({error})") from None
    release = subject.read("proc/sys/kernel/osrelease")
    if "/" in release or not release:
        raise Unseen("the kernel's release is not known")
    return subject.read(f"boot/config-{release}").splitlines()
