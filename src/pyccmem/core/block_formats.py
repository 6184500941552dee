# SPDX-License-Identifier: Apache-2.0
"""The block formats by name: how many elements a block has, in how many bytes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import errors
from ..binding import ffi, lib

__all__ = ["FORMATS", "BlockFormat", "format_named"]


class BlockFormat(NamedTuple):
    """A way to keep weights in a few bits: blocks of consecutive elements of a row, each with its
    scales before, or behind, its whole numbers."""

    name: str
    #: Elements of a block, and the bytes that it takes. "int8_row" has blocks of one element, and
    #: for each row a float32 scale that lies elsewhere.
    elements: int
    nbytes: int
    #: The number of the native library.
    native: int
    #: The type's number in GGUF files (ggml_type in ggml.h); None for the formats that they lack.
    gguf: int | None

    @property
    def bits(self) -> float:
        """Bits that an element takes, its share of the scales included, but for "int8_row", whose
        scales lie elsewhere."""
        return 8 * self.nbytes / self.elements

    @property
    def scaled_rows(self) -> bool:
        """True where each row has a scale that lies elsewhere."""
        return self.elements == 1

    def row_bytes(self, cols: int) -> int:
        """Returns the bytes of a row of `cols` elements. Raises ArgumentError unless they are whole
        blocks."""
        if cols < 0 or cols % self.elements:
            raise errors.ArgumentError(
                f"A row of {cols} elements is no whole number of {self.name} blocks; the last "
                f"dimension must be a multiple of {self.elements}."
            )
        return cols // self.elements * self.nbytes

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns (rows, row bytes) of the blocks of an array of this shape, whose last dimension
        is cut into blocks. Raises ArgumentError for a shape that cannot be."""
        if not shape:
            raise errors.ArgumentError(
                f"A number alone cannot be {self.name}; the shape must have a last dimension of a "
                f"multiple of {self.elements}."
            )
        return math.prod(shape[:-1]), self.row_bytes(shape[-1])

    def __str__(self) -> str:
        return self.name


#: GGUF's number of each type that it has (ggml.h, enum ggml_type).
_GGUF = {
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "iq4_nl": 20,
    "iq4_xs": 23,
}


def _formats() -> dict[str, BlockFormat]:
    found = {}
    for number, spelled in sorted(ffi.typeof("ccmem_block_format").elements.items()):
        if number == lib.CCMEM_BLOCK_FORMATS:
            continue
        name = spelled.removeprefix("CCMEM_").lower()
        elements, nbytes = lib.ccmem_block_elements(number), lib.ccmem_block_bytes(number)
        found[name] = BlockFormat(name, elements, nbytes, number, _GGUF.get(name))
    return found


#: Every format by name: GGUF's, then groups of 4-bit and 8-bit numbers with a float32 scale and,
#: "_zp", a float32 offset, then "int8_row".
FORMATS: dict[str, BlockFormat] = _formats()


def format_named(name: Any) -> BlockFormat:
    """Returns the format of that name, or the one given. Raises ArgumentError, naming all."""
    if isinstance(name, BlockFormat):
        return name
    found = FORMATS.get(name) if isinstance(name, str) else None
    if found is None:
        raise errors.ArgumentError(
            f"{name!r} is no block format; the formats are {', '.join(FORMATS)}."
        )
    return found
