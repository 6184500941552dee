# SPDX-License-Identifier: Apache-2.0
"""GGUF files, the models of llama.cpp and its relatives, plain and sealed.

header = read_header("model.gguf")      what a plain file says of itself
"""

from __future__ import annotations

from ._header import Header, TensorInfo
from ._metadata import Metadata
from ._plain import is_gguf, read_header
from ._types import TYPES, GGMLType

__all__ = ["TYPES", "GGMLType", "Header", "Metadata", "TensorInfo", "is_gguf", "read_header"]
