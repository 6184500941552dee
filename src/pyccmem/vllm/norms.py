# SPDX-License-Identifier: Apache-2.0
"""vLLM's RMS norms over encrypted vectors.

A model of 24 layers has 49 of them in a step. By the dispatcher an encrypted vector costs each some
100 µs, many times what opening it does, so here it is opened where the norm begins.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from vllm import ir
from vllm.model_executor.layers.layernorm import RMSNorm

from ..torch import EncryptedTensor
from ..torch._tensor import asks_wiping, opened

__all__ = ["open_norms"]


def open_norms(model: torch.nn.Module) -> None:
    """Has the RMS norms of a model with encrypted weights open these themselves. Norms of other
    kinds stay as they are."""
    for layer in model.modules():
        if (
            isinstance(layer, RMSNorm)
            and type(layer).forward_native is RMSNorm.forward_native
            and type(layer.weight) is EncryptedTensor
        ):
            plain: Any = layer
            plain.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor, residual: Tensor | None = None) -> Any:
    """What RMSNorm.forward() does, with a weight that is opened. Raises IntegrityError,
    ClosedError, ForkError, OutOfMemoryError."""
    weight: Any = layer.weight
    if torch.compiler.is_compiling() or type(weight) is not EncryptedTensor or asks_wiping(weight):
        return type(layer).forward(layer, x, residual)
    epsilon, size = layer.variance_epsilon, layer.variance_size_override
    if residual is None:
        return ir.ops.rms_norm(x, opened(weight) if layer.pass_weight else None, epsilon, size)
    return ir.ops.fused_add_rms_norm.maybe_inplace(
        x, residual, opened(weight) if layer.pass_weight_add else None, epsilon, size
    )
