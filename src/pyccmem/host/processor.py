# SPDX-License-Identifier: Apache-2.0
"""The processor as /proc/cpuinfo describes it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

__all__ = ["Processor", "processor", "processor_name"]


class Processor(NamedTuple):
    """The first processor of /proc/cpuinfo; empty where the system does not tell."""

    name: str
    vendor: str
    flags: frozenset[str]

    @property
    def virtual(self) -> bool:
        """True in a virtual machine, if its hypervisor says so."""
        return "hypervisor" in self.flags


def processor(root: str = "/") -> Processor:
    """Returns the first processor's model name, vendor and flags. `root` is the directory to look
    below."""
    name, vendor, flags = "", "", frozenset[str]()
    try:
        text = (Path(root) / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Processor(name, vendor, flags)
    for line in text.partition("\n\n")[0].splitlines():
        field, _, value = line.partition(":")
        match field.strip():
            case "model name":
                name = value.strip()
            case "vendor_id":
                vendor = value.strip()
            case "flags":
                flags = frozenset(value.split())
    return Processor(name, vendor, flags)


def processor_name(root: str = "/") -> str:
    """Returns the processor's model name, or the name of its architecture if the system tells no
    more."""
    return processor(root).name or platform.processor() or platform.machine() or "unknown"
