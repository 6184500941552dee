# SPDX-License-Identifier: Apache-2.0
"""What a sealed GGUF file has in it, between the functions that write it and those that read it.

It is a sealed safetensors file with sealed names, so that nothing of the model shows but the sizes
of its tensors to a page. In it lie, in this order:

    gguf/header     U8, the header as it is in the GGUF file, from the magic to the last tensor's
                    description
    gguf/gaps       U8, the bytes between header, tensors and end, one after the other; nothing if
                    all of them are zero
    each tensor     under its own name, in the order of the data: F32, F16, BF16 and the like as
                    they are called in safetensors files, with their shape; blocks as U8 of shape
                    (rows, bytes of a row)

Its metadata has "pyccmem.gguf", a JSON object: `format` 1, `size`, the bytes of the GGUF file, and
of several files of a model that were sealed together `set`, a random text that all of them have;
and "pyccmem.blocks", a JSON object that gives `format` and `shape` of each tensor of blocks that
pyccmem can compute with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..files.safetensors_header import MAX_ELEMENTS, shown
from ..quantized import FORMATS, BlockFormat
from ..safetensors._format import GGUF_KEY
from ._header import TensorInfo
from ._types import TYPES

__all__ = [
    "BLOCKS_KEY",
    "GAPS",
    "HEADER",
    "block_format",
    "block_types",
    "is_gguf_content",
    "metadata_for",
    "set_id_of",
    "size_of",
    "stored_as",
]

HEADER, GAPS = "gguf/header", "gguf/gaps"

BLOCKS_KEY = "pyccmem.blocks"

FORMAT = 1

_FORMATS = {found.gguf: found for found in FORMATS.values() if found.gguf is not None}


def block_format(tensor: TensorInfo) -> BlockFormat | None:
    """Returns the format of a tensor's blocks, None if pyccmem cannot compute with them, or the
    tensor has none."""
    return _FORMATS.get(tensor.type.number)


def block_types() -> list[str]:
    """Returns the names of the types of blocks that pyccmem computes with."""
    return [TYPES[number].name for number in sorted(_FORMATS)]


def stored_as(tensor: TensorInfo) -> tuple[str, tuple[int, ...]]:
    """Returns dtype and shape that a tensor has in the container."""
    if tensor.type.safetensors is not None:
        return tensor.type.safetensors, tensor.shape
    return "U8", (math.prod(tensor.shape[:-1]), tensor.row_bytes)


def metadata_for(
    size: int, tensors: Mapping[str, TensorInfo], set_id: str | None = None
) -> dict[str, str]:
    """Returns the container's metadata."""
    about: dict[str, Any] = {"format": FORMAT, "size": size}
    if set_id is not None:
        about["set"] = set_id
    blocks = {}
    for name, tensor in tensors.items():
        form = block_format(tensor)
        if form is not None:
            blocks[name] = {"format": form.name, "shape": list(tensor.shape), "scale": None}
    return {
        GGUF_KEY: json.dumps(about),
        BLOCKS_KEY: json.dumps(blocks),
    }


def is_gguf_content(metadata: Mapping[str, str] | None) -> bool:
    """Returns True for the metadata of a sealed GGUF file."""
    return GGUF_KEY in (metadata or {})


def size_of(metadata: Mapping[str, str] | None) -> int:
    """Returns the size of the GGUF file that these metadata are of. Raises FileFormatError."""
    if not is_gguf_content(metadata):
        raise errors.FileFormatError(
            "This is a sealed safetensors file, not a sealed GGUF file; use the functions of "
            "pyccmem.safetensors."
        )
    assert metadata is not None, "it has the key"
    try:
        found: Any = json.loads(metadata[GGUF_KEY])
        form, size = found["format"], found.get("size")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        form = size = None
    if type(form) is int and form > FORMAT:
        raise errors.FileFormatError(
            f"This sealed GGUF file was made by a newer pyccmem: it is of format {shown(form)}, "
            f"and this version reads format {FORMAT}; upgrade pyccmem."
        )
    if form != FORMAT or type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
        raise errors.FileFormatError(
            "This sealed GGUF file was not made by pyccmem: it does not say how long the GGUF file "
            "is; seal the GGUF file again."
        )
    return size


def set_id_of(metadata: Mapping[str, str] | None) -> str | None:
    """Returns the text that files which were sealed together have; None of a file that was sealed
    alone. The metadata are those that size_of() has accepted."""
    found = json.loads((metadata or {})[GGUF_KEY]).get("set")
    return found if isinstance(found, str) else None
