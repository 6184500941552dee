# SPDX-License-Identifier: Apache-2.0
"""The native module: the only importer of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._native import ffi, lib

__all__ = ["OK", "anchor", "ffi", "lib"]

OK: int = lib.CCMEM_OK


def anchor(owner: Any) -> Any:
    """Returns something that keeps `owner`, made by ffi.gc(), out of the garbage collector's sight.

    When a reference cycle is collected, cffi runs the destructors of all its members first, and
    finalizers (`__del__`) that come after may still use the objects, or even save them. An ndarray
    is not tracked by the collector, so to it the reference in this one comes from outside: `owner`
    is never destroyed by a collection, only when its last reference goes.
    """
    holder = np.empty((), dtype=object)
    holder[()] = owner
    return holder
