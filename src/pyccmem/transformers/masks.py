# SPDX-License-Identifier: Apache-2.0
"""The masks of the attention "pyccmem": as few numbers as say the same, where there are such.

transformers asks the mask function once for each kind of layer. A plain causal mask is None, as for
SDPA. One with a sliding window or padding at the ends of sequences becomes a Mask, whose matrix is
made only if somebody other than pyccmem's attention looks at it. Anything else is a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from .deferred import Deferred, uncompiled

__all__ = ["Mask", "mask_for", "reach"]

Spans = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


class Mask(Deferred):
    """A mask of shape (sequences, 1, rows, tokens), true where a row sees a token.

    Row r of R sees, of a sequence of L tokens, those up to L - R + r if `causal`, of these the last
    `window` if that is not 0, and of these the ones in [`spans`[0][s], `spans`[1][s]), counted from
    the sequence's first token, if there are spans.
    """

    causal: bool
    window: int
    spans: Spans | None
    _matrix: Callable[[], Tensor]

    def noun(self) -> str:
        return "a mask that is made when it is looked at"

    def plain(self) -> Tensor:
        return self._matrix()


@uncompiled
def mask_for(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> Tensor | None:
    """What transformers calls for a mask, with its arguments (masking_utils.sdpa_mask)."""
    sizes = (batch_size, q_length, kv_length, q_offset, kv_offset)

    def matrix() -> Tensor:
        made: Tensor = sdpa_mask(
            *sizes,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            **options,
        )
        return made

    causal = _is_causal(mask_function, local_size, kv_offset + kv_length, allow_is_causal_skip)
    if causal is None:
        return matrix()
    in_pieces, spans = _spans(attention_mask, kv_offset + kv_length)
    if in_pieces:
        return matrix()
    # The rows of a native call are the last of the sequence.
    if causal and q_offset + q_length != kv_offset + kv_length:
        return matrix()
    window = local_size if causal and local_size is not None else 0
    if window >= kv_offset + kv_length:
        window = 0
    may_skip = allow_is_causal_skip if causal else allow_is_bidirectional_skip
    if may_skip and not window and spans is None:
        return None
    made: Mask = Mask.standing_for((batch_size, 1, q_length, kv_length), torch.bool)
    made.causal = causal
    made.window = window
    made.spans = spans
    made._matrix = matrix
    return made


def _is_causal(function: Any, local_size: int | None, tokens: int, unchanged: bool) -> bool | None:
    """Whether a mask is causal, with a window of `local_size`; None: it is of another kind.
    `unchanged`: transformers has put nothing over the function that it is."""
    if local_size is None:
        if function is causal_mask_function:
            return True
        return False if function is bidirectional_mask_function else None
    if not unchanged:
        return None
    # A sliding window, or a chunk: in a chunk, token 1 is not seen from the first of the next one.
    if local_size >= tokens or _sees(function, local_size, 1):
        return True
    return None


def _sees(function: Any, row: int, token: int) -> bool:
    """Whether a row at a position sees a token, in the first sequence."""
    nothing = torch.zeros((), dtype=torch.long)
    return bool(function(nothing, nothing, nothing + row, nothing + token))


def _spans(attention_mask: Tensor | None, tokens: int) -> tuple[bool, Spans | None]:
    """Which tokens of each sequence a padding mask of shape (sequences, tokens) leaves: whether
    they are in pieces, and if not, from which to which; None for all."""
    if attention_mask is None:
        return False, None
    seen = attention_mask.to(torch.bool)[:, :tokens]
    if seen.shape[1] == tokens and bool(seen.all()):
        return False, None
    counts = seen.sum(1)
    first = seen.int().argmax(1)
    last = seen.shape[1] - seen.flip(1).int().argmax(1)
    if not bool(((last - first == counts) | (counts == 0)).all()):
        return True, None
    last = torch.where(counts == 0, first, last)
    return False, (first.numpy().astype(np.uint64), last.numpy().astype(np.uint64))


def reach(rows: int, tokens: int, window: int) -> Tensor:
    """The matrix (rows, tokens) of a causal mask, lower right, with a window unless that is 0: for
    an attention over plain keys and values that got no matrix."""
    position = torch.arange(tokens - rows, tokens)[:, None]
    token = torch.arange(tokens)[None, :]
    seen = token <= position
    return seen & (token > position - window) if window else seen
