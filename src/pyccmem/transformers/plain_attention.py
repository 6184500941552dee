# SPDX-License-Identifier: Apache-2.0
"""The attention "pyccmem" over plain keys and values: of encoders, and of models that compute
their keys and values from what is in the cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .masks import Mask, reach

__all__ = ["attend_plain"]


def attend_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    window: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """softmax(scale * q k^T) v for tensors of shape (sequences, heads, rows or tokens, size), with
    torch's own operators; the result is (sequences, rows, heads, size). `mask` is boolean or is
    added; `causal` and `window` hold where it is None."""
    if isinstance(mask, Mask):
        mask = mask.plain()
    rows, tokens = query.shape[2], key.shape[2]
    straight = causal and mask is None and rows == tokens and not window
    if mask is None and not straight and (window or (causal and rows > 1)):
        mask = reach(rows, tokens, window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
    if softcap or sinks is not None:
        if straight:
            mask = reach(rows, tokens, 0)
        out = _computed(query, key, value, mask, scale, softcap, sinks)
    else:
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype),
            dropout_p=dropout,
            scale=scale,
            is_causal=straight and rows > 1,
        )
    return out.transpose(1, 2).contiguous()


def _computed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """With what SDPA has not: scores in float32, cut off before the mask is added."""
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        else:
            scores = scores + mask
    if sinks is not None:
        extra = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, extra), 3)
    weights = torch.softmax(scores, 3)[..., : key.shape[2]]
    return torch.matmul(torch.nan_to_num(weights), value.float()).to(query.dtype)
