# SPDX-License-Identifier: Apache-2.0
"""Describes what pyccmem runs on: the processor, its tiers, the speed limit of its AES unit."""

from __future__ import annotations

import platform
import time
from typing import Any

from . import host
from .binding import TIERS, active_tier, cpuid, features, lib, usable_tiers

__all__ = ["cpu_info"]

#: AES rounds for a block of 16 bytes, by the kind of cipher.
_ROUNDS = {"aegis-128": 2, "aes-128": 10, "aes-256": 14}


def _ceiling(tier: int, rounds: int, seconds: float = 0.2) -> float:
    """Returns the bytes per second of the AES unit alone: the best of many short windows, because
    other work on the machine only makes a window slower."""
    best, repeats = 0.0, 1 << 14
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = max(best, float(lib.ccmem_measure_ceiling(tier, rounds, repeats)))
        if best == 0.0:
            break
    return best


def cpu_info(*, measure: bool = False) -> dict[str, Any]:
    """Returns a dict that describes the processor and how pyccmem uses it:

    - `processor`: the model's name; `architecture`: such as "x86_64"
    - `features`: processor features by name, True where this process may use them
    - `tiers`: names of the usable tiers, best first; `tier`: the one in use
    - `threads`: how many threads one bulk read or write may use
    - `memory_encryption`: see host.memory_encryption()
    - `ceiling`: None, or with `measure=True` (which takes most of a second) bytes per second that
      one core's AES unit could encrypt with the tier in use, for "aegis-128", "aes-128" and
      "aes-256"; None for the portable tier, which uses no such unit
    """
    tier = active_tier()
    ceiling = None
    if measure and tier != "portable":
        ceiling = {name: _ceiling(TIERS[tier], rounds) for name, rounds in _ROUNDS.items()}
    return {
        "processor": host.processor_name(),
        "architecture": platform.machine(),
        "features": features(),
        "tiers": usable_tiers(),
        "tier": tier,
        "threads": int(lib.ccmem_threads()),
        "memory_encryption": host.memory_encryption(cpuid=cpuid),
        "ceiling": ceiling,
    }
