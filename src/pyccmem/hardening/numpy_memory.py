# SPDX-License-Identifier: Apache-2.0
"""Lets NumPy overwrite the memory of arrays when it is freed.

NEP 49 has a handler of memory for that, but it is one of a context (contextvars): a thread that
starts later has the default one again, and so have arrays that exist already. So the default
handler itself gets another free() and realloc(), which hand on to the ones it had. Small blocks,
which NumPy keeps in lists of its own, are overwritten before they get there.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from . import library

__all__ = ["EVERY_SIZE", "wipe_arrays", "wipe_on_fork"]

#: Of PyArray_API, the table of NumPy's C functions: a pointer to the default handler's capsule.
#: Numbers of the table never change (numpy/_core/code_generators/numpy_api.py).
_DEFAULT_HANDLER = 306
_HANDLER_NAME = b"mem_handler"

EVERY_SIZE = ctypes.c_size_t(-1).value


def _table(numpy: Any) -> int | None:
    """Returns the address of PyArray_API."""
    core = getattr(numpy, "_core", None) or getattr(numpy, "core", None)
    capsule = getattr(getattr(core, "_multiarray_umath", None), "_ARRAY_API", None)
    if capsule is None:
        return None
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    found: int | None = get(capsule, None)
    return found


def _handler(table: int) -> int | None:
    """Returns the address of the default handler."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    place = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[_DEFAULT_HANDLER]
    if not place:
        return None
    capsule = ctypes.cast(place, ctypes.POINTER(ctypes.py_object))[0]
    found: int | None = get(capsule, _HANDLER_NAME)
    return found


def _may_be_written(address: int) -> bool:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            place, permissions, *_ = line.split()
            start, _, end = place.partition("-")
            if int(start, 16) <= address < int(end, 16):
                return permissions.startswith("rw")
    return False


def wipe_arrays(below: int) -> str:
    """Lets arrays smaller than `below` bytes be overwritten when they are freed. Returns "", or why
    that cannot be had."""
    numpy, native = sys.modules.get("numpy"), library.load()
    if numpy is None:
        return "numpy is not imported"
    if native is None:
        return "pyccmem was built without its library wiper.c"
    try:
        table = _table(numpy)
        handler = None if table is None else _handler(table)
        # ctypes checks no pointer, and an address that cannot be written to would end the process.
        if handler is None or not _may_be_written(handler):
            return "this numpy's handler of memory is not to be had"
    except (OSError, ValueError) as error:
        return f"this numpy's handler of memory is not to be had: {error}"
    status = native.ccmem_wipe_numpy(ctypes.c_void_p(handler), ctypes.c_size_t(below))
    return ("", "this numpy's handler of memory is of another kind", "blocks have no size")[status]


def wipe_on_fork() -> bool:
    """Lets large arrays that are made from now on read as zeros in a forked child; under `pyccmem
    run` tensors too. Returns False if that cannot be had."""
    native = library.load()
    if native is not None:
        native.ccmem_wipe_on_fork(ctypes.c_int(1))
    return native is not None
