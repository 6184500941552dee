# SPDX-License-Identifier: Apache-2.0
"""Weights of AWQ, version "gemm": `qweight`, `qzeros` and `scales`, as AutoAWQ writes them.

All three have (input, output) order. Words of 32 bits hold 8 numbers of 4 bits of consecutive
output features; the n-th from the lowest bits is that of feature 0, 2, 4, 6, 1, 3, 5, 7. Zeros are
stored as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..binding import wiped
from .parts import Parts, as_float32, matrix, refused
from .weight import Array, Codes, Weight, unpacked

__all__ = ["AwqWeight", "awq_weights"]

_SUFFIX = ".qweight"

#: Which number of a word is that of the n-th output feature.
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])


class AwqWeight(Weight):
    """One linear layer of AWQ."""

    def __init__(self, prefix: str, parts: Parts) -> None:
        name = f"{prefix}.weight"
        used = tuple(f"{prefix}.{part}" for part in ("qweight", "qzeros", "scales"))
        self._codes = matrix(name, parts, used[0], "I32")
        self._zeros = matrix(name, parts, used[1], "I32")
        self._scales = matrix(name, parts, used[2], None)
        inputs, words = self._codes.shape
        groups = self._scales.shape[0]
        if (
            self._scales.shape[1] != 8 * words
            or self._zeros.shape != (groups, words)
            or not groups
            or inputs % groups
        ):
            raise refused(
                name,
                f"qweight {self._codes.shape}, qzeros {self._zeros.shape} and scales "
                f"{self._scales.shape} do not belong together",
            )
        offset = not bool((_in_order(self._zeros.read(slice(None), slice(None))) == 8).all())
        super().__init__(
            name, used, (8 * words, inputs), bits=4, group=inputs // groups, offset=offset
        )

    def take(self, first: int, last: int) -> Codes:
        words = slice(first // 8, -(-last // 8))
        rows = last - first
        codes = wiped.empty((rows, self.shape[1]), np.uint8)
        np.copyto(codes, _in_order(self._codes.read(slice(None), words))[:, :rows].T)
        zeros = _in_order(self._zeros.read(slice(None), words))[:, :rows]
        scales = as_float32(self._scales.read(slice(None), slice(first, last)), self._scales.dtype)
        return self._scaled(codes, scales.T, as_float32(zeros.T, "U8"))


def _in_order(words: Array) -> Array:
    """Returns the numbers of words, in the order of the output features."""
    numbers = unpacked(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
    out = wiped.empty(numbers.shape, np.uint8)
    np.take(numbers, _PLACES, axis=2, out=out)
    return out.reshape(len(words), -1)


def awq_weights(parts: Parts, config: dict[str, Any]) -> list[Weight]:
    """Returns the quantised weights of a checkpoint. Raises FileFormatError for what is not
    understood."""
    bits, version = config.get("bits", config.get("w_bit", 4)), config.get("version", "gemm")
    if bits != 4:
        raise refused("quantization_config", f"AWQ with {bits!r} bits is not known")
    if str(version).lower() != "gemm":
        raise refused("quantization_config", f"AWQ's version {version!r} packs in another way")
    return [
        AwqWeight(name.removesuffix(_SUFFIX), parts) for name in parts if name.endswith(_SUFFIX)
    ]
