# SPDX-License-Identifier: Apache-2.0
"""The attention over a batch of requests: each one's rows over its own tables."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import errors
from ..core.kv_tables import Attention
from .batch_cache import BatchHandle
from .tables import NATIVE_NAMES, plain_like

__all__ = ["attend_batch"]


def attend_batch(
    query: Tensor,
    key: BatchHandle,
    value: Any,
    window: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """`query` is (1, query heads, rows, size), `key` and `value` what update() has returned.

    Returns (1, rows, query heads, size), of which rows that are padding are zeros. Raises
    ArgumentError, ClosedError, IntegrityError, OutOfMemoryError, PlaintextBudgetError.
    """
    if not isinstance(value, BatchHandle) or (key.which, value.which) != (0, 1):
        raise errors.ArgumentError("Keys and values of a batch are handles of one update().")
    if key.runs is not value.runs:
        raise errors.ArgumentError("Keys and values of a batch are handles of one layer.")
    key.check()
    if query.stride(3) != 1:
        query = query.contiguous()
    _, heads, rows, _ = query.shape
    shape = (1, rows, heads, value.shape[3])
    wipes = any(run.tables.wipe for run in key.runs)
    out = plain_like(shape, query.dtype) if wipes else query.new_zeros(shape)
    weights = None if sinks is None else sinks.detach().float().contiguous()
    _, q_head, q_row, _ = query.stride()
    _, out_row, out_head, _ = out.stride()
    q, to, size = query.data_ptr(), out.data_ptr(), query.element_size()
    for run in key.runs:
        run.tables.open().attend(
            Attention(
                layer=run.number,
                query_heads=heads,
                rows=run.end - run.begin,
                q=q + run.begin * q_row * size,
                q_dtype=NATIVE_NAMES[query.dtype],
                q_sequence=0,
                q_head=q_head,
                q_row=q_row,
                out=to + run.begin * out_row * size,
                out_sequence=0,
                out_head=out_head,
                out_row=out_row,
                scale=scale,
                softcap=softcap,
                window=window or key.window,
                sinks=None if weights is None else weights.data_ptr(),
            )
        )
    return out
