# SPDX-License-Identifier: Apache-2.0
"""The native library as the rest of the package uses it: its functions and constants, its names,
its errors, owners of its objects, and memory for plaintext.

Importing this package starts the library; see `startup`.
"""

from .native import OK, anchor, ffi, lib
from .startup import start, tier_number
from .status import Call, check
from .suites import (
    AUTHENTICATED,
    BUFFER_PAGE_SIZE,
    CIPHERS,
    DEFAULT_CIPHER,
    FAULTS,
    LEVELS,
    SUITES,
    TENSOR_PAGE_SIZE,
    TIERS,
    active_tier,
    cpuid,
    features,
    usable_tiers,
)

__all__ = [
    "AUTHENTICATED",
    "BUFFER_PAGE_SIZE",
    "CIPHERS",
    "DEFAULT_CIPHER",
    "FAULTS",
    "LEVELS",
    "OK",
    "SUITES",
    "TENSOR_PAGE_SIZE",
    "TIERS",
    "Call",
    "active_tier",
    "anchor",
    "check",
    "cpuid",
    "features",
    "ffi",
    "lib",
    "tier_number",
    "usable_tiers",
]

start()
