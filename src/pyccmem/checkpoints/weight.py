# SPDX-License-Identifier: Apache-2.0
"""Weight: a quantised weight of a checkpoint, which becomes blocks of pyccmem's own formats.

Elements are codes of 4 or 8 bits. Each group of a row has a scale, and perhaps a zero: the value is
scale * (code - zero). Codes are only moved to other places, never computed anew. Where the scale is
a number of bfloat16 or float16, values are those of the checkpoint bit for bit, because scale *
zero is exact in float32; with a scale of float32 and a zero they differ by a rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import wiped
from .parts import refused

__all__ = ["ROW_FORMAT", "Codes", "Weight", "every_group", "unpacked"]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

#: The format with one scale for each row, which lies beside the codes.
ROW_FORMAT = "int8_row"

#: Elements of a block of the group formats, the largest first.
_GROUPS = (128, 64, 32)

#: Codes that are unpacked at a time.
CODES_AT_ONCE = 1 << 20


class Codes:
    """Some rows of a weight: codes (uint8 of 4 bits, or int8) of shape (n, columns), scales and
    perhaps offsets, float32, of shape (n, groups)."""

    __slots__ = ("codes", "offsets", "scales")

    def __init__(self, codes: Array, scales: Array, offsets: Array | None) -> None:
        self.codes, self.scales, self.offsets = codes, scales, offsets


class Weight:
    """A quantised weight of shape (rows, columns). Subclasses read the codes of one library.

    `group` is the number of columns that have one scale in the checkpoint, `order` which column of
    the weight the n-th column of the blocks is, None for all in order.
    """

    def __init__(
        self,
        name: str,
        used: tuple[str, ...],
        shape: tuple[int, int],
        *,
        bits: int,
        group: int,
        offset: bool,
        order: Array | None = None,
    ) -> None:
        """Raises FileFormatError for a weight that has no format of ours."""
        columns = shape[1]
        self.name, self.used, self.shape, self.order = name, used, shape, order
        self.bits, self.offset = bits, offset
        if bits == 8 and not offset and group >= columns and order is None:
            self.elements = columns
            self.groups = np.zeros(1, np.intp)
            self.format = ROW_FORMAT
            self.row_bytes = columns
            self._head = 0
            return
        fitting = [n for n in _GROUPS if not columns % n and (not group % n or group >= columns)]
        if not fitting:
            raise refused(
                name, f"it has {columns} columns in groups of {group}, and no block fits both"
            )
        self.elements = fitting[0]
        blocks = columns // self.elements
        #: The group of each block.
        self.groups = np.arange(blocks) * self.elements // max(group, 1)
        self.format = f"int{bits}_g{self.elements}{'_zp' if offset else ''}"
        self._head = 8 if offset else 4
        self.row_bytes = columns // self.elements * self._block

    @property
    def _block(self) -> int:
        return self._head + self.elements * self.bits // 8

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Rows, and bytes of a row."""
        return self.shape[0], self.row_bytes

    @property
    def step(self) -> int:
        """Rows that are best taken at a time: a multiple of 32."""
        return max(CODES_AT_ONCE // max(self.shape[1], 1) // 32 * 32, 32)

    def _scaled(self, codes: Array, scales: Array, zeros: Array | None) -> Codes:
        """Returns rows of codes with the scales and zeros (float32) of the checkpoint's groups,
        arrays of shape (n, groups)."""
        of_blocks = every_group(scales, self.groups)
        if not self.offset:
            return Codes(codes, of_blocks, None)
        assert zeros is not None, "a weight with offsets has zeros"
        offsets = wiped.empty(of_blocks.shape, np.float32)
        np.multiply(of_blocks, every_group(zeros, self.groups), out=offsets)
        np.negative(offsets, out=offsets)
        return Codes(codes, of_blocks, offsets)

    def take(self, first: int, last: int) -> Codes:
        """Returns rows `first` to `last`, of which `first` is a multiple of 32. Scales are those of
        blocks, in the order of the blocks. Raises FileReadError, FileFormatError."""
        raise NotImplementedError

    def fill(self, first: int, last: int, out: Bytes) -> None:
        """Writes the blocks of rows to `out`, of shape (rows, row_bytes). Raises FileReadError,
        FileFormatError."""
        if first % 32:
            start = first // 32 * 32
            more = wiped.empty((last - start, self.row_bytes), np.uint8)
            self.fill(start, last, more)
            np.copyto(out, more[first - start :])
            return
        found = self.take(first, last)
        if self.format == ROW_FORMAT:
            np.copyto(out, found.codes.view(np.uint8))
            return
        rows, columns = last - first, self.shape[1]
        blocks = out.reshape(rows, columns // self.elements, self._block)
        blocks[:, :, :4] = _bytes(found.scales)
        if self.offset:
            assert found.offsets is not None, "a weight with zeros has offsets"
            blocks[:, :, 4:8] = _bytes(found.offsets)
        if self.bits == 8:
            codes = found.codes.view(np.uint8).reshape(rows, -1, self.elements)
            np.copyto(blocks[:, :, self._head :], codes)
            return
        codes = found.codes.reshape(rows, -1, self.elements)
        for at in range(0, self.elements, 32):
            place = self._head + at // 2
            target = blocks[:, :, place : place + 16]
            np.left_shift(codes[:, :, at + 16 : at + 32], 4, out=target)
            np.bitwise_or(target, codes[:, :, at : at + 16], out=target)

    def scales(self) -> npt.NDArray[np.float32]:
        """Returns the scale of each row, for the format that keeps them apart."""
        out: npt.NDArray[np.float32] = wiped.empty((self.shape[0],), np.float32)
        for first in range(0, self.shape[0], self.step):
            last = min(first + self.step, self.shape[0])
            np.copyto(out[first:last], self.take(first, last).scales[:, 0])
        return out


def _bytes(values: Array) -> Bytes:
    """Returns float32 numbers (n, groups) as bytes (n, groups, 4)."""
    return values.astype("<f4", copy=False).view(np.uint8).reshape(*values.shape, 4)


def every_group(values: Array, groups: Array | None) -> Array:
    """Returns a column of `values` for each block, whose groups `groups` numbers; None for one
    group a block."""
    if groups is None:
        return values
    out = wiped.empty((len(values), len(groups)), values.dtype)
    np.take(values, groups, axis=1, out=out)
    return out


def unpacked(words: Array, bits: int, count: int) -> Bytes:
    """Returns `count` numbers of `bits` bits from each row of a C-contiguous array of little-endian
    words, the lowest bits first, as uint8 in memory that is wiped."""
    data = words.view(np.uint8)
    rows = len(data)
    out = wiped.empty((rows, count), np.uint8)
    if bits == 8:
        np.copyto(out, data[:, :count])
    elif bits in (1, 2, 4):
        each = 8 // bits
        for at in range(each):
            target = out[:, at::each]
            source = data[:, : target.shape[1]]
            np.right_shift(source, at * bits, out=target)
            np.bitwise_and(target, (1 << bits) - 1, out=target)
    else:
        taken = np.unpackbits(data, axis=1, bitorder="little", count=count * bits)
        for at in range(bits):
            part = taken[:, at::bits]
            np.bitwise_or(out, np.left_shift(part, at, out=part), out=out)
        wiped.wipe(taken.reshape(-1))
    return out
