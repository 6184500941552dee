# SPDX-License-Identifier: Apache-2.0
"""Runs pyccmem's bulk calls in torch's own threads.

torch's OpenMP threads spin while they wait for work. Other threads get no processor meanwhile: a
product right after one of torch's ran in one thread instead of two.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..binding import ffi, lib

__all__ = ["own_threads", "share_threads", "wipe_stacks"]

_team: int | None = None

#: How many blocks of own_threads() run now; changed under the lock.
_own: set[object] = set()
_lock = threading.Lock()


def _reset_lock() -> None:
    """Replaces the lock: a thread that the child does not have may have held it at the fork. The
    native side notices by itself that torch's threads are not in the child."""
    global _lock, _team
    _lock, _team = threading.Lock(), None
    _own.clear()


os.register_at_fork(after_in_child=_reset_lock)


def share_threads() -> bool:
    """Makes pyccmem use the OpenMP library that torch has loaded. Returns False if there is
    none."""
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    try:
        function = ctypes.CDLL(library).GOMP_parallel
    except (OSError, AttributeError):
        return False
    global _team
    _team = ctypes.cast(function, ctypes.c_void_p).value
    _choose()
    return True


def _choose() -> None:
    lib.ccmem_set_openmp(ffi.cast("void *", _team) if _team and not _own else ffi.NULL)


@contextmanager
def own_threads() -> Iterator[None]:
    """Makes a block use pyccmem's own threads: for a series of bulk calls with other work in
    between that is not torch's. OpenMP threads would spin through that work (three times the
    processor time when a model is encrypted)."""
    mine = object()
    try:
        with _lock:
            _own.add(mine)
            _choose()
        yield
    finally:
        with _lock:
            _own.discard(mine)
            _choose()


def wipe_stacks() -> None:
    """Overwrites the unused parts of the stacks of torch's threads and of this thread."""
    team = ffi.cast("void *", _team) if _team else ffi.NULL
    lib.ccmem_wipe_stacks(team, torch.get_num_threads())
