# SPDX-License-Identifier: Apache-2.0
"""Weights of a few bits: blocks of whole numbers with scales, as GGUF files and quantised
checkpoints have them."""

from .blocks import dequantize_blocks, quantize_blocks, quantize_rows
from .formats import FORMATS, BlockFormat, format_named
from .joining import concatenate
from .tensor import QuantizedTensor

__all__ = [
    "FORMATS",
    "BlockFormat",
    "QuantizedTensor",
    "concatenate",
    "dequantize_blocks",
    "format_named",
    "quantize_blocks",
    "quantize_rows",
]
