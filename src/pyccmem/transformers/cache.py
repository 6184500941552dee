# SPDX-License-Identifier: Apache-2.0
"""EncryptedCache: the cache that generate() takes, with keys and values as ciphertext."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    EncoderDecoderCache,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)

from .. import errors, keys
from ..counters import CacheStats
from ..keys import Key
from ..torch._results import wipes
from .deferred import uncompiled
from .ids import RememberedIds
from .layers import EncryptedLayer, EncryptedSlidingLayer
from .tables import Tables

__all__ = ["EncryptedCache", "EncryptedEncoderDecoderCache"]

_SLIDING = ("sliding_attention", "chunked_attention")
_RECURRENT = ("linear_attention", "conv")


class _Erasable:
    """What both kinds of caches have in common."""

    def close(self) -> None:
        raise NotImplementedError

    def fork(self) -> Any:
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """fork(): what is in it is shared, and neither changes the other."""
        return self.fork()

    def __iter__(self) -> NoReturn:
        raise errors.ArgumentTypeError(
            "An EncryptedCache cannot be iterated over: its keys and values would lie in the "
            "clear. Data-parallel models and legacy code need a plain DynamicCache."
        )

    def _refuse_copy(self, *_: Any) -> NoReturn:
        raise errors.NotPicklableError(
            "An EncryptedCache cannot be pickled or exported: its key stays in this process. "
            "cache.fork() makes another one with the same contents."
        )

    __reduce__ = _refuse_copy
    __reduce_ex__ = _refuse_copy
    __copy__ = _refuse_copy


class EncryptedCache(_Erasable, Cache):  # type: ignore[misc]
    """A cache for model.generate(cache=...) and model(cache=...) whose keys and values lie in
    memory as ciphertext, under a random key of its own.

    `config`, the model's, says which layers have sliding windows, as for DynamicCache; without one
    all layers keep all tokens. `key`: where the cache's own key lies is at least as well protected
    as that pyccmem.Key, which must be open; nothing is derived from it. `dtype="int8"` stores
    integers with a scale for each token and head: half the memory of bfloat16, a little less exact.
    `plain_states=True` accepts hybrid models although their recurrent states stay plain.
    `overwrite=True`: update() makes zeros of the keys and values that it is given, in place, once
    they are sealed. No model of transformers uses them afterwards, and torch would leave them in
    memory that it frees. A protected model, see protect_inputs(), sets it for each cache that it
    works with.

    `activations="wiped"`: what the attention "pyccmem" returns lies in memory that is wiped when it
    is freed, as pyccmem.torch.encrypt_module(activations="wiped") has it.

    Beams, crop(), fork() and copy.deepcopy() share what is sealed. erase() destroys the key at
    once; reset(), close(), the end of a `with` block and of the last reference do so unless forks
    share it.

    Raises ArgumentError, ArgumentTypeError; the first update raises what pyccmem.Key.generate()
    does.
    """

    def __init__(
        self,
        config: Any = None,
        *,
        key: Key | None = None,
        dtype: str | None = None,
        plain_states: bool = False,
        overwrite: bool = False,
        activations: str = "plain",
    ) -> None:
        if dtype not in (None, "int8"):
            raise errors.ArgumentError(
                f"dtype is {dtype!r}; it is None (the type of the model) or 'int8'."
            )
        self._tables = Tables(dtype, _checked(key))
        self._tables.overwrite = overwrite
        self._tables.wipe = wipes(activations)
        self._ids: RememberedIds | None = None
        if config is None:
            super().__init__(layer_class_to_replicate=partial(EncryptedLayer, self._tables))
        else:
            super().__init__(layers=_layers(config, self._tables, plain_states))

    @classmethod
    def _of(cls, tables: Tables, layers: list[Any]) -> EncryptedCache:
        new = cls.__new__(cls)
        new._tables, new._ids = tables, None
        Cache.__init__(new, layers=layers)
        return new

    # ---- keys and values ----

    @uncompiled
    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Seals keys and values; returns handles, which the attention "pyccmem" takes. See
        EncryptedLayer.update()."""
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens: as many as a negative number says. On ArgumentError nothing has
        changed; after any other failure the cache is erased, since its layers would differ."""
        for layer in self.layers:
            if isinstance(layer, EncryptedLayer):
                layer.check_crop(tokens_to_remove)
            elif isinstance(layer, LinearAttentionLayer) and not (
                layer.record_past and layer.is_croppable
            ):
                raise errors.ArgumentError(
                    "This cache has recurrent states, which cannot be rolled back, or of which the "
                    "past was not recorded; begin anew with cache.reset()."
                )
        with self._together():
            super().crop(tokens_to_remove)
        if self._ids is not None and self.get_seq_length() < self._ids.tokens:
            self._ids.crop(self.get_seq_length())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes sequence i what sequence beam_idx[i] was."""
        self._forget_ids()
        with self._together():
            super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Makes `repeats` sequences of each, side by side."""
        if repeats < 1:
            raise errors.ArgumentError(f"repeats is {repeats}; it is 1 or more.")
        self._forget_ids()
        with self._together():
            super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the sequences with these numbers, or where a mask is true."""
        self._forget_ids()
        with self._together():
            super().batch_select_indices(indices)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """All layers change, or the cache is erased."""
        try:
            yield
        except BaseException:
            self.erase()
            raise

    # ---- ends and beginnings ----

    def reset(self) -> None:
        """Empties the cache. The key is destroyed, unless forks share it; the next update begins
        under a new one."""
        self._drop(for_good=False, forks=False)

    def close(self) -> None:
        """Ends the cache, and destroys the key unless forks share it: the last of them does. Later
        updates raise ClosedError. May be repeated."""
        self._drop(for_good=True, forks=False)

    def erase(self) -> None:
        """Destroys the key, and with it at once all that was ever sealed in this cache and in its
        forks. Later updates raise ClosedError. May be repeated."""
        self._drop(for_good=True, forks=True)

    def _drop(self, *, for_good: bool, forks: bool) -> None:
        self._forget_ids()
        for layer in self.layers:
            if isinstance(layer, EncryptedLayer):
                layer.forget()
            else:
                layer.reset()
        self._tables.drop(for_good=for_good, forks=forks)

    @property
    def erased(self) -> bool:
        """True after close() and erase()."""
        return self._tables.erased

    @property
    def overwrite(self) -> bool:
        """Whether update() makes zeros of what it is given; may be set."""
        return self._tables.overwrite

    @overwrite.setter
    def overwrite(self, value: bool) -> None:
        self._tables.overwrite = value

    def fork(self) -> EncryptedCache:
        """Another cache with the same contents, which it shares: what is added to one is not in
        the other. Both are under one key, which ends with erase() of either, or with the last.

        Raises ArgumentError for a cache with plain states, ClosedError, OutOfMemoryError.
        """
        if any(isinstance(layer, LinearAttentionLayer) for layer in self.layers):
            raise errors.ArgumentError("A cache with plain recurrent states has no fork().")
        tables = self._tables.forked()
        layers = [
            layer.forked(tables) if isinstance(layer, EncryptedLayer) else layer
            for layer in self.layers
        ]
        new = self._of(tables, layers)
        if self.layer_class_to_replicate is not None:
            new.layer_class_to_replicate = partial(EncryptedLayer, tables)
        if self._ids is not None:
            new._ids = self._ids.copied()
        return new

    def stats(self) -> CacheStats:
        """Returns the counters of the native tables; zeros before the first update."""
        return self._tables.stats() or CacheStats(
            blocks=0,
            records=0,
            ciphertext_bytes=0,
            memory_bytes=0,
            sealed=0,
            opened=0,
            integrity_failures=0,
        )

    # ---- the text that is in the cache ----

    def remember(self, input_ids: Tensor) -> None:
        """Notes, encrypted, of which token ids, shape (sequences, tokens), this cache has the keys
        and values: as many of the first ones as it has tokens. Raises ArgumentError."""
        tokens = self.get_seq_length()
        if input_ids.dim() != 2 or input_ids.shape[1] < tokens:
            raise errors.ArgumentError(
                f"The cache has {tokens} tokens, and input_ids the shape "
                f"{tuple(input_ids.shape)}; pass the ids of all of them, (sequences, tokens)."
            )
        self._forget_ids()
        if tokens:
            self._ids = RememberedIds(input_ids[:, :tokens])

    @property
    def remembers(self) -> bool:
        """True when it is known which ids the cache is of."""
        return self._ids is not None and self._ids.tokens == self.get_seq_length()

    def reuse(self, input_ids: Tensor) -> int:
        """Crops the cache to what it has of the text that begins with these ids, shape (sequences,
        tokens): the longest common beginning, and less than all of the text, since its last token
        has to be computed. Returns how many tokens are kept.

        Raises ArgumentError when the ids are not known, see remember(), or differ in number of
        sequences.
        """
        tokens = self.get_seq_length()
        if not tokens:
            return 0
        if not self.remembers or self._ids is None:
            raise errors.ArgumentError(
                "It is not known which token ids this cache is of; call cache.remember(ids) after "
                "each turn."
            )
        kept = min(self._ids.common(input_ids), input_ids.shape[1] - 1)
        if kept == 0:
            self.reset()
        elif kept < tokens:
            try:
                self.crop(kept - tokens)
            except errors.ArgumentError:  # a window has moved on: from the beginning
                self.reset()
                return 0
        return kept

    def _forget_ids(self) -> None:
        ids, self._ids = self._ids, None
        if ids is not None:
            ids.close()


class EncryptedEncoderDecoderCache(_Erasable, EncoderDecoderCache):  # type: ignore[misc]
    """The cache of an encoder-decoder: an EncryptedCache for the decoder's own tokens, and one for
    the encoder's output, which has no sliding windows. Arguments as for EncryptedCache."""

    def __init__(
        self,
        config: Any,
        *,
        key: Key | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
        activations: str = "plain",
    ) -> None:
        own = EncryptedCache(
            config, key=key, dtype=dtype, overwrite=overwrite, activations=activations
        )
        tables = Tables(dtype, _checked(key))
        tables.overwrite, tables.wipe = overwrite, wipes(activations)
        cross = [EncryptedLayer(tables, cross=True) for _ in own.layers]
        super().__init__(own, EncryptedCache._of(tables, cross))

    def check_dynamic_cache(self, method: str) -> None:
        """Both are what crop() and the like need."""

    def close(self) -> None:
        """EncryptedCache.close() of both."""
        self.self_attention_cache.close()
        self.cross_attention_cache.close()

    def erase(self) -> None:
        """EncryptedCache.erase() of both."""
        self.self_attention_cache.erase()
        self.cross_attention_cache.erase()

    @property
    def erased(self) -> bool:
        """True after close() and erase()."""
        return bool(self.self_attention_cache.erased and self.cross_attention_cache.erased)

    def fork(self) -> EncryptedEncoderDecoderCache:
        """EncryptedCache.fork() of both."""
        new = type(self).__new__(type(self))
        EncoderDecoderCache.__init__(
            new, self.self_attention_cache.fork(), self.cross_attention_cache.fork()
        )
        return new


def _checked(key: Key | None) -> Key | None:
    """The key. Raises ArgumentTypeError, ClosedError, ForkError."""
    if key is not None and not isinstance(key, Key):
        raise errors.ArgumentTypeError(f"key must be a pyccmem.Key, not {type(key).__name__}.")
    if key is not None:
        keys.check_open(key)
    return key


def _layers(config: Any, tables: Tables, plain_states: bool) -> list[Any]:
    """A layer for each of the decoder's."""
    kinds, options = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    other = sorted({k for k in kinds if k not in ("full_attention", "dummy", *_SLIDING)})
    unknown = [kind for kind in other if kind not in _RECURRENT]
    if unknown:
        raise errors.ArgumentError(
            f"This model has layers of the kind {', '.join(unknown)}, whose states an "
            f"EncryptedCache cannot hold."
        )
    if other and not plain_states:
        raise errors.ArgumentError(
            f"This model has layers of the kind {', '.join(other)}: their recurrent states, which "
            f"tell of the input as well, would stay plain. EncryptedCache(config, "
            f"plain_states=True) accepts that, and encrypts the other layers."
        )
    if other:
        warnings.warn(
            f"The recurrent states of {sum(k in _RECURRENT for k in kinds)} of {len(kinds)} layers "
            f"stay plain.",
            errors.PlainTensorsWarning,
            stacklevel=3,
        )
    return [_layer(kind, given, tables) for kind, given in zip(kinds, options, strict=True)]


def _layer(kind: str, options: dict[str, Any], tables: Tables) -> Any:
    if kind in _SLIDING:
        return EncryptedSlidingLayer(tables, options["sliding_window"])
    if kind == "dummy":
        return DummyLayer()
    if kind in _RECURRENT:
        return LinearAttentionLayer(**options)
    return EncryptedLayer(tables)
