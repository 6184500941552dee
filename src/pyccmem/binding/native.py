# SPDX-License-Identifier: Apache-2.0
"""Imports the native module. No other module does."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._native import ffi, lib

__all__ = ["OK", "anchor", "ffi", "lib"]

OK: int = lib.CCMEM_OK


def anchor(owner: Any) -> Any:
    """Returns an object that holds `owner`, which ffi.gc() made, where the garbage collector does
    not see it.

    When the collector finds a reference cycle, cffi runs the destructors of all its members first.
    Finalizers (`__del__`) run later and may still use the objects, or even save them. The collector
    does not track ndarrays, so it counts the reference in this one as coming from outside the
    cycle: a collection never destroys `owner`, only the end of its last reference does.
    """
    holder = np.empty((), dtype=object)
    holder[()] = owner
    return holder
