# SPDX-License-Identifier: Apache-2.0
"""Resized output embeddings: transformers makes a new layer in the clear and copies the old one's
rows into it. That of an encrypted layer is encrypted before the model gets it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..torch import EncryptedTensor

__all__ = ["resized_head"]


def resized_head(resize: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps PreTrainedModel._get_resized_lm_head()."""

    @functools.wraps(resize)
    def resized(model: Any, old: Any, *args: Any, **kwargs: Any) -> Any:
        new = resize(model, old, *args, **kwargs)
        if new is not old:
            for name in ("weight", "bias"):
                _encrypt(new, name, getattr(old, name, None))
        return new

    return resized


def _encrypt(layer: Any, name: str, like: Any) -> None:
    """Encrypts a parameter in place, with the key of another, and overwrites the plain one."""
    plain = getattr(layer, name, None)
    if not isinstance(like, EncryptedTensor) or plain is None or isinstance(plain, EncryptedTensor):
        return
    made: Any = nn.Parameter(like.detach(), requires_grad=False)
    made.data = plain.data
    setattr(layer, name, made)
    plain.data.zero_()
