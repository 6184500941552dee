# SPDX-License-Identifier: Apache-2.0
"""Weights of GPTQ: `qweight`, `qzeros`, `scales` and `g_idx`, as AutoGPTQ and GPTQModel write them.

qweight packs numbers of 2, 3, 4 or 8 bits along the input features, qzeros along the output
features; both have (input, output) order. Version 1 stores zero - 1, version 2
("checkpoint_format": "gptq_v2") the zero itself. g_idx has the group of each input feature. With
desc_act these are in no order; the weight then keeps its columns in the order of the groups, and
says so in `order`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..binding import wiped
from .parts import Parts, as_float32, matrix, refused
from .weight import Array, Codes, Weight, unpacked

__all__ = ["GptqWeight", "gptq_weights"]

_SUFFIX = ".qweight"


class GptqWeight(Weight):
    """One linear layer of GPTQ."""

    def __init__(self, prefix: str, parts: Parts, bits: int, version: int) -> None:
        name = f"{prefix}.weight"
        self._bits, self._version = bits, version
        self._codes = matrix(name, parts, f"{prefix}.qweight", "I32")
        self._zeros = matrix(name, parts, f"{prefix}.qzeros", "I32")
        self._scales = matrix(name, parts, f"{prefix}.scales", None)
        groups, outputs = self._scales.shape
        inputs = self._codes.shape[0] * 32 // bits
        used = [f"{prefix}.qweight", f"{prefix}.qzeros", f"{prefix}.scales"]
        if (
            self._codes.shape[1] != outputs
            or not groups
            or self._zeros.shape != (groups, -(-outputs * bits // 32))
        ):
            raise refused(
                name,
                f"qweight {self._codes.shape}, qzeros {self._zeros.shape} and scales "
                f"{self._scales.shape} do not belong together with {bits} bits",
            )
        group = -(-inputs // groups)
        numbers, order = None, None
        if f"{prefix}.g_idx" in parts:
            used.append(f"{prefix}.g_idx")
            numbers = parts[f"{prefix}.g_idx"].read(slice(None), slice(None)).reshape(-1)
            if numbers.shape != (inputs,) or numbers.min() < 0 or numbers.max() >= groups:
                raise refused(name, "its g_idx does not have the group of each input feature")
            if (np.diff(numbers) < 0).any():
                order = np.argsort(numbers, kind="stable").astype(np.int32)
                numbers = numbers[order]
            counts = np.bincount(numbers, minlength=groups)
            group = int(counts.max())
        middle = 1 << (bits - 1)
        self._middle = middle
        offset = not self._all_zeros_are(middle, groups, outputs)
        super().__init__(
            name,
            tuple(used),
            (outputs, inputs),
            bits=4 if bits < 5 else 8,
            group=group,
            offset=offset or bits < 4,
            order=order,
        )
        if numbers is not None and self.elements < inputs:
            of_blocks = numbers.reshape(-1, self.elements)
            if (of_blocks != of_blocks[:, :1]).any():
                raise refused(name, "the groups of its g_idx are of several sizes")
            self.groups = of_blocks[:, 0]
        elif numbers is not None:
            self.groups = numbers[:1]

    def _all_zeros_are(self, middle: int, groups: int, outputs: int) -> bool:
        zeros = self._zeros_of(slice(None), outputs)
        return bool((zeros == middle).all())

    def _zeros_of(self, words: slice, count: int) -> Array:
        """Returns the zeros of some words of each group, (groups, count) as uint8."""
        packed = self._zeros.read(slice(None), words)
        zeros = unpacked(packed, self._bits, count)
        if self._version == 1:
            np.add(zeros, 1, out=zeros)
            if self._bits != 3:  # as AutoGPTQ does; a zero of 8 of 3 bits stays
                np.bitwise_and(zeros, (1 << self._bits) - 1, out=zeros)
        return zeros

    def take(self, first: int, last: int) -> Codes:
        rows, columns = last - first, self.shape[1]
        bits = self._bits
        given = self._codes.read(slice(None), slice(first, last))
        words = wiped.empty((rows, len(given)), np.dtype("<i4"))
        np.copyto(words, given.T)
        codes = unpacked(words, bits, columns)
        if self.order is not None:
            ordered = wiped.empty(codes.shape, np.uint8)
            np.take(codes, self.order, axis=1, out=ordered)
            codes = ordered
        place = slice(first * bits // 32, -(-last * bits // 32))
        zeros = as_float32(self._zeros_of(place, rows).T, "U8")
        scales = self._scales.read(slice(None), slice(first, last))
        if bits == 8:  # signed, and the zeros with them
            np.bitwise_xor(codes, 0x80, out=codes)
            np.subtract(zeros, 128, out=zeros)
        return self._scaled(codes, as_float32(scales, self._scales.dtype).T, zeros)


def gptq_weights(parts: Parts, config: dict[str, Any]) -> list[Weight]:
    """Returns the quantised weights of a checkpoint. Raises FileFormatError for what is not
    understood."""
    bits = config.get("bits")
    if bits not in (2, 3, 4, 8):
        raise refused("quantization_config", f"GPTQ with {bits!r} bits is not known")
    written = config.get("checkpoint_format") or "gptq"
    if written not in ("gptq", "gptq_v2"):
        raise refused("quantization_config", f"its checkpoint_format {written!r} is not known")
    if config.get("dynamic"):
        raise refused("quantization_config", "it has options for single modules (dynamic)")
    if config.get("pack_dtype") not in (None, "int32"):
        raise refused("quantization_config", f"its pack_dtype is {config['pack_dtype']!r}")
    version = 2 if written == "gptq_v2" else 1
    return [
        GptqWeight(name.removesuffix(_SUFFIX), parts, bits, version)
        for name in parts
        if name.endswith(_SUFFIX)
    ]
