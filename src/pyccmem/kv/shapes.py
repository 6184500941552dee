# SPDX-License-Identifier: Apache-2.0
"""The shapes of a key-value cache's layers, and of what is appended to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import errors
from ..binding.arguments import integer
from ..core.dtypes import NATIVE
from ..core.kv_tables import ROW_MAX, KVTables

__all__ = ["LayerShape", "add_layers", "checked_dtype", "checked_layers", "opened_dtype"]

#: Layers that a cache may have, and heads of one.
_LAYERS_MAX = 1 << 16
_HEADS_MAX = 1 << 16


class LayerShape(NamedTuple):
    """Heads of K and V, and elements of a row of each."""

    heads: int
    key_size: int
    value_size: int


def checked_dtype(dtype: Any) -> str:
    """Returns the name of an element type that caches have. Raises ArgumentError,
    ArgumentTypeError."""
    if not isinstance(dtype, str):
        raise errors.ArgumentTypeError(
            f"dtype must be the name of one, such as 'bfloat16', not {type(dtype).__name__}."
        )
    if dtype not in NATIVE:
        raise errors.ArgumentError(f"dtype is {dtype!r}; it must be one of {', '.join(NATIVE)}.")
    return dtype


def opened_dtype(dtype: str) -> str:
    """Returns the type that rows of a cache of `dtype` are opened to."""
    return "float32" if dtype == "int8" else dtype


def checked_layers(
    layers: Any, heads: Any, key_size: Any, value_size: Any
) -> tuple[LayerShape, ...]:
    """Returns a shape for each of `layers` layers. What is not one number has one for each layer.
    Raises ArgumentError, ArgumentTypeError."""
    count = integer("layers", layers)
    if not 1 <= count <= _LAYERS_MAX:
        raise errors.ArgumentError(f"layers is {count}; it must be from 1 to {_LAYERS_MAX}.")
    every_heads = _each("heads", heads, count, _HEADS_MAX)
    keys = _each("key_size", key_size, count, ROW_MAX)
    values = keys if value_size is None else _each("value_size", value_size, count, ROW_MAX)
    return tuple(map(LayerShape, every_heads, keys, values))


def _each(name: str, value: Any, count: int, most: int) -> list[int]:
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    found = [integer(name, one) for one in value] if several else [integer(name, value)] * count
    if len(found) != count:
        raise errors.ArgumentError(
            f"{name} has {len(found)} numbers for {count} layers; give one number, or one for each."
        )
    for one in found:
        if not 1 <= one <= most:
            raise errors.ArgumentError(f"{name} is {one}; it must be from 1 to {most}.")
    return found


def add_layers(tables: KVTables, dtype: str, shapes: Sequence[LayerShape]) -> None:
    """Gives a new cache its layers. Raises OutOfMemoryError."""
    for shape in shapes:
        tables.add_layer(dtype, *shape)
