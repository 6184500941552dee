# SPDX-License-Identifier: Apache-2.0
"""Plain checkpoints that another library has quantised: their weights become encrypted blocks while
they are loaded."""

from __future__ import annotations

from typing import Any

import torch

from ..checkpoints import Weight, file_parts, quantized_weights
from ..directories.index import shards_beside
from ..keys import Key
from ..torch import EncryptedTensor
from ..torch._quantize import from_packing
from .files import EncryptingFile, Slice

__all__ = ["CheckpointFile"]


class _BlocksSlice(Slice):
    """A quantised weight, which is encrypted when it is loaded."""

    def __init__(self, weight: Weight, key: Key) -> None:
        super().__init__(list(weight.shape), "BF16")
        self._weight, self._key = weight, key

    def load(self) -> EncryptedTensor:
        return from_packing(
            self._weight, self.wanted or torch.float32, key=self._key, name=self._weight.name
        )


class CheckpointFile(EncryptingFile):
    """A plain file of a quantised checkpoint. A weight is in the file that has the first of the
    tensors that it is made of, of which others may lie in further files of the directory."""

    def __init__(self, path: str, config: dict[str, Any], key: Key) -> None:
        """Raises FileReadError, FileFormatError with the name of what is not understood."""
        super().__init__(path, key)
        self._key = key
        own, metadata = file_parts(path)
        parts: dict[str, Any] = dict(own)
        for shard in shards_beside(path):
            more, texts = file_parts(shard)
            parts.update(more)
            metadata = {**texts, **metadata}
        self._weights: dict[str, Weight] = {}
        self._parts: set[str] = set()
        for name, weight in quantized_weights(parts, config, metadata).items():
            self._parts.update(weight.used)
            if weight.used[0] in own:
                self._weights[name] = weight

    def keys(self) -> list[str]:
        plain = [name for name in EncryptingFile.keys(self) if name not in self._parts]
        return [*plain, *self._weights]

    def get_slice(self, name: str) -> Slice:
        weight = self._weights.get(name)
        return super().get_slice(name) if weight is None else _BlocksSlice(weight, self._key)

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}
