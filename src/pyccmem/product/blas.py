# SPDX-License-Identifier: Apache-2.0
"""Overwrites what a BLAS keeps of the matrices that it multiplied.

A BLAS copies blocks of each matrix into buffers of its own and leaves them there for the next
product. There are two ways to overwrite them:

- A product of zeros, as large as the largest product, goes the same way through the same buffers
  (of OpenBLAS: some 700 KB a thread). It can wait for the end of batched_products().
- Intel's MKL takes its buffers from malloc(), and frees them when it is told to (mkl_free_buffers)
  or when it needs larger ones. So during a block glibc is told to overwrite what is freed
  (mallopt(3), M_PERTURB), and at its end MKL is told to free what it does not use. glibc does not
  overwrite pieces of up to 1032 bytes, which it keeps in lists of each thread.

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

#: mallopt()'s number of the parameter (glibc's malloc.h), and the byte to overwrite with. Memory
#: from malloc() is filled with its complement, 0.
_M_PERTURB = -6
_BYTE = 0xFF

#: The product of zeros may be smaller than the product that filled the buffers: in rows of x, and
#: along the common dimension, where twice the block that a BLAS packs at a time is enough
#: (OpenBLAS: at most 640). But it must not be so small that a BLAS makes it in one thread
#: (OpenBLAS: below 2**18 multiplications), because the other threads' buffers would not be
#: overwritten.
_DEPTH = 1280
_ROWS = 512
_PRODUCTS = 1 << 22


@cache
def _mallopt() -> Callable[[int, int], Any] | None:
    """Returns glibc's mallopt(), or None without glibc. Looked up when a BLAS first needs it,
    because importing ctypes takes time."""
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
    inputs) and (inputs, outputs), in the same way as the products to be overwritten; with
    `transposed` the second is a transposed matrix of (outputs, inputs). `free_buffers`: a C
    function that makes the BLAS free its buffers, if it has one. `wipe_stacks` overwrites the
    stacks of its threads, if it packs matrices there. `frees`: the framework itself frees memory
    that held plaintext, too.
    """

    __slots__ = ("_free_buffers", "_frees", "_multiply_zeros", "_wipe_stacks", "by_zeros")

    #: True if products of zeros are needed, because the buffers cannot be freed and overwritten.
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
        """True if memory that is freed during a block must be overwritten."""
        return (self._frees or self._free_buffers is not None) and _mallopt() is not None

    def multiply_zeros(
        self, dtype: Any, rows: int, inputs: int, outputs: int, transposed: bool
    ) -> None:
        """Makes a product of zeros; see the class."""
        self._multiply_zeros(dtype, rows, inputs, outputs, transposed)

    def free(self) -> None:
        """Frees the BLAS's buffers and overwrites its threads' stacks, where that is possible."""
        if self._free_buffers is not None:
            self._free_buffers()
        if self._wipe_stacks is not None:
            self._wipe_stacks()

    @contextmanager
    def unkept(self) -> Iterator[None]:
        """Begins and ends a Block around one operation on opened tensors, of any kind."""
        block = Block(self)
        try:
            block.begin()
            yield
        finally:
            block.end()


class Block:
    """A block in which a BLAS multiplies plaintext of encrypted tensors, from begin() to end(). If
    an interrupt prevents end(), the block ends with the object."""

    __slots__ = ("__weakref__", "_blas")

    def __init__(self, blas: Blas) -> None:
        self._blas = blas

    def begin(self) -> None:
        """Begins the block. Must be the first statement of the `try` whose `finally` ends it."""
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
        """Notes a product of `rows` rows with a matrix of (inputs, outputs); `transposed`: with a
        transposed one of (outputs, inputs). `secret`: the rows must be overwritten, too."""
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
        """Ends the block: overwrites what the BLAS keeps, except what waits for the end of
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


_blocks: set[weakref.ref[Block]] = set()  # the blocks of all threads
_lock = threading.RLock()


class _Unclear(threading.local):
    """What this thread must still overwrite by zeros: the most rows and the largest right operand
    (inputs, outputs), by BLAS, type, and whether the operand is transposed; and how many
    batched_products() blocks the thread is in."""

    def __init__(self) -> None:
        self.blocks = 0
        self.products: dict[tuple[Blas, Any, bool], tuple[int, int, int]] = {}


_unclear = _Unclear()


@contextmanager
def batched_products() -> Iterator[None]:
    """Overwrites what a BLAS keeps of encrypted matrices once, at the end of the block, instead of
    after each product: for a forward pass of many layers. Blocks may be nested; each thread has its
    own.
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
    """Starts anew in a child: threads that it does not have may have held the lock and begun
    blocks."""
    global _lock
    _lock = threading.RLock()
    _blocks.clear()


os.register_at_fork(after_in_child=_reset)
