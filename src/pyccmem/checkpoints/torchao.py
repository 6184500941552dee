# SPDX-License-Identifier: Apache-2.0
"""Weights of torchao: its tensors Int8Tensor, IntxUnpackedToInt8Tensor and Int4Tensor, of a model
in memory or of a safetensors file that torchao wrote.

The first two have `qdata` as int8, `scale` of shape (rows, groups), and a `zero_point` of that
shape: the value is scale * (q - zero_point), whether the zero point is int8 or a floating number.
Int4Tensor has two signed numbers of 4 bits in a byte, the first one in the low bits, and `scale`
and `zero_point` of shape (groups, rows); its zero point is a value: the element is scale * q +
zero_point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..binding import wiped
from .parts import Part, Parts, as_float32, refused
from .weight import Array, Codes, Weight, unpacked

__all__ = ["TORCHAO_TENSORS", "TorchaoWeight", "torchao_weights"]

#: The classes that are understood. Others pack for one kind of accelerator.
TORCHAO_TENSORS = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor")

_FLOATS = ("F16", "BF16", "F32")


class TorchaoWeight(Weight):
    """One tensor of torchao. `data` has its tensors by the names of torchao's attributes."""

    def __init__(
        self,
        name: str,
        kind: str,
        data: Mapping[str, Part],
        used: tuple[str, ...],
        block_size: Any,
        target: str = "",
    ) -> None:
        if kind not in TORCHAO_TENSORS:
            raise refused(name, f"it is a {kind} of torchao")
        extra = sorted(set(data) - {"qdata", "scale", "zero_point"})
        unneeded = {"act_quant_scale", "act_quant_zero_point"}  # of inputs
        if set(extra) - unneeded:
            raise refused(name, f"it has {', '.join(extra)}")
        if not {"qdata", "scale"} <= set(data):
            raise refused(name, "its qdata or scale is not there")
        self._turned = kind == "Int4Tensor"
        self._codes, self._scales = data["qdata"], data["scale"]
        self._zeros = data.get("zero_point")
        if self._codes.dtype not in ("I8", "U8") or len(self._codes.shape) != 2:
            raise refused(name, f"its qdata is of {self._codes.dtype} and {self._codes.shape}")
        rows, columns = self._codes.shape
        if self._turned:
            columns *= 2
        one = _block(name, block_size, rows, columns)
        groups = columns // one[1]
        self._whole = one[0] == rows and rows > 1
        wanted = (groups, rows) if self._turned else (1 if self._whole else rows, groups)
        for part in (self._scales, self._zeros):
            if part is not None and tuple(part.shape) != wanted:
                raise refused(name, f"its scales or zero points have shape {part.shape}")
        if self._scales.dtype not in _FLOATS:
            raise refused(name, f"its scales are of {self._scales.dtype}")
        if self._turned and self._zeros is None:
            raise refused(name, "its zero point is not there")
        four = self._turned or target in ("int1", "int2", "int3", "int4")
        offset = False
        if self._zeros is not None:
            if self._zeros.dtype not in (*_FLOATS, "I8"):
                raise refused(name, f"its zero points are of {self._zeros.dtype}")
            offset = bool(
                as_float32(self._zeros.read(slice(None), slice(None)), self._zeros.dtype).any()
            )
        super().__init__(
            name, used, (rows, columns), bits=4 if four else 8, group=one[1], offset=offset
        )

    def _numbers(self, part: Part, first: int, last: int) -> Array:
        """Returns (rows, groups) of scales or zero points as float32."""
        if self._turned:
            turned: Array = as_float32(part.read(slice(None), slice(first, last)), part.dtype).T
            return turned
        if self._whole:
            found = as_float32(part.read(slice(None), slice(None)), part.dtype)
            return np.broadcast_to(found, (last - first, found.shape[1]))
        return as_float32(part.read(slice(first, last), slice(None)), part.dtype)

    def take(self, first: int, last: int) -> Codes:
        given = self._codes.read(slice(first, last), slice(None))
        scales = self._numbers(self._scales, first, last)
        zeros = None
        if self.offset:
            assert self._zeros is not None, "offset comes of zero points"
            zeros = self._numbers(self._zeros, first, last)
        if self._turned:
            codes = unpacked(given, 4, self.shape[1])
            np.bitwise_xor(codes, 8, out=codes)  # two's complement becomes q + 8
            return self._with_values(codes, scales, zeros)
        codes = given.view(np.uint8)
        if self.bits == 4:
            np.add(codes, 8, out=codes)
            if zeros is not None:
                moved = wiped.empty(zeros.shape, np.float32)
                zeros = np.add(zeros, 8, out=moved)
        return self._scaled(codes, scales, zeros)

    def _with_values(self, codes: Array, scales: Array, zeros: Array | None) -> Codes:
        """Returns codes whose zero is a value: the element is scale * (code - 8) + zero."""
        found = self._scaled(codes, scales, None if zeros is None else np.full_like(zeros, 8))
        if zeros is not None and found.offsets is not None:
            np.add(found.offsets, zeros[:, self.groups], out=found.offsets)
        return found


def _block(name: str, given: Any, rows: int, columns: int) -> tuple[int, int]:
    """Returns the rows and columns that have one scale."""
    if (
        not isinstance(given, (list, tuple))
        or len(given) != 2
        or not all(isinstance(n, int) for n in given)
    ):
        raise refused(name, f"its block_size is {given!r}")
    height, width = (min(int(n), most) for n, most in zip(given, (rows, columns), strict=True))
    if height < 1 or width < 1 or columns % width or (height != 1 and height != rows):
        raise refused(name, f"its block_size {given!r} does not divide {(rows, columns)}")
    return height, width


def torchao_weights(parts: Parts, metadata: Mapping[str, str]) -> list[Weight]:
    """Returns the quantised weights of a file that torchao wrote, by the entries of its metadata.
    Raises FileFormatError for what is not understood."""
    found: list[Weight] = []
    for name, text in metadata.items():
        module, _, last = name.rpartition(".")
        if not module:
            continue
        kind, fields, names = _described(name, text)
        if kind in ("Tensor", ""):
            continue
        places = {data: f"{module}._{last}_{data}" for data in names}
        if not any(place in parts for place in places.values()):
            continue  # of another file
        missing = [place for place in places.values() if place not in parts]
        if missing:
            raise refused(name, f"{missing[0]!a} is not there")
        found.append(
            TorchaoWeight(
                name,
                kind,
                {data: parts[place] for data, place in places.items()},
                tuple(places.values()),
                _value(fields.get("block_size")),
                str(_value(fields.get("target_dtype")) or "").removeprefix("torch."),
            )
        )
    return found


def _described(name: str, text: str) -> tuple[str, dict[str, Any], list[str]]:
    """Returns the class of a tensor, its attributes, and the names of its parts; an empty class for
    an entry that describes no tensor."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return "", {}, []
    if not isinstance(entry, dict) or not isinstance(entry.get("_type"), str):
        return "", {}, []
    fields, names = entry.get("_data", {}), entry.get("_tensor_data_names", [])
    if (
        not isinstance(fields, dict)
        or not isinstance(names, list)
        or not all(isinstance(part, str) for part in names)
    ):
        raise refused(name, "the metadata of its file are damaged")
    return entry["_type"], fields, names


def _value(field: Any) -> Any:
    """Returns the value of an attribute, which torchao writes as it is or with its type."""
    return field.get("_data", field) if isinstance(field, dict) else field
