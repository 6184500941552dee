# SPDX-License-Identifier: Apache-2.0
"""Starts the native library and chooses a tier.

The tier is the one that PYCCMEM_TIER names, or else the best. It must pass its known-answer tests;
other tiers are tested before their first use. PYCCMEM_NUM_THREADS bounds the threads of a bulk
operation.
"""

from __future__ import annotations

import os
import warnings

from .. import errors
from .native import ffi, lib
from .status import Call, TierCall, check
from .suites import TIERS, active_tier, features

__all__ = ["start", "tier_number"]


def start() -> None:
    """Starts the native library as the environment asks. Raises TierError, ConfigError, ..."""
    wanted = os.environ.get("PYCCMEM_TIER", "")
    status = lib.ccmem_init(os.fsencode(wanted) if wanted else ffi.NULL)
    if status == lib.CCMEM_ERR_TIER:
        # The error names the usable tiers, which are known only after a start.
        lib.ccmem_init(ffi.NULL)
    check(status, TierCall("the cipher code", "PYCCMEM_TIER", wanted))
    if wanted and active_tier() != wanted:
        # The first start in a process decides; a later import cannot move to another tier.
        raise errors.TierError(
            f"PYCCMEM_TIER={wanted!r} comes too late: this process already uses "
            f"{active_tier()!r}; set it before pyccmem is first imported."
        )

    threads = os.environ.get("PYCCMEM_NUM_THREADS", "")
    if threads:
        most = int(lib.CCMEM_MAX_THREADS)
        # ASCII digits only: int() would also take "1_0", "+1" and other scripts' digits.
        digits = threads.isascii() and threads.isdigit() and len(threads) <= 6
        if not digits or not 1 <= int(threads) <= most:
            raise errors.ConfigError(
                f"PYCCMEM_NUM_THREADS={threads!r} is not a number of threads; set a whole number "
                f"from 1 to {most}, or leave it unset for one thread a processor."
            )
        check(lib.ccmem_set_threads(int(threads)), Call("PYCCMEM_NUM_THREADS"))

    if not wanted and active_tier() == "portable":
        why = (
            "failed the known-answer tests of its AES instructions"
            if features().get("aes")
            else "has no AES instructions that pyccmem can use"
        )
        warnings.warn(
            f"This processor {why}, so pyccmem runs its portable constant-time code, which is "
            f"correct but slower by a factor of ten or more. PYCCMEM_TIER=portable silences this.",
            errors.PortableTierWarning,
            stacklevel=2,
        )


def tier_number(name: str | None) -> int:
    """Returns the native number of the named tier, or of the tier in use for None. The first call
    for a tier runs its known-answer tests. Raises TierError, SelfTestError."""
    if name is None:
        return int(lib.ccmem_tier_active())
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(
            f"tier must be a tier's name or None, not {type(name).__name__}."
        )
    status = lib.ccmem_tier_check(TIERS[name]) if name in TIERS else lib.CCMEM_ERR_TIER
    check(status, TierCall(f"the {name} tier", "tier", name))
    return TIERS[name]
