# SPDX-License-Identifier: Apache-2.0
"""A Llama with random weights, as the demos hold it whose subject are key-value caches. torch and
the like are imported when it is made."""

from __future__ import annotations

import gc
import warnings
from dataclasses import dataclass
from typing import Any

from .. import errors
from ..keys import Key

__all__ = ["Llama", "Shape", "bytes_of"]


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    words: int  # of the vocabulary
    layers: int
    width: int  # of the hidden states
    queries: int  # heads of queries
    heads: int  # of keys and values
    head_size: int
    tokens: int  # of a sequence, at most
    dtype: str  # "float32" or "bfloat16"

    @property
    def inner(self) -> int:
        """Width of the layers' inner states, as in Llama models."""
        return self.width * 11 // 4


class Llama:
    """The model, plain until encrypt()."""

    def __init__(self, shape: Shape, threads: int) -> None:
        """The same shape gets the same weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.encrypted = False
        self._activations = "plain"
        self._dtype = getattr(torch, shape.dtype)
        self._shape = shape
        config = LlamaConfig(
            vocab_size=shape.words,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.queries,
            num_key_value_heads=shape.heads,
            head_dim=shape.head_size,
            max_position_embeddings=shape.tokens,
            eos_token_id=None,
            bos_token_id=None,
            dtype=shape.dtype,
        )
        #: transformers' own. Typed as what it is not: transformers has no types.
        self.model: Any = LlamaForCausalLM(config).eval().to(self._dtype)

    def encrypt(self, key: Key, activations: str = "plain") -> None:
        """Encrypts the weights in place; caches are encrypted from now on. `activations`: of the
        caches, where they are opened."""
        import pyccmem.torch
        import pyccmem.transformers

        pyccmem.torch.encrypt_module(self.model, key=key, activations="wiped")
        pyccmem.transformers.protect_inputs(self.model, activations=activations)
        self.encrypted, self._activations = True, activations
        gc.collect()

    def erase(self) -> None:
        """Forgets the weights."""
        self.model = None
        gc.collect()

    def new_cache(self) -> Any:
        """An empty cache, encrypted if the weights are."""
        from transformers import DynamicCache

        import pyccmem.transformers

        config = self.model.config
        if self.encrypted:
            return pyccmem.transformers.EncryptedCache(config, activations=self._activations)
        return DynamicCache(config=config)

    def cached(self, cache: Any) -> list[tuple[Any, Any]]:
        """Keys and values of each layer of a cache, of shape (heads, tokens, size): an encrypted
        one's are opened, and wiped when the result is dropped."""
        import torch

        if not self.encrypted:
            return [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        shape = self._shape
        nothing = torch.empty((1, shape.heads, 0, shape.head_size), dtype=self._dtype)
        opened = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.OpenedCacheWarning)
            for number in range(shape.layers):
                keys, values = cache.update(nothing, nothing, number)
                opened.append((keys.plain()[0], values.plain()[0]))
        return opened


def bytes_of(row: Any) -> bytes:
    """Those of a tensor."""
    import torch

    return bytes(row.contiguous().view(torch.uint8).numpy().tobytes())
