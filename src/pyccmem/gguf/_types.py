# SPDX-License-Identifier: Apache-2.0
"""The types of tensors in GGUF files: their numbers, and the blocks that their elements come in.

Numbers and sizes are those of ggml (github.com/ggml-org/ggml, enum ggml_type in include/ggml.h and
the blocks of src/ggml-common.h).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TYPES", "GGMLType"]


@dataclass(frozen=True)
class GGMLType:
    """One type. `elements` of a row, one after the other, are a block of `nbytes` bytes."""

    number: int
    name: str
    elements: int
    nbytes: int
    #: The name that safetensors files have for the same elements; None for blocks.
    safetensors: str | None = None

    def __str__(self) -> str:
        return self.name


_ALL = (
    GGMLType(0, "F32", 1, 4, "F32"),
    GGMLType(1, "F16", 1, 2, "F16"),
    GGMLType(2, "Q4_0", 32, 18),
    GGMLType(3, "Q4_1", 32, 20),
    GGMLType(6, "Q5_0", 32, 22),
    GGMLType(7, "Q5_1", 32, 24),
    GGMLType(8, "Q8_0", 32, 34),
    GGMLType(9, "Q8_1", 32, 36),
    GGMLType(10, "Q2_K", 256, 84),
    GGMLType(11, "Q3_K", 256, 110),
    GGMLType(12, "Q4_K", 256, 144),
    GGMLType(13, "Q5_K", 256, 176),
    GGMLType(14, "Q6_K", 256, 210),
    GGMLType(15, "Q8_K", 256, 292),
    GGMLType(16, "IQ2_XXS", 256, 66),
    GGMLType(17, "IQ2_XS", 256, 74),
    GGMLType(18, "IQ3_XXS", 256, 98),
    GGMLType(19, "IQ1_S", 256, 50),
    GGMLType(20, "IQ4_NL", 32, 18),
    GGMLType(21, "IQ3_S", 256, 110),
    GGMLType(22, "IQ2_S", 256, 82),
    GGMLType(23, "IQ4_XS", 256, 136),
    GGMLType(24, "I8", 1, 1, "I8"),
    GGMLType(25, "I16", 1, 2, "I16"),
    GGMLType(26, "I32", 1, 4, "I32"),
    GGMLType(27, "I64", 1, 8, "I64"),
    GGMLType(28, "F64", 1, 8, "F64"),
    GGMLType(29, "IQ1_M", 256, 56),
    GGMLType(30, "BF16", 1, 2, "BF16"),
    # Rows interleaved for one processor. ggml reads them no more, but the files are about.
    GGMLType(31, "Q4_0_4_4", 32, 18),
    GGMLType(32, "Q4_0_4_8", 32, 18),
    GGMLType(33, "Q4_0_8_8", 32, 18),
    GGMLType(34, "TQ1_0", 256, 54),
    GGMLType(35, "TQ2_0", 256, 66),
    GGMLType(36, "IQ4_NL_4_4", 32, 18),
    GGMLType(37, "IQ4_NL_4_8", 32, 18),
    GGMLType(38, "IQ4_NL_8_8", 32, 18),
    GGMLType(39, "MXFP4", 32, 17),
    GGMLType(40, "NVFP4", 64, 36),
    GGMLType(41, "Q1_0", 128, 18),
)

#: Each type by its number.
TYPES = {kind.number: kind for kind in _ALL}
