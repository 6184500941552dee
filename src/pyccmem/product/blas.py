# SPDX-License-Identifier: Apache-2.0
"""Overwriting what a BLAS keeps of the matrices that it multiplied.

A BLAS copies blocks of each matrix into buffers of its own and leaves them there for the next
product. There are two ways to overwrite them:

- A product of zeros of the size of the largest goes the same way through the same buffers (of
  OpenBLAS: some 700 KB a thread). It can wait for the end of batched_products().
- Intel's MKL takes its buffers from malloc(), and frees them when it is told to
  (mkl_free_buffers), or needs larger ones. So for the length of a block glibc is told to overwrite
  what is freed (mallopt(3), M_PERTURB), and MKL to free what it does not use at its end. glibc does
  not overwrite pieces of up to 1032 bytes, which it keeps in lists of each thread.

A framework describes its BLAS by a Blas; each product by tiles is a Block of it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["Blas", "Block", "batched_products"]

#: mallopt()'s number of the parameter (glibc's malloc.h), and the byte to overwrite with: memory
#: that is handed out gets its complement, 0.
_M_PERTURB = -6
_BYTE = 0xFF

#: The product of zeros may be smaller than the one that filled the buffers: along the common
#: dimension, twice the block of it that any packs at a time (OpenBLAS: at most 640), and in rows of
#: x; but it must not make fewer multiplications than a BLAS makes in one thread (OpenBLAS: 2**18),
#: as the buffers of the others would not be overwritten.
_DEPTH = 1280
_ROWS = 512
_PRODUCTS = 1 << 22


@cache
def _mallopt() -> Callable[[int, int], Any] | None:
    """glibc's, where it is; sought when a BLAS first needs it, since ctypes takes its time."""
    import ctypes

    try:
        found = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return found


class Blas:
    """The BLAS that a framework multiplies with.

    `multiply_zeros(dtype, rows, inputs, outputs, transposed)` multiplies zeros of shape (rows,
    inputs) and (inputs, outputs), which is `transposed` one of (outputs, inputs), as the products
    are made that are to be overwritten. `free_buffers`: a function of C that has the BLAS free its
    buffers, where it has one. `wipe_stacks` overwrites the stacks of its threads, where it packs
    matrices there. `frees`: the framework itself frees memory that held plaintext, too.
    """

    __slots__ = ("_free_buffers", "_frees", "_multiply_zeros", "_wipe_stacks", "by_zeros")

    #: True where products of zeros are needed, since buffers cannot be freed and overwritten.
    by_zeros: bool

    def __init__(
        self,
        multiply_zeros: Callable[[Any, int, int, int, bool], None],
        *,
        free_buffers: Callable[[], Any] | None = None,
        wipe_stacks: Callable[[], None] | None = None,
        frees: bool = False,
    ) -> None:
        self._multiply_zeros, self._wipe_stacks = multiply_zeros, wipe_stacks
        self._free_buffers, self._frees = free_buffers, frees
        self.by_zeros = free_buffers is None or _mallopt() is None

    @property
    def perturbs(self) -> bool:
        """True where what is freed during a block is to be overwritten."""
        return (self._frees or self._free_buffers is not None) and _mallopt() is not None

    def multiply_zeros(
        self, dtype: Any, rows: int, inputs: int, outputs: int, transposed: bool
    ) -> None:
        """A product of zeros; see the class."""
        self._multiply_zeros(dtype, rows, inputs, outputs, transposed)

    def free(self) -> None:
        """Frees its buffers and overwrites its threads' stacks, where that can be done."""
        if self._free_buffers is not None:
            self._free_buffers()
        if self._wipe_stacks is not None:
            self._wipe_stacks()

    @contextmanager
    def unkept(self) -> Iterator[None]:
        """A block of one operation on opened tensors, whatever it does."""
        block = Block(self)
        try:
            block.begin()
            yield
        finally:
            block.end()


class Block:
    """A block in which a BLAS multiplies plaintext of encrypted tensors, from begin() to end(), or
    for as long as it lives: an interrupt may keep end() from being called."""

    __slots__ = ("__weakref__", "_blas")

    def __init__(self, blas: Blas) -> None:
        self._blas = blas

    def begin(self) -> None:
        """Begins the block: the first statement of the `try` whose `finally` ends it."""
        if self._blas.perturbs:
            with _lock:
                _blocks.add(weakref.ref(self))
                _mallopt()(_M_PERTURB, _BYTE)  # type: ignore[misc]

    def used(
        self,
        dtype: Any,
        rows: int,
        inputs: int,
        outputs: int,
        *,
        transposed: bool,
        secret: bool = True,
    ) -> None:
        """Notes a product of `rows` rows with a matrix of (inputs, outputs), `transposed` one of
        (outputs, inputs); `secret`: the rows are to be overwritten, too."""
        if self._blas.by_zeros and rows and inputs and outputs:
            rows = rows if secret else min(rows, _ROWS)
            at = self._blas, dtype, transposed
            old = _unclear.products.get(at, (0, 0, 0))
            _unclear.products[at] = (
                max(rows, old[0]),
                max(inputs, old[1]),
                max(outputs, old[2]),
            )

    def end(self) -> None:
        """Ends it: overwrites what is kept, but for what waits for the end of
        batched_products()."""
        if not _unclear.blocks:
            _clear_by_zeros()
        self._blas.free()
        if self._blas.perturbs:
            with _lock:
                _blocks.discard(weakref.ref(self))
                _blocks.difference_update([gone for gone in list(_blocks) if gone() is None])
                if not _blocks:
                    _mallopt()(_M_PERTURB, 0)  # type: ignore[misc]


_blocks: set[weakref.ref[Block]] = set()  # of all threads
_lock = threading.RLock()


class _Unclear(threading.local):
    """What this thread has yet to overwrite by zeros: the most rows and the largest right operand
    (inputs, outputs), by BLAS, type and whether this is a transposed one; and how many
    batched_products() blocks it is in."""

    def __init__(self) -> None:
        self.blocks = 0
        self.products: dict[tuple[Blas, Any, bool], tuple[int, int, int]] = {}


_unclear = _Unclear()


@contextmanager
def batched_products() -> Iterator[None]:
    """A block in which what a BLAS keeps of encrypted matrices is overwritten once, when it ends,
    instead of after each product: for a forward pass of many layers. Blocks may be nested; each
    thread has its own.
    """
    _unclear.blocks += 1
    try:
        yield
    finally:
        _unclear.blocks -= 1
        if not _unclear.blocks:
            _clear_by_zeros()


def _clear_by_zeros() -> None:
    for (blas, dtype, transposed), (rows, inputs, outputs) in _unclear.products.items():
        inputs = min(inputs, max(_DEPTH, -(-_PRODUCTS // (rows * outputs))))
        blas.multiply_zeros(dtype, rows, inputs, outputs, transposed)
    _unclear.products.clear()


def _reset() -> None:
    """A fork may find a lock held and blocks counted by threads that the child does not have."""
    global _lock
    _lock = threading.RLock()
    _blocks.clear()


os.register_at_fork(after_in_child=_reset)
