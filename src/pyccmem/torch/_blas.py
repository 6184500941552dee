# SPDX-License-Identifier: Apache-2.0
"""Overwriting what torch's libraries keep of the weights that they multiplied.

A BLAS copies each matrix, piece by piece, into buffers of its own. Intel's MKL, which torch's x86
builds contain, takes them from malloc() and keeps them for the next product, or frees them when it
needs larger ones; oneDNN frees its own. So for the length of a block glibc is told to overwrite
what is freed (mallopt(3), M_PERTURB), and at its end MKL to free what it does not use
(mkl_free_buffers). Where torch has another BLAS, a product of zeros of the same size goes the same
way through the same buffers.

MKL also packs matrices on the stacks of its threads, which are overwritten, too.

glibc does not overwrite pieces of up to 1032 bytes, which it keeps in lists of each thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ._threads import wipe_stacks

__all__ = ["Block", "product_ended", "unkept"]

#: mallopt()'s number of the parameter (glibc's malloc.h), and the byte to overwrite with: memory
#: that is handed out gets its complement, 0.
_M_PERTURB = -6
_BYTE = 0xFF


def _native() -> tuple[Callable[[int, int], Any] | None, Callable[[], Any] | None]:
    """mallopt() and MKL's function that frees its buffers, where they are."""
    mallopt = free_buffers = None
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    except (OSError, AttributeError):
        mallopt = None
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    for place in (library, None):
        for name in ("mkl_serv_free_buffers", "mkl_free_buffers", "MKL_Free_Buffers"):
            try:
                free_buffers = getattr(ctypes.CDLL(place), name)
            except (OSError, AttributeError):
                continue
            free_buffers.argtypes, free_buffers.restype = [], None
            return mallopt, free_buffers
    return mallopt, None


_mallopt, _free_buffers = _native()

#: Products of zeros are needed where MKL's buffers cannot be freed and overwritten.
_BY_ZEROS = _mallopt is None or _free_buffers is None

_lock = threading.RLock()


class Block:
    """A block in which torch multiplies plaintext of encrypted tensors, from started() to ended(),
    or for as long as it lives: an interrupt may keep ended() from being called."""

    __slots__ = ("__weakref__",)

    def started(self) -> None:
        """Begins the block: the first statement of the `try` whose `finally` ends it."""
        with _lock:
            _blocks.add(weakref.ref(self))
            if _mallopt is not None:
                _mallopt(_M_PERTURB, _BYTE)

    def ended(self) -> None:
        """Ends it."""
        if _free_buffers is not None:
            _free_buffers()
        wipe_stacks()
        with _lock:
            _blocks.discard(weakref.ref(self))
            _blocks.difference_update([gone for gone in list(_blocks) if gone() is None])
            if not _blocks and _mallopt is not None:
                _mallopt(_M_PERTURB, 0)


_blocks: set[weakref.ref[Block]] = set()  # of all threads


def product_ended(x: torch.Tensor, heights: tuple[int, ...], *, turned: bool) -> None:
    """For a BLAS that is cleared by zeros: overwrites what it kept of tiles of so many rows that
    were multiplied with x, of shape (rows, inputs); `turned`: by their transposes."""
    if not _BY_ZEROS:
        return
    for height in dict.fromkeys(heights):
        if turned:
            torch.mm(torch.zeros_like(x), x.new_zeros(height, x.shape[1]).t())
        else:
            torch.mm(x.new_zeros(x.shape[0], height), x.new_zeros(height, x.shape[1]))


@contextmanager
def unkept() -> Iterator[None]:
    """A block of one operation on opened tensors, whatever it does."""
    block = Block()
    try:
        block.started()
        yield
    finally:
        block.ended()


def _reset() -> None:
    """A fork may find a lock held and blocks counted by threads that the child does not have."""
    global _lock
    _lock = threading.RLock()
    _blocks.clear()


os.register_at_fork(after_in_child=_reset)
