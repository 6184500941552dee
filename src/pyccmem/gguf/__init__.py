# SPDX-License-Identifier: Apache-2.0
"""GGUF files, the models of llama.cpp and its relatives, plain and sealed.

    seal("model.gguf", "model.gguf.sealed", key)    all of it, metadata too; blocks stay blocks
    open_sealed("model.gguf.sealed", key)           mapped, with no decryption but of the header
    open_model("model-00001-of-00003.gguf.sealed", key)   all files of a model
    inspect("model.gguf.sealed", key)               architecture, types, counts
    unseal("model.gguf.sealed", "model.gguf", key)  the same file again, on disk, in the clear
    read_header("model.gguf")                       what a plain file says of itself

encrypt() and decrypt() take safetensors files as well, and look what a file is.

A sealed one is a sealed safetensors file: pyccmem.safetensors has verify_file(), rewrap_file() and
inspect_file() for it, and says what `key` and `expect` may be.
"""

from __future__ import annotations

from ._container import block_format, is_gguf_content
from ._header import Header, TensorInfo
from ._metadata import Metadata
from ._model import SealedModel, Split, open_model, split_of
from ._open import SealedGGUF
from ._open import open_sealed_gguf as open_sealed
from ._plain import is_gguf, read_header
from ._seal import encrypt, seal
from ._summary import Summary, inspect
from ._types import TYPES, GGMLType
from ._unseal import decrypt, unseal

__all__ = [
    "TYPES",
    "GGMLType",
    "Header",
    "Metadata",
    "SealedGGUF",
    "SealedModel",
    "Split",
    "Summary",
    "TensorInfo",
    "block_format",
    "decrypt",
    "encrypt",
    "inspect",
    "is_gguf",
    "is_gguf_content",
    "open_model",
    "open_sealed",
    "read_header",
    "seal",
    "split_of",
    "unseal",
]
