# SPDX-License-Identifier: Apache-2.0
"""Lays out the /proc, /sys and /dev of a system that is not this one."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = [
    "AMD",
    "AMD_GUEST",
    "HYGON_GUEST",
    "INTEL",
    "INTEL_GUEST",
    "cpuinfo",
    "lay_out",
    "remove",
]


def cpuinfo(vendor: str, *flags: str) -> str:
    """The text of /proc/cpuinfo with two processors of a kind."""
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A {vendor}\nflags\t\t: fpu aes"
    one = " ".join([one, *flags])
    return f"{one}\n\n{one}\n\n"


AMD = cpuinfo("AuthenticAMD")
AMD_GUEST = cpuinfo("AuthenticAMD", "hypervisor")
HYGON_GUEST = cpuinfo("HygonGenuine", "hypervisor")
INTEL = cpuinfo("GenuineIntel")
INTEL_GUEST = cpuinfo("GenuineIntel", "hypervisor")


def lay_out(root: Path, files: dict[str, str | bytes | None]) -> Path:
    """Writes files below `root`: text, bytes, or None for a folder; "-> TARGET" for a link."""
    for name, contents in files.items():
        path = root / name
        if contents is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        elif contents.startswith("-> "):
            path.symlink_to(contents[3:])
        else:
            path.write_text(contents)
    return root


def remove(path: Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
