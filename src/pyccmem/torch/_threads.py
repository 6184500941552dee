# SPDX-License-Identifier: Apache-2.0
"""pyccmem's bulk calls in torch's own threads.

torch's OpenMP threads wait for the next piece of work by spinning. Threads beside them get no
processor for as long, and a product right after one of torch's ran in one thread instead of two.
"""

from __future__ import annotations

import ctypes
import os

import torch

from .._lib import ffi, lib

__all__ = ["share_threads"]


def share_threads() -> bool:
    """Has pyccmem use the OpenMP library that torch has loaded; False where there is none."""
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    try:
        function = ctypes.CDLL(library).GOMP_parallel
    except (OSError, AttributeError):
        return False
    address = ctypes.cast(function, ctypes.c_void_p).value
    lib.ccmem_set_openmp(ffi.cast("void *", address))
    return True
