# SPDX-License-Identifier: Apache-2.0
"""Sealed files with blocks, made of plain files: of weights that are quantised now, or that another
library has quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .. import errors
from ..checkpoints import (
    Floats,
    Packing,
    Weight,
    encrypted_blocks,
    file_parts,
    fitting_format,
    quantized_weights,
)
from ..checkpoints.values import Values, values_text
from ..core.block_formats import format_named
from ..keys import Key
from ..safetensors import safe_open, save_file
from .index import shards_beside

__all__ = ["Quantizing", "seal_blocks"]

#: The types of values in torch by those of the file.
_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class Quantizing:
    """What becomes of the weights of a directory: the format for those that are quantised now, and
    the patterns of those that are not; or the quantization_config of a library's checkpoint."""

    def __init__(
        self,
        format: str | None,
        skip: Sequence[str] | str = (),
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ArgumentError for an unknown format."""
        self.format = None if format is None else format_named(format).name
        self.skip = (skip,) if isinstance(skip, str) else tuple(skip)
        self.checkpoint = checkpoint

    def of(self, name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Returns the format for a tensor; None for one that is sealed as it is. Weights are told
        by their names and two dimensions, which those of linear layers and embeddings have."""
        if self.format is None or dtype not in _TYPES or len(shape) != 2 or 0 in shape:
            return None
        module, _, last = name.rpartition(".")
        if last != "weight":
            return None
        names = (name, module, module.rpartition(".")[2])
        if any(fnmatchcase(one, pattern) for one in names for pattern in self.skip):
            return None
        return fitting_format(self.format, shape[-1])


def seal_blocks(
    source: Path,
    target: Path,
    key: Any,
    quantizing: Quantizing,
    *,
    seal_names: bool,
    context: Any = None,
) -> str:
    """Writes a sealed file of a plain one, whose weights become blocks, and returns its pin. Blocks
    lie in memory, encrypted, until the file is written; 1 MiB of numbers at a time is in the clear.

    Raises FileReadError, FileFormatError with the name of what is not understood, ArgumentError for
    a weight that has numbers which are infinite or none, and what save_file() raises.
    """
    parts, metadata = file_parts(source)
    taken: dict[str, Weight] = {}
    used: set[str] = set()
    if quantizing.checkpoint is not None:
        everything: dict[str, Any] = dict(parts)
        texts = dict(metadata)
        for shard in shards_beside(source):
            more, beside = file_parts(shard)
            everything |= more
            texts = {**beside, **texts}
        for name, weight in quantized_weights(everything, quantizing.checkpoint, texts).items():
            used.update(weight.used)
            if weight.used[0] in parts:
                taken[name] = weight
    found: dict[str, Any] = {}
    values: dict[str, Values] = {}
    with Key.generate() as memory, safe_open(source, "np", key=memory) as file:
        try:
            for name, part in parts.items():
                format = quantizing.of(name, part.dtype, part.shape)
                if name in used:
                    continue
                if format is None:
                    found[name] = file.get_tensor(name)
                else:
                    packing = Floats(part, format)
                    _add(found, values, name, packing, _TYPES[part.dtype], memory)
            for name, weight in taken.items():
                _add(found, values, name, weight, "float32", memory)
            kept = {} if quantizing.checkpoint is not None else metadata
            kept = {"format": "pt", **kept, **values_text(values)}
            return save_file(
                found,
                target,
                kept,
                key=key,
                seal_names=seal_names,
                progress=False,
                context=context,
            )
        finally:
            for tensor in found.values():
                tensor.close()


def _add(
    found: dict[str, Any],
    values: dict[str, Values],
    name: str,
    packing: Packing,
    dtype: str,
    key: Key,
) -> None:
    """Adds the blocks of a weight, and the order of its columns."""
    core, order = encrypted_blocks(packing, key=key, name=name)
    found[name] = core
    named = None if order is None else f"{name}.order"
    if named is not None:
        if named in found:
            raise errors.FileFormatError(
                f"The file has a tensor {named!a}, which is the name of the order of {name!a}."
            )
        found[named] = order
    values[name] = dtype, named
