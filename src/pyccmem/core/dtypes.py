# SPDX-License-Identifier: Apache-2.0
"""The table of element types, from which adapters and file formats derive theirs."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ..binding import lib

__all__ = ["DTYPES", "NATIVE", "Dtype", "name_of"]


class Dtype(NamedTuple):
    """An element type: its name in NumPy, ml_dtypes and torch, and its codes elsewhere."""

    name: str
    bits: int
    #: NumPy's code, little-endian; None for the types of ml_dtypes, which are found by name.
    code: str | None
    #: The name in safetensors files; None where the format does not have the type.
    safetensors: str | None
    #: The type's number for the native kernels of products; None where they do not take it.
    native: int | None = None


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("bool", 8, "?", "BOOL"),
        Dtype("uint8", 8, "u1", "U8"),
        Dtype("int8", 8, "i1", "I8", lib.CCMEM_I8),
        Dtype("uint16", 16, "<u2", "U16"),
        Dtype("int16", 16, "<i2", "I16"),
        Dtype("uint32", 32, "<u4", "U32"),
        Dtype("int32", 32, "<i4", "I32"),
        Dtype("uint64", 64, "<u8", "U64"),
        Dtype("int64", 64, "<i8", "I64"),
        Dtype("float16", 16, "<f2", "F16", lib.CCMEM_F16),
        Dtype("float32", 32, "<f4", "F32", lib.CCMEM_F32),
        Dtype("float64", 64, "<f8", "F64"),
        Dtype("complex64", 64, "<c8", "C64"),
        Dtype("complex128", 128, "<c16", None),
        Dtype("bfloat16", 16, None, "BF16", lib.CCMEM_BF16),
        Dtype("float8_e4m3fn", 8, None, "F8_E4M3"),
        Dtype("float8_e5m2", 8, None, "F8_E5M2"),
        Dtype("float8_e4m3fnuz", 8, None, "F8_E4M3FNUZ"),
        Dtype("float8_e5m2fnuz", 8, None, "F8_E5M2FNUZ"),
        Dtype("float8_e8m0fnu", 8, None, "F8_E8M0"),
    )
}

#: The numbers of the types that the native kernels of products take, by name, in this processor's
#: byte order.
NATIVE: dict[str, int] = {
    name: dtype.native for name, dtype in DTYPES.items() if dtype.native is not None
}


@cache
def name_of(dtype: Any) -> str:
    """Returns dtype.name of a NumPy dtype. NumPy puts it together anew in 2 us each time, and
    several of them are a good part of a small product."""
    name: str = dtype.name
    return name
