# SPDX-License-Identifier: Apache-2.0
"""What a generate() of a protected model does with a cache that the caller has kept: it uses what
the cache has of the text, and makes it fit."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from .. import errors
from .cache import EncryptedCache

__all__ = ["GivenCache", "refuse_plain"]


def refuse_plain(cache: Any) -> None:
    """Raises ArgumentError for a cache with a part that is not encrypted."""
    parts = [cache]
    if isinstance(cache, EncoderDecoderCache):
        parts = [cache.self_attention_cache, cache.cross_attention_cache]
    for part in parts:
        if not isinstance(part, EncryptedCache):
            raise errors.ArgumentError(
                f"A {type(part).__name__} would keep the input in the clear; pass an "
                f"EncryptedCache, or none, or call pyccmem.transformers.unprotect_inputs(model)."
            )


class GivenCache:
    """The cache in the arguments of one generate(), if there is one."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = kwargs.get("cache")
        if found is None:
            found = kwargs.get("past_key_values")
        self.cache = found if isinstance(found, Cache) else None
        first = args[0] if args else kwargs.get("inputs")
        ids = first if first is not None else kwargs.get("input_ids")
        self.ids = ids if isinstance(ids, Tensor) and ids.dim() == 2 else None
        self.mask = kwargs.get("attention_mask")
        #: The ids are of the whole text, and none of them is padding.
        self.whole = False

    def reuse(self) -> None:
        """Crops the cache to what it has of the text that is given. Raises ArgumentError."""
        cache, ids, mask = self.cache, self.ids, self.mask
        if cache is None:
            return
        refuse_plain(cache)
        if not isinstance(cache, EncryptedCache) or ids is None or ids.is_floating_point():
            return
        if mask is not None and (mask.shape != ids.shape or not bool(mask.all())):
            return  # the ids are new ones alone, or padded: what is cached is the caller's to know
        past = cache.get_seq_length()
        self.whole = True
        if not past:
            return
        if cache.remembers:
            cache.reuse(ids)
        elif ids.shape[1] <= past:
            raise errors.ArgumentError(
                f"The cache has {past} tokens of a text that is not known, and input_ids "
                f"{ids.shape[1]}: pass the ids of the whole text, or an attention_mask that covers "
                f"the cached tokens as well, or tell the cache by cache.remember(ids)."
            )

    def begin_anew(self) -> None:
        """For assisted generation, which computes the whole text whatever a cache has of it. Raises
        ArgumentError where the ids are not those of the whole text."""
        cache = self.cache
        if not isinstance(cache, EncryptedCache) or not cache.get_seq_length():
            return
        if not self.whole:
            raise errors.ArgumentError(
                "Assisted generation computes all of the text: with a cache that has a part of it, "
                "pass the ids of the whole text, without padding."
            )
        cache.reset()

    def fit(self, sequences: int, copies: int) -> None:
        """Expands a cache of `sequences` sequences for so many beams or results of each. Raises
        ArgumentError for a cache of another number."""
        cache = self.cache
        if not isinstance(cache, EncryptedCache) or not cache.get_seq_length():
            return
        there = cache.batch_size
        if there == sequences and copies > 1:
            cache.batch_repeat_interleave(copies)
        elif there != sequences * copies:
            raise errors.ArgumentError(
                f"The cache has {there} sequences, and generate() works on {sequences} x {copies} "
                f"(num_beams, num_return_sequences); use a cache of its own for each input, "
                f"cache.fork() where they begin alike."
            )

    def remember(self, cache: Any, result: Any) -> None:
        """Notes the text that the cache is of now, where `result`, of generate(), says it."""
        if not isinstance(cache, EncryptedCache) or cache.erased:
            return
        sequences = result if isinstance(result, Tensor) else getattr(result, "sequences", None)
        tokens = cache.get_seq_length()
        if (
            (self.whole or (self.cache is None and self._unpadded()))
            and isinstance(sequences, Tensor)
            and getattr(result, "beam_indices", None) is None
            and sequences.shape[0] == cache.batch_size
            and sequences.shape[1] >= tokens
        ):
            cache.remember(sequences)

    def _unpadded(self) -> bool:
        return self.ids is not None and (self.mask is None or bool(self.mask.all()))
