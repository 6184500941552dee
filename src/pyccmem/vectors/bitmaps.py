# SPDX-License-Identifier: Apache-2.0
"""Sets of a segment's rows, a bit for each, the first row in the lowest bit. None has all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Bitmap", "bitmap_of", "both", "extended", "has", "mask_of", "without"]

Bitmap = npt.NDArray[np.uint8]


def bitmap_of(mask: npt.NDArray[np.bool_]) -> Bitmap:
    """Returns the bitmap of the rows for which a mask is True."""
    return np.packbits(mask, bitorder="little")


def mask_of(bitmap: Bitmap | None, count: int) -> npt.NDArray[np.bool_]:
    """Returns which of the first `count` rows are in it."""
    if bitmap is None:
        return np.ones(count, np.bool_)
    return np.unpackbits(bitmap, count=count, bitorder="little").view(np.bool_)


def has(bitmap: Bitmap | None, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Returns which of some rows are in it."""
    if bitmap is None:
        return np.ones(len(rows), np.bool_)
    found: npt.NDArray[np.bool_] = (bitmap[rows >> 3] >> (rows & 7).astype(np.uint8) & 1) != 0
    return found


def without(bitmap: Bitmap | None, count: int, rows: npt.NDArray[Any]) -> Bitmap:
    """Returns one of `count` rows that has none of `rows`."""
    new = np.full(-(-count // 8), 0xFF, np.uint8) if bitmap is None else bitmap.copy()
    np.bitwise_and.at(new, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
    return new


def extended(bitmap: Bitmap | None, count: int, more: int) -> Bitmap | None:
    """Returns one of `count` rows with `more` rows after them, which it has."""
    if bitmap is None:
        return None
    new = np.full(-(-(count + more) // 8), 0xFF, np.uint8)
    new[: len(bitmap)] = bitmap
    if count % 8:
        new[count // 8] |= np.uint8(0xFF << count % 8 & 0xFF)
    return new


def both(a: Bitmap | None, b: Bitmap | None) -> Bitmap | None:
    """Returns what is in both of two bitmaps of as many rows."""
    if a is None or b is None:
        return b if a is None else a
    return a & b
