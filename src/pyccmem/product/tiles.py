# SPDX-License-Identifier: Apache-2.0
"""Products by a framework's own BLAS with an encrypted matrix, of which one tile at a time lies in
memory in the clear.

For each framework, a Framework makes its arrays over memory and converts them, and a Product does
the work with a tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..binding import OK, lib, wiped
from ..core.block_matrix import BlockMatrix, open_rows
from ..core.matrix import Matrix
from ..core.store import fail, handle
from .blas import Blas, Block

__all__ = [
    "LARGE_TILE_BYTES",
    "MANY_ROWS",
    "TILE_BYTES",
    "Framework",
    "Product",
    "multiply",
    "tile_bytes",
]

#: Bytes of the matrix in the clear at a time, in the type that is multiplied: TILE_BYTES for one
#: thread and fewer than MANY_ROWS of x in all, else LARGE_TILE_BYTES a thread, up to four threads.
#: A BLAS copies all of x anew for each tile, and its threads wait for each other at the end of each
#: tile. Speed as a multiple of the plain product's (OpenBLAS), one thread: 64 rows of x, tiles of 1
#: / 2 / 4 MiB 0.87 / 0.91 / 0.88, 512 rows 0.77 / 0.83 / 0.98; two threads: 64 rows, 2 / 4 / 8 / 16
#: MiB 0.55 / 0.71 / 0.76 / 0.82.
TILE_BYTES = 2 << 20
MANY_ROWS = 256
LARGE_TILE_BYTES = 4 << 20
_MOST_THREADS = 4


class Framework(ABC):
    """What products by tiles need of a framework of arrays."""

    #: The BLAS that it multiplies with.
    blas: Blas

    #: Its float32.
    single: Any

    #: True: tiles are larger if pyccmem may use several threads, because the BLAS then does so too.
    tiles_by_threads = True

    @abstractmethod
    def view(self, memory: Any, dtype: Any, rows: int, cols: int) -> Any:
        """Returns an array in C order over a buffer, which it keeps alive."""

    @abstractmethod
    def convert(self, target: Any, source: Any) -> None:
        """Copies an array into an array of another type."""

    def wiped(self, dtype: Any, rows: int, cols: int) -> Any:
        """Returns an array of zeros in memory that is wiped when its last user goes."""
        return self.view(wiped.block(rows * cols * dtype.itemsize)[1], dtype, rows, cols)


class Product(ABC):
    """A product that is computed a tile at a time."""

    @abstractmethod
    def take(self, at: int, tile: Any) -> None:
        """Multiplies with a tile, the matrix's rows from row `at` on."""

    @abstractmethod
    def discard(self) -> None:
        """Overwrites what was computed from tiles, after a failure."""


def tile_bytes(lines: int, threads: int | None = None) -> int:
    """Returns the most bytes of a tile, in the type that is multiplied, for `lines` rows of x and
    `threads` threads; None: as many as pyccmem's bulk calls use."""
    most = min(int(lib.ccmem_threads()) if threads is None else threads, _MOST_THREADS)
    return LARGE_TILE_BYTES * most if lines >= MANY_ROWS or most > 1 else TILE_BYTES


def multiply(
    framework: Framework,
    matrix: Matrix | BlockMatrix,
    dtype: Any,
    lines: int,
    product: Product,
    *,
    transposed: bool,
    secret: bool = True,
) -> None:
    """Gives the tiles of the matrix to `product` in order, as arrays of `dtype`, for `lines` rows
    of x. `transposed`: the product multiplies by their transposes. `secret`: x must be overwritten
    in the BLAS too.

    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError, PlaintextBudgetError.
    """
    if not (matrix.rows and matrix.cols):
        return
    height = _height(matrix, dtype, lines, None if framework.tiles_by_threads else 1)
    block = Block(framework.blas)
    try:
        block.begin()
        tiles = (
            _block_tiles(framework, matrix, dtype, height)
            if isinstance(matrix, BlockMatrix)
            else _tiles(framework, matrix, dtype, height)
        )
        for at, tile in tiles:
            product.take(at, tile)
    except BaseException:
        product.discard()
        raise
    finally:
        shape = (matrix.cols, height) if transposed else (height, matrix.cols)
        block.used(dtype, lines, *shape, transposed=transposed, secret=secret)
        block.end()


def _height(matrix: Matrix | BlockMatrix, dtype: Any, lines: int, threads: int | None) -> int:
    """Returns how many rows of the matrix are opened at a time for `lines` rows of x. All tiles but
    the last have as many."""
    most = max(1, tile_bytes(lines, threads) // (matrix.cols * dtype.itemsize))
    height: int = -(-matrix.rows // -(-matrix.rows // most))
    return height


def _tiles(
    framework: Framework, matrix: Matrix, dtype: Any, height: int
) -> Iterator[tuple[int, Any]]:
    """Yields the rows of the matrix in order, `height` at a time: the number of the first row, and
    an array of `dtype`. The next rows overwrite the array, and it is wiped at the end."""
    store, offset, rows, cols, stored_dtype = matrix
    row_bytes = cols * stored_dtype.itemsize
    pointer, memory = wiped.block(height * row_bytes)
    stored = framework.view(memory, stored_dtype, height, cols)
    same = stored_dtype == dtype
    tiles = stored if same else framework.wiped(dtype, height, cols)
    for at in range(0, rows, height):
        n = min(height, rows - at)
        start, nbytes = offset + at * row_bytes, n * row_bytes
        status = lib.ccmem_store_read(handle(store), start, pointer, nbytes)
        if status != OK:
            fail(store, status, start, nbytes)
        if not same:
            framework.convert(tiles[:n], stored[:n])
        yield at, tiles[:n]


def _block_tiles(
    framework: Framework, matrix: BlockMatrix, dtype: Any, height: int
) -> Iterator[tuple[int, Any]]:
    """Does _tiles() for a matrix of quantised blocks, which become float32 on the way."""
    rows, cols = matrix.rows, matrix.cols
    memory = wiped.block(4 * height * cols)[1]
    opened: Any = np.ndarray((height, cols), np.float32, memory)
    single = framework.view(memory, framework.single, height, cols)
    same = framework.single == dtype
    tiles = single if same else framework.wiped(dtype, height, cols)
    for at in range(0, rows, height):
        n = min(height, rows - at)
        open_rows(matrix, slice(at, at + n), opened[:n])
        if not same:
            framework.convert(tiles[:n], single[:n])
        yield at, tiles[:n]
