# SPDX-License-Identifier: Apache-2.0
"""The attention implementation "pyccmem": over the ciphertext of an EncryptedCache.

What a model passes has a meaning here, or is known to have none, or is refused: an attention that
ignores a keyword computes something else than the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from .. import errors
from ..core.kv_tables import Attention
from .batch_attention import attend_batch
from .batch_cache import BatchHandle
from .deferred import uncompiled
from .handles import Handle
from .masks import Mask, mask_for
from .plain_attention import attend_plain
from .tables import NATIVE_NAMES, plain_like

__all__ = ["NAME", "attention", "register"]

#: Of both interfaces: where transformers finds no mask function of an attention's name, it makes no
#: mask at all.
NAME = "pyccmem"

#: Keywords that say nothing to an attention, as models pass them on.
_WITHOUT_MEANING = frozenset(
    "position_ids use_cache output_hidden_states output_router_logits return_dict "
    "num_items_in_batch deterministic cache_position logits_to_keep token_type_ids "
    "is_first_iteration".split()
)

#: What continuous batching adds to them, and update() has heard already.
_OF_A_BATCH = frozenset(
    "cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k read_index write_index block_table "
    "logits_indices logits_processor_args".split()
)


def register() -> None:
    """Makes the name known to transformers."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_for)


@uncompiled
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers' models call. `query` is (sequences, query heads, rows, size); `key` and
    `value` are handles of an EncryptedCache or of a batch's EncryptedPagedCache, or plain. Returns
    (sequences, rows, query heads, size) and no weights.

    Raises ArgumentError for a keyword that it does not know, for dropout over a cache and for
    output_attentions; IntegrityError, ClosedError, OutOfMemoryError.
    """
    if isinstance(key, BatchHandle):
        others = {name: one for name, one in others.items() if name not in _OF_A_BATCH}
    _refuse_unknown(others)
    if s_aux is not None and sinks is not None:
        raise errors.ArgumentError("An attention has s_aux or sinks, not both: they are the same.")
    if s_aux is None:
        s_aux = sinks
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query.shape[3] ** -0.5 if scaling is None else float(scaling)
    window = int(sliding_window or 0)
    mask = attention_mask
    if isinstance(key, BatchHandle):
        if mask is not None or position_bias is not None or dropout or not causal:
            raise errors.ArgumentError(
                "A batch of continuous batching has causal attention without masks, biases and "
                "dropout; use generate() for this model."
            )
        return attend_batch(query, key, value, window, scale, float(softcap or 0.0), s_aux), None
    if position_bias is not None:
        mask = _biased(position_bias, mask, causal, query.shape[2], key.shape[2])
    handle = _of_one_layer(key, value)
    if handle is None:
        out = attend_plain(
            query,
            key.plain() if isinstance(key, Handle) else key,
            value.plain() if isinstance(value, Handle) else value,
            mask,
            causal=causal,
            window=window if causal else 0,
            scale=scale,
            softcap=float(softcap or 0.0),
            sinks=s_aux,
            dropout=dropout,
        )
        return out, None
    if dropout:
        raise errors.ArgumentError(
            f"dropout={dropout} over an EncryptedCache, which is for inference; call model.eval()."
        )
    return _attend(query, handle, mask, causal, window, scale, float(softcap or 0.0), s_aux), None


def _refuse_unknown(others: dict[str, Any]) -> None:
    for name, given in others.items():
        if given is None or given is False or name in _WITHOUT_MEANING:
            continue
        if name == "output_attentions":
            raise errors.ArgumentError(
                'The attention "pyccmem" keeps no weights to return; load the model with '
                'attn_implementation="eager" for output_attentions=True.'
            )
        raise errors.ArgumentError(
            f"This model gives its attention {name}=..., which the attention "
            f'"pyccmem" does not know; use attn_implementation="eager" with it.'
        )


def _of_one_layer(key: Tensor, value: Tensor) -> Handle | None:
    """The first of two handles as one update() has returned them; None for anything else."""
    if not (isinstance(key, Handle) and isinstance(value, Handle)):
        return None
    both = (key.which, value.which) == (0, 1) and key.first == value.first
    return key if both and key.layer is value.layer else None


def _biased(bias: Tensor, mask: Tensor | None, causal: bool, rows: int, tokens: int) -> Tensor:
    """A bias of shape (1 or sequences, heads, rows, tokens) and a mask as one float32 mask."""
    bias = bias.float()
    if mask is None:
        if not causal or rows == 1:
            return bias
        return bias.masked_fill(~torch.ones(rows, tokens).tril(tokens - rows).bool(), -torch.inf)
    matrix = mask.plain() if isinstance(mask, Mask) else mask
    if matrix.dtype == torch.bool:
        return torch.where(matrix, bias, -torch.inf)
    return bias + matrix


def _attend(
    query: Tensor,
    key: Handle,
    mask: Tensor | None,
    causal: bool,
    window: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Over the layer that the handle is of."""
    key.check()
    layer = key.layer
    sequences, query_heads, rows, _ = query.shape
    if query.stride(3) != 1:
        query = query.contiguous()
    shape = (sequences, rows, query_heads, layer.sizes[1])
    out = plain_like(shape, query.dtype) if layer.tables.wipe else query.new_empty(shape)
    kept: list[Tensor] = [query]
    if isinstance(mask, Mask) and mask.shape[3] == key.shape[2]:
        what: dict[str, Any] = {"causal": mask.causal, "window": mask.window}
        if mask.spans is not None:
            what["from_"], what["to"] = mask.spans  # arrays, which live as long as the mask
    elif mask is not None:
        mask = mask.plain() if isinstance(mask, Mask) else mask
        what = {"causal": False, **_matrix(mask, key, kept)}
    elif causal:
        what = {"causal": True, "window": window or layer.window or 0}
    else:
        what = {"causal": False}
        if key.first:
            what["from_"] = np.full(sequences, key.first, np.uint64)
    if sinks is not None:
        kept.append(sinks.detach().float().contiguous())
        what["sinks"] = kept[-1].data_ptr()
    q_sequence, q_head, q_row, _ = query.stride()
    out_sequence, out_row, out_head, _ = out.stride()
    layer.tables.open().attend(
        Attention(
            layer=layer.number,
            sequences=sequences,
            query_heads=query_heads,
            rows=rows,
            q=query.data_ptr(),
            q_dtype=NATIVE_NAMES[query.dtype],
            q_sequence=q_sequence,
            q_head=q_head,
            q_row=q_row,
            out=out.data_ptr(),
            out_sequence=out_sequence,
            out_head=out_head,
            out_row=out_row,
            scale=scale,
            softcap=softcap,
            **what,
        )
    )
    return out


def _matrix(mask: Tensor, key: Handle, kept: list[Tensor]) -> dict[str, Any]:
    """A mask of shape (1 or sequences, 1 or heads, rows, tokens) as the native call takes it: added
    in float32, with a value for each token that has not been evicted."""
    tokens = key.shape[2]
    if mask.dim() != 4 or mask.shape[3] < tokens:
        raise errors.ArgumentError(
            f"A mask of shape {tuple(mask.shape)} for {tokens} tokens; it has to be (sequences, "
            f"heads or 1, rows, tokens)."
        )
    mask = mask[..., :tokens]
    there = key.layer.first_kept()[0]
    # What is there, and that the mask says nothing about, is hidden.
    hidden = key.first - there
    values = torch.full((*mask.shape[:3], hidden + tokens), -torch.inf)
    if mask.dtype == torch.bool:
        values[..., hidden:].masked_fill_(mask, 0.0)
    else:
        values[..., hidden:] = mask
    kept.append(values)
    sequence, head, row, _ = values.stride()
    return {
        "mask": values.data_ptr() - there * values.element_size(),
        "mask_sequence": sequence if values.shape[0] > 1 else 0,
        "mask_head": head if values.shape[1] > 1 else 0,
        "mask_row": row if values.shape[2] > 1 else 0,
        "mask_tokens": there + hidden + tokens,
    }
