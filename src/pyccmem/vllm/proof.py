# SPDX-License-Identifier: Apache-2.0
"""The proof at start: looks at what lies in memory."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from .. import errors
from ..core.kv_tables import KVTables, Rows
from ..core.operand import place_of
from ..quantized import QuantizedTensor
from ..torch import EncryptedTensor
from ..torch._tensor import ciphertext
from .weights import LayerWeights

__all__ = ["check_attention", "check_cache", "check_weights", "is_hidden"]

#: They would pack weights for kernels of vLLM's own.
_PLAIN_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)

_logger = init_logger(f"vllm.{__name__}")  # below the one that vLLM shows


def check_weights(model: nn.Module, weights: dict[str, LayerWeights]) -> None:
    """Raises ArgumentError unless every parameter of the model is encrypted, and what lies in
    memory of one of them differs from what it stands for."""
    left = [
        name
        for name, one in model.named_parameters()
        if not one.is_meta and not isinstance(one, EncryptedTensor)
    ]
    left += [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "quant_method", None), _PLAIN_METHODS)
    ]
    if left or not weights:
        raise errors.ArgumentError(
            f"These parameters would stay plain: {', '.join(left[:8]) or 'all'}; pyccmem.vllm does "
            f"not serve this model."
        )
    parts = [part for one in weights.values() for part in one]
    look = min(parts, key=lambda part: part.numel())
    if not _differs(look):
        raise errors.ArgumentError(
            "What lies in memory for a weight is the weight itself; this is a fault of pyccmem."
        )
    _logger.info(
        "pyccmem: %d matrices of %d layers are encrypted; one was looked at, and lies in memory as "
        "ciphertext.",
        len(parts),
        len(weights),
    )


def check_attention(layers: dict[str, Any]) -> None:
    """Raises ArgumentError unless each of vLLM's layers with a cache has an encrypted one."""
    left = [
        name
        for name, layer in layers.items()
        if not isinstance(layer, MoERunner)  # its weights are among the parameters
        and not getattr(getattr(layer, "impl", None), "encrypted", False)
    ]
    if left or not layers:
        raise errors.ArgumentError(
            f"These layers would keep keys and values, or a state, in the clear: "
            f"{', '.join(left[:8]) or 'all'}; pyccmem.vllm does not serve this model."
        )


def check_cache() -> None:
    """Seals known rows as the attention does, and raises ArgumentError unless they differ from what
    then lies in memory."""
    tokens, size = 64, 32
    states = torch.arange(tokens * size, dtype=torch.float32).view(1, 1, tokens, size)
    plain = states.view(torch.uint8).flatten()[:4096]
    tables = KVTables(1)
    try:
        layer = tables.add_layer("float32", 1, size, size)
        rows = Rows(states.data_ptr(), "float32", 0, 0, size)
        tables.append(layer, rows, rows, tokens)
        places = tables.places(layer, 0)
        lies = b"".join(ctypes.string_at(place.data, place.nbytes) for place in places)
    finally:
        tables.close()
    if not is_hidden(plain, torch.frombuffer(bytearray(lies), dtype=torch.uint8)):
        raise errors.ArgumentError(
            "What lies in memory for keys and values is their rows; this is a fault of pyccmem."
        )
    _logger.info("pyccmem: keys and values are encrypted; a block was looked at.")


def _differs(part: EncryptedTensor) -> bool:
    """Returns True if nothing of the first row of a weight is where it lies; of a quantised one, of
    its first blocks."""
    blocks: Any = part.core
    if isinstance(blocks, QuantizedTensor):
        return _differs(EncryptedTensor.from_core(blocks.raw))
    first_row: Any = part[:1]
    row = first_row.decrypt().contiguous()
    first = place_of(part.core)[1]
    try:
        return is_hidden(
            row.view(-1).view(torch.uint8)[:4096], ciphertext(part)[first : first + 2 * 4096]
        )
    finally:
        row.zero_()


def is_hidden(plain: Tensor, lies: Tensor) -> bool:
    """Returns True if no 16 bytes of `plain`, from a multiple of 16 on, are in `lies`; both are of
    uint8. Makes no copy of them, which would stay in freed memory."""
    if len(plain) < 16 or len(lies) < 16:
        return False
    windows = lies.unfold(0, 16, 1)
    return not any(
        bool((windows == plain[at : at + 16]).all(1).any()) for at in range(0, len(plain) - 15, 16)
    )
