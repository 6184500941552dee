# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the library that overwrites what is freed (wiper.c)."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
from pathlib import Path

__all__ = ["load", "path"]


def path() -> Path | None:
    """Returns the library's file; None if the package was built without it."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        found = Path(__file__).with_name(f"_wiper{suffix}")
        if found.is_file():
            return found
    return None


@functools.cache
def load() -> ctypes.CDLL | None:
    """Returns the library: the preloaded one, if it was preloaded. Loaded only now, its free() is
    in nobody's way. None if it cannot be had."""
    found = path()
    if found is None:
        return None
    try:
        return ctypes.CDLL(str(found))
    except OSError:
        return None
