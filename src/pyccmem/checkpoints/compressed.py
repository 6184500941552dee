# SPDX-License-Identifier: Apache-2.0
"""Weights of compressed-tensors: the formats "pack-quantized", "int-quantized" and
"naive-quantized".

pack-quantized has `weight_packed`, numbers of 1 to 8 bits along the input features, as they are
plus half of their range; `weight_scale` and perhaps `weight_zero_point`, which is packed in the
same way but along the output features; `weight_shape`. The other two have `weight` as int8,
`weight_scale` and perhaps `weight_zero_point` as int8. A scale belongs to the tensor, a row, or a
group of a row. How inputs are quantised is left aside: products here round inputs in their own way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..binding import wiped
from .parts import Part, Parts, as_float32, refused
from .weight import Array, Codes, Weight, unpacked

__all__ = ["CompressedWeight", "compressed_weights"]

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")

#: Tensors beside a weight that a product does not need: how inputs and outputs are quantised.
_BESIDE = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
)


class CompressedWeight(Weight):
    """One linear layer or embedding of compressed-tensors."""

    def __init__(self, prefix: str, parts: Parts, packed: bool) -> None:
        name = f"{prefix}.weight"
        main = f"{prefix}.weight_packed" if packed else name
        used = [main, f"{prefix}.weight_scale"]
        self._codes, self._packed = parts[main], packed
        scales = parts.get(used[1])
        if scales is None or scales.dtype not in ("F16", "BF16", "F32", "F64"):
            raise refused(name, "it has no scale")
        if len(self._codes.shape) != 2 or self._codes.dtype != ("I32" if packed else "I8"):
            raise refused(name, f"{main!a} is of {self._codes.dtype} and {self._codes.shape}")
        if f"{prefix}.weight_g_idx" in parts:
            raise refused(name, "its columns are in the order of weight_g_idx")
        if f"{prefix}.weight_global_scale" in parts:
            raise refused(name, "it has a weight_global_scale")
        rows, columns = self._codes.shape
        self._bits = 8
        if packed:
            used.append(f"{prefix}.weight_shape")
            rows, columns = _shape(name, parts.get(used[-1]), rows)
            self._bits = _bits(name, self._codes.shape[1], columns)
        self._scales = _Groups(name, scales, rows)
        zeros = parts.get(f"{prefix}.weight_zero_point")
        self._zeros: Part | None = zeros
        offset = False
        if zeros is not None:
            used.append(f"{prefix}.weight_zero_point")
            self._check_zeros(name, zeros, rows)
            middle = 1 << (self._bits - 1)
            offset = bool((self._zeros_of(0, rows) != (middle if packed else 0)).any())
        used += [n for extra in _BESIDE if (n := f"{prefix}.{extra}") in parts]
        super().__init__(
            name,
            tuple(used),
            (rows, columns),
            bits=4 if self._bits <= 4 else 8,
            group=-(-columns // self._scales.groups),
            offset=offset,
        )

    def _check_zeros(self, name: str, zeros: Part, rows: int) -> None:
        groups = self._scales.groups
        height = rows if not self._packed else -(-rows * self._bits // 32)
        flat = 1 if self._scales.whole else height
        if zeros.dtype != ("I32" if self._packed else "I8") or (
            math.prod(zeros.shape) != flat * groups
        ):
            raise refused(name, f"its zero points are of {zeros.dtype} and shape {zeros.shape}")
        if self._packed and self._scales.whole:
            raise refused(name, "one packed zero point is for the whole tensor")

    def _zeros_of(self, first: int, last: int) -> Array:
        """Returns the zeros of rows, (rows, groups): numbers as in the codes."""
        assert self._zeros is not None, "asked for by those who have zeros"
        if not self._packed:
            return _rows_of(self._zeros, first, last, self._scales)
        bits = self._bits
        words = self._zeros.read(slice(first * bits // 32, -(-last * bits // 32)), slice(None))
        turned = wiped.empty((words.shape[1], words.shape[0]), words.dtype)
        np.copyto(turned, words.T)
        zeros: Array = unpacked(turned, bits, last - first).T
        return zeros

    def take(self, first: int, last: int) -> Codes:
        given = self._codes.read(slice(first, last), slice(None))
        zeros = None if not self.offset else as_float32(self._zeros_of(first, last), "I8")
        if not self._packed:
            codes = given.view(np.uint8)
        else:
            codes = unpacked(given, self._bits, self.shape[1])
            if self.bits == 8:  # signed, as the numbers are
                middle = 1 << (self._bits - 1)
                np.subtract(codes, middle, out=codes)
                if zeros is not None:
                    np.subtract(zeros, middle, out=zeros)
            elif not self.offset:  # 8 stands for 0
                np.add(codes, 8 - (1 << (self._bits - 1)), out=codes)
        scales = as_float32(
            _rows_of(self._scales.part, first, last, self._scales), self._scales.part.dtype
        )
        return self._scaled(codes, scales, zeros)


class _Groups:
    """The scales of a weight: of the tensor, or (rows, groups)."""

    def __init__(self, name: str, part: Part, rows: int) -> None:
        count = math.prod(part.shape)
        self.part, self.whole = part, count == 1
        self.groups = 1 if self.whole else count // max(rows, 1)
        if not self.whole and (not self.groups or self.groups * rows != count):
            raise refused(name, f"its scales have shape {part.shape}, and it has {rows} rows")


def _rows_of(part: Part, first: int, last: int, groups: _Groups) -> Array:
    """Returns (rows, groups) of the numbers of a tensor of that shape, or of (rows,), or of one."""
    if groups.whole:
        return np.broadcast_to(part.read(slice(None), slice(None)), (last - first, 1))
    if len(part.shape) == 2:
        return part.read(slice(first, last), slice(None))
    flat = part.read(slice(None), slice(first * groups.groups, last * groups.groups))
    return flat.reshape(last - first, groups.groups)


def _shape(name: str, part: Part | None, rows: int) -> tuple[int, int]:
    """Returns what weight_shape says."""
    if part is None or part.dtype not in ("I64", "I32") or part.shape != (2,):
        raise refused(name, "it has no weight_shape of two numbers")
    height, width = (int(n) for n in part.read(slice(None), slice(None)).reshape(-1))
    if height != rows or width < 1:
        raise refused(name, f"its weight_shape is {(height, width)}, and {rows} rows are there")
    return height, width


def _bits(name: str, words: int, columns: int) -> int:
    """Returns how many bits an element has, of the words that a row takes."""
    for bits in range(1, 9):
        if -(-columns * bits // 32) == words:
            return bits
    raise refused(name, f"rows of {columns} elements do not take {words} words")


def compressed_weights(parts: Parts, config: dict[str, Any]) -> list[Weight]:
    """Returns the quantised weights of a checkpoint. Raises FileFormatError for what is not
    understood."""
    groups = config.get("config_groups")
    formats = {str(config.get("format", "pack-quantized"))}
    for scheme in groups.values() if isinstance(groups, dict) else ():
        formats |= _formats_of(scheme)
    formats.discard("mixed-precision")
    unknown = sorted(formats - {*_FORMATS, "dense"})
    if unknown:
        raise refused("quantization_config", f"the format {', '.join(unknown)} is not known")
    for entry in ("sparsity_config", "transform_config", "kv_cache_scheme"):
        if config.get(entry) and config[entry] != {"format": "dense"}:
            raise refused("quantization_config", f"it has a {entry}")
    found: list[Weight] = []
    for name in parts:
        prefix, _, last = name.rpartition(".")
        if last == "weight_packed":
            found.append(CompressedWeight(prefix, parts, True))
        elif last == "weight" and f"{prefix}.weight_scale" in parts:
            found.append(CompressedWeight(prefix, parts, False))
    return found


def _formats_of(scheme: Any) -> set[str]:
    """Returns the formats of a group of modules. Raises FileFormatError for weights that are not
    integers."""
    weights = scheme.get("weights") if isinstance(scheme, dict) else None
    if not isinstance(weights, dict):
        return set()
    if weights.get("type", "int") != "int":
        raise refused("quantization_config", f"its weights are of type {weights['type']!r}")
    if weights.get("strategy") not in (None, "tensor", "channel", "group"):
        raise refused("quantization_config", f"the strategy {weights['strategy']!r} is not known")
    written = scheme.get("format")
    return set() if written is None else {str(written)}
