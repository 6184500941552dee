# SPDX-License-Identifier: Apache-2.0
"""BlockMatrix: where an encrypted matrix of quantised blocks lies, and how its rows are opened.

Packed rows pass through STAGING_BYTES of memory that is wiped, and what becomes float32 goes where
the caller says.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import OK, Call, check, ffi, lib, wiped
from .block_formats import BlockFormat
from .runs import gather
from .store import Store, fail, handle

__all__ = [
    "BlockMatrix",
    "BlockOperand",
    "block_matrix_of",
    "dequantize",
    "fail_rows",
    "open_rows",
    "open_scales",
]

#: The most bytes of packed rows in the clear at a time.
STAGING_BYTES = 1 << 20

_FLOATS = ffi.typeof("float *")
_BYTES = ffi.typeof("uint8_t *")


class BlockMatrix(NamedTuple):
    """An encrypted matrix whose rows are blocks, one row after the other, from byte `offset` of a
    store on."""

    store: Store
    offset: int
    rows: int
    cols: int
    format: BlockFormat
    #: Of "int8_row": the store of the rows' float32 scales, and the offset of the first.
    scale: tuple[Store, int] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a packed row."""
        return self.cols // self.format.elements * self.format.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all packed rows."""
        return self.rows * self.row_bytes


class BlockOperand:
    """Base of QuantizedTensor: what products need of it."""

    __slots__ = ()

    shape: tuple[int, ...]
    ndim: int

    def _block_matrix(self) -> BlockMatrix:
        """Returns the matrix of all rows, those of higher dimensions one after the other."""
        raise NotImplementedError


def block_matrix_of(tensor: BlockOperand) -> BlockMatrix:
    """Returns the matrix of a quantised tensor, its rows along all dimensions but the last one
    after the other. Raises ClosedError."""
    return tensor._block_matrix()


def dequantize(format: BlockFormat, blocks: Any, count: int, out: Any) -> None:
    """Writes the elements of `count` blocks at the pointer `blocks` as float32 to the pointer
    `out`."""
    check(
        lib.ccmem_blocks_dequantize(format.native, blocks, count, out),
        Call(f"{count} blocks of {format}"),
    )


def open_rows(
    matrix: BlockMatrix, numbers: slice | npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None:
    """Writes rows of the matrix as float32 to `out`, C-contiguous, of shape (n, cols): those of a
    slice of step 1 with both ends, or of an array of row numbers. On failure `out` is zeros.

    Raises IntegrityError, which names the rows that lie in a changed page, ClosedError, ForkError,
    OutOfMemoryError.
    """
    try:
        if out.size:
            if isinstance(numbers, slice):
                _open_run(matrix, numbers.start, len(out), _pointer(out))
            else:
                _open_many(matrix, numbers, out)
            if matrix.scale is not None:
                _scale_rows(matrix, numbers, out)
        else:
            check(lib.ccmem_store_check(handle(matrix.store)), Call(subject="tensor"))
    except errors.IntegrityError as error:
        wiped.wipe_at(out.ctypes.data, out.nbytes)
        raise _of_rows(matrix, error) from None
    except BaseException:
        wiped.wipe_at(out.ctypes.data, out.nbytes)
        raise


def _pointer(out: npt.NDArray[Any]) -> Any:
    return ffi.cast(_FLOATS, out.ctypes.data)


def _open_run(matrix: BlockMatrix, first: int, count: int, target: Any) -> None:
    """Opens rows that lie one after the other, any number of whole blocks at a time."""
    format = matrix.format
    blocks = count * (matrix.cols // format.elements)
    step = min(max(STAGING_BYTES // format.nbytes, 1), blocks)
    start = matrix.offset + first * matrix.row_bytes
    pointer, memory = wiped.block(step * format.nbytes)
    try:
        for at in range(0, blocks, step):
            n = min(step, blocks - at)
            place, nbytes = start + at * format.nbytes, n * format.nbytes
            status = lib.ccmem_store_read(handle(matrix.store), place, pointer, nbytes)
            if status != OK:
                fail(matrix.store, status, place, nbytes)
            dequantize(format, pointer, n, target + at * format.elements)
    finally:
        lib.ccmem_wipe(pointer, len(memory))


def _open_many(matrix: BlockMatrix, numbers: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
    """Opens rows by their numbers, in their order."""
    row, target = matrix.row_bytes, _pointer(out)
    if row > STAGING_BYTES:
        for at, number in enumerate(numbers):
            _open_run(matrix, int(number), 1, target + at * matrix.cols)
        return
    step = min(STAGING_BYTES // row, len(numbers))
    pointer, memory = wiped.block(step * row)
    try:
        for at in range(0, len(numbers), step):
            part = numbers[at : at + step]
            gather(matrix.store, part * row + matrix.offset, row, pointer)
            blocks = len(part) * (matrix.cols // matrix.format.elements)
            dequantize(matrix.format, pointer, blocks, target + at * matrix.cols)
    finally:
        lib.ccmem_wipe(pointer, len(memory))


def open_scales(matrix: BlockMatrix) -> npt.NDArray[Any] | None:
    """Returns the scales of all rows of "int8_row", in memory that is wiped when the last reference
    to it goes; None for other formats. Raises IntegrityError, ClosedError, ForkError,
    OutOfMemoryError."""
    if matrix.scale is None or not matrix.rows:
        return None
    store, offset = matrix.scale
    found = wiped.empty(matrix.rows, np.float32)
    pointer = ffi.cast(_BYTES, found.ctypes.data)
    status = lib.ccmem_store_read(handle(store), offset, pointer, found.nbytes)
    if status != OK:
        fail(store, status, offset, found.nbytes)
    return found


def fail_rows(matrix: BlockMatrix, status: int) -> NoReturn:
    """Raises the exception for the `status` of a native call that used all rows; IntegrityError
    names those in the changed page."""
    try:
        fail(matrix.store, status, matrix.offset, matrix.nbytes)
    except errors.IntegrityError as error:
        raise _of_rows(matrix, error) from None


def _scale_rows(matrix: BlockMatrix, numbers: Any, out: npt.NDArray[Any]) -> None:
    """Multiplies each row by its scale."""
    assert matrix.scale is not None
    store, offset = matrix.scale
    pointer, memory = wiped.block(4 * len(out))
    try:
        if isinstance(numbers, slice):
            place, nbytes = offset + 4 * numbers.start, 4 * len(out)
            status = lib.ccmem_store_read(handle(store), place, pointer, nbytes)
            if status != OK:
                fail(store, status, place, nbytes)
        else:
            gather(store, numbers * 4 + offset, 4, pointer)
        scales: npt.NDArray[Any] = np.ndarray((len(out), 1), np.float32, memory)
        np.multiply(out, scales, out=out)  # same types: NumPy needs no buffer for it
    finally:
        lib.ccmem_wipe(pointer, len(memory))


def _of_rows(matrix: BlockMatrix, error: errors.IntegrityError) -> errors.IntegrityError:
    """Returns the error for a changed page, with the rows that lie in it."""
    if error.offset is None or error.name != matrix.store.name or not matrix.nbytes:
        return error
    size = matrix.store.page_size
    first = max(error.offset - matrix.offset, 0) // matrix.row_bytes
    last = min(error.offset + size - 1 - matrix.offset, matrix.nbytes - 1) // matrix.row_bytes
    rows = f"row {first}" if first == last else f"rows {first} to {last}"
    text = str(error).replace(
        "None of it was returned;", f"It holds {rows} of {matrix.format} blocks. None of it was "
        "returned;"
    )  # fmt: skip
    return errors.IntegrityError(
        text, name=error.name, page=error.page, version=error.version, offset=error.offset
    )
