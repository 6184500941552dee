# SPDX-License-Identifier: Apache-2.0
"""Finds out whether this process's memory can get to a disk in the clear: which areas of swap there
are, what lies below each, whether this process may use them, and whether its pages are locked."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import libc
from .part import Part

__all__ = ["Area", "areas", "below", "can_lock", "lock", "swap"]

_CAP_IPC_LOCK = 1 << 14


@dataclass(frozen=True)
class Area:
    """A line of /proc/swaps: where swapped pages go."""

    path: str
    kind: str  #: "zram", "encrypted", "plain", "unknown"
    why: str

    @property
    def harmless(self) -> bool:
        """True when what is written there is not on a disk in the clear."""
        return self.kind in ("zram", "encrypted")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def below(device: Path, depth: int = 0) -> tuple[str, str]:
    """Returns kind and reason of a block device, by its folder in /sys: encrypted when it is, or
    everything that it consists of is."""
    name = device.name
    if _text(device / "dm/uuid").startswith("CRYPT-"):
        return "encrypted", f"dm-crypt ({_text(device / 'dm/name') or name})"
    if name.startswith("zram"):
        try:
            disk = (device / "backing_dev").read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:  # a kernel without writing back
            disk = ""
        except OSError as error:
            return "unknown", f"zram, of which backing_dev cannot be read ({error.strerror})"
        if disk in ("", "none"):
            return "zram", "compressed in memory"
        return "plain", f"zram that writes to {disk}"
    try:
        parts = sorted((device / "slaves").iterdir())
    except OSError:
        parts = []
    if parts and depth < 8:
        kinds = [below(part.resolve(), depth + 1) for part in parts]
        plain = next((kind for kind in kinds if kind[0] != "encrypted"), None)
        return plain or kinds[0]
    return "plain", f"the device {name} is not encrypted by dm-crypt"


def areas(root: str = "/") -> tuple[Area, ...]:
    """Returns the areas of swap of this system. `root` is the directory to look below."""
    return tuple(_areas(Path(root)))


def _areas(base: Path) -> Iterator[Area]:
    for line in _text(base / "proc/swaps").splitlines()[1:]:
        words = line.split()
        if len(words) < 2:
            continue
        # The kernel escapes spaces and the like in octal.
        path = words[0].encode("latin-1", "replace").decode("unicode_escape")
        try:
            found = os.stat(base / path.lstrip("/"))
        except OSError:
            yield Area(path, "unknown", "it cannot be looked at from here")
            continue
        number = found.st_rdev if words[1] == "partition" else found.st_dev
        device = base / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
        if not device.exists():
            yield Area(path, "unknown", "the device below it is not known")
            continue
        yield Area(path, *below(device.resolve()))


def _group_limit(base: Path) -> str:
    """Returns the name of a cgroup of this process, or above it, that may not swap; ""."""
    for line in _text(base / "proc/self/cgroup").splitlines():
        number, _, path = line.partition("::")
        if number != "0":
            continue
        place = Path(path.lstrip("/"))
        for group in (place, *place.parents):
            if _text(base / "sys/fs/cgroup" / group / "memory.swap.max") == "0":
                return f"/{group}" if str(group) != "." else "/"
    return ""


def can_lock() -> bool:
    """Returns True when locking all memory, with what comes later, can never fail by a limit. A
    small RLIMIT_MEMLOCK would make later mappings fail: the stacks of threads among them."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_IPC_LOCK)
    return False


def lock() -> str:
    """Locks all memory, with what comes later. Returns "", or why that was not done."""
    if not can_lock():
        soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return (
            f"RLIMIT_MEMLOCK is {soft >> 10} KiB, under which later threads and mappings would "
            f"fail; set `ulimit -l unlimited` (LimitMEMLOCK=infinity), or give CAP_IPC_LOCK"
        )
    refused = libc.lock_all(future=True)
    return f"mlockall failed: {os.strerror(refused)}" if refused else ""


def _locked() -> int:
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) << 10
    return 0


def _locks_new() -> bool:
    """Returns True when a page that comes into use now is locked."""
    before = _locked()
    if not before:
        return False
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[0] = 1
        return _locked() > before


def swap(root: str = "/") -> Part:
    """Reads whether pages of this process can get to a disk in the clear."""
    base = Path(root)
    if _locks_new():
        return Part("swap", True, "all memory is locked, with what comes later", "")
    if not _text(base / "proc/swaps"):
        return Part("swap", False, "/proc/swaps cannot be read", "mount /proc")
    found = areas(root)
    if not found:
        return Part("swap", True, "this system has no swap", "")
    group = _group_limit(base)
    if group:
        return Part("swap", True, f"cgroup {group} may not swap (memory.swap.max is 0)", "")
    text = "; ".join(f"{area.path}: {area.kind}, {area.why}" for area in found)
    if _text(base / "sys/module/zswap/parameters/enabled") == "Y":
        text += "; zswap keeps some of it compressed in memory"
    if all(area.harmless for area in found):
        return Part("swap", True, text, "")
    return Part(
        "swap",
        False,
        text,
        "encrypt swap (dm-crypt), switch it off, set memory.swap.max=0, or use swap='lock' with "
        "`ulimit -l unlimited`",
    )
