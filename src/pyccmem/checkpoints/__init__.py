# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints of other libraries: GPTQ, AWQ, compressed-tensors, torchao.

Their weights become blocks of pyccmem's group formats (int4_g*, int8_g*, int8_row), a few rows at a
time and without going through floating numbers. Nothing of these libraries is needed.

parts     the tensors of a checkpoint, read a rectangle at a time
weight    a quantised weight as codes, scales and zeros; its blocks
gptq, awq, compressed, torchao     how each library packs them
packing   blocks that are encrypted as they are made, also of floating numbers
methods   which weights are quantised, by config.json
"""

from __future__ import annotations

from .methods import METHODS, is_known, quantized_weights
from .packing import FALLBACKS, Floats, Packing, encrypted_blocks, fitting_format
from .parts import ArrayPart, FilePart, Part, Parts, file_parts
from .torchao import TORCHAO_TENSORS, TorchaoWeight
from .weight import ROW_FORMAT, Weight

__all__ = [
    "FALLBACKS",
    "METHODS",
    "ROW_FORMAT",
    "TORCHAO_TENSORS",
    "ArrayPart",
    "FilePart",
    "Floats",
    "Packing",
    "Part",
    "Parts",
    "TorchaoWeight",
    "Weight",
    "encrypted_blocks",
    "file_parts",
    "fitting_format",
    "is_known",
    "quantized_weights",
]
