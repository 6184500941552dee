# SPDX-License-Identifier: Apache-2.0
"""What safe_open(framework="pt") makes of the tensors of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import errors
from ..keys import Key
from ..safetensors._dtypes import numpy_dtype
from ..safetensors._frameworks import offer
from ..tensor import EncryptedTensor as Core
from ._results import wipes
from ._tensor import EncryptedTensor
from .dtypes import PAIRS

__all__ = ["Torch"]


class Torch:
    """EncryptedTensors of torch, whose parts are views of the ciphertext."""

    def __init__(self, activations: str = "plain") -> None:
        """Raises ArgumentError for other activations."""
        wipes(activations)
        self._activations = activations

    def form(
        self, dtype: str, shape: tuple[int, ...], tensor: str
    ) -> tuple[np.dtype[Any], tuple[int, ...]]:
        if dtype == "F4" and PAIRS is not None:  # torch's elements are pairs of the format's
            if not shape or shape[-1] % 2:
                raise errors.FileRequestError(
                    f"Tensor {tensor!a} is of dtype F4 and shape {shape}, and torch has pairs of "
                    f"these elements along the last axis; there is no tensor of half a pair."
                )
            return np.dtype(np.uint8), (*shape[:-1], shape[-1] // 2)
        return numpy_dtype(dtype, tensor), shape

    def made_of(self, core: Core, dtype: str, key: Key | None) -> EncryptedTensor:
        kind: torch.dtype | None = PAIRS if dtype == "F4" else None
        return EncryptedTensor.from_core(core, kind, key=key, activations=self._activations)

    def part(self, tensor: Any, index: tuple[int | slice, ...], whole: bool) -> Any:
        return tensor if whole else tensor[index]


offer("torch", Torch())
