# SPDX-License-Identifier: Apache-2.0
"""Quantised tensors in files: which tensors of bytes are blocks, in the metadata entry
"pyccmem.blocks".

Its text is JSON: by the name of each tensor of U8 and of shape (rows, row bytes) that holds blocks,
{"format": "q4_k", "shape": [rows, cols], "scale": null}, where `shape` is what the blocks stand for
and `scale`, of "int8_row" alone, the name of the F32 tensor of the rows' scales. Sealed files
authenticate their metadata; of plain files it is checked here, as everything of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .. import errors
from ..core.block_formats import FORMATS, BlockFormat
from ..files.safetensors_header import shown
from ..quantized import QuantizedTensor

__all__ = ["ENTRY", "Blocks", "blocks_in", "scale_name", "scales_of", "with_blocks"]

#: The metadata entry.
ENTRY = "pyccmem.blocks"

#: No tensor of more dimensions; NumPy has at most 64.
_MOST_DIMENSIONS = 32


class Blocks(NamedTuple):
    """What the bytes of a tensor are."""

    format: BlockFormat
    shape: tuple[int, ...]
    scale: str | None


def scale_name(name: str) -> str:
    """Returns the name under which a file has the scales of a tensor's rows."""
    return f"{name}.scale"


def with_blocks(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata of a file of these tensors: with the entry if there are quantised ones,
    else without it."""
    kept = {name: text for name, text in metadata.items() if name != ENTRY}
    found = {
        name: {
            "format": tensor.format.name,
            "shape": list(tensor.shape),
            "scale": None if tensor.scale is None else scale_name(name),
        }
        for name, tensor in tensors.items()
        if isinstance(tensor, QuantizedTensor)
    }
    if found:
        kept[ENTRY] = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return kept


def blocks_in(
    metadata: Mapping[str, str], shapes: Mapping[str, tuple[str, tuple[int, ...]]], path: str
) -> dict[str, Blocks]:
    """Returns what a file's metadata say of its quantised tensors, by name; `shapes` has dtype and
    shape of each tensor of the file. Raises FileFormatError for what no file should say."""
    text = metadata.get(ENTRY)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(path, "is not JSON") from None
    if not isinstance(found, dict):
        raise _wrong(path, "is not a JSON object")
    described = {name: _described(name, entry, shapes, path) for name, entry in found.items()}
    _check_scales(described, path)
    return described


def _wrong(path: str, what: str) -> errors.FileFormatError:
    return errors.FileFormatError(
        f"The metadata entry {ENTRY!r} of {path!a} {what}; it says which tensors are blocks of "
        f"quantised weights, so use a good copy of the file."
    )


def _described(
    name: str, entry: Any, shapes: Mapping[str, tuple[str, tuple[int, ...]]], path: str
) -> Blocks:
    if name not in shapes:
        raise _wrong(path, f"names a tensor that is not there, {shown(name)}")
    if not isinstance(entry, dict) or not {"format", "shape"} <= entry.keys():
        raise _wrong(path, f"does not describe tensor {shown(name)}")
    kind = entry["format"]
    format = FORMATS.get(kind) if isinstance(kind, str) else None
    if format is None:
        raise _wrong(path, f"gives tensor {shown(name)} an unknown format, {shown(str(kind))}")
    lengths = entry["shape"]
    if (
        not isinstance(lengths, list)
        or not 0 < len(lengths) <= _MOST_DIMENSIONS
        or any(type(n) is not int or not 0 <= n < 2**62 for n in lengths)
    ):
        raise _wrong(path, f"gives tensor {shown(name)} a shape that cannot be")
    shape = tuple(lengths)
    if shape[-1] % format.elements or shapes[name] != ("U8", format.packed_shape(shape)):
        raise _wrong(
            path, f"gives tensor {shown(name)} a shape that its bytes do not have as {format}"
        )
    scale = entry.get("scale")
    if (scale is not None) != format.scaled_rows:
        raise _wrong(path, f"gives tensor {shown(name)} no scales that {format} can have")
    if scale is not None and (
        not isinstance(scale, str) or shapes.get(scale) != ("F32", (format.packed_shape(shape)[0],))
    ):
        raise _wrong(path, f"names scales of tensor {shown(name)} that are not there")
    return Blocks(format, shape, scale)


def _check_scales(described: Mapping[str, Blocks], path: str) -> None:
    """Raises FileFormatError for scales that two tensors share, which each of them would own."""
    named = [blocks.scale for blocks in described.values() if blocks.scale is not None]
    if len(set(named)) < len(named):
        raise _wrong(path, "gives two tensors the same scales")


def scales_of(described: Iterable[Blocks]) -> set[str]:
    """Returns the names of the tensors that are the scales of others."""
    return {blocks.scale for blocks in described if blocks.scale is not None}
