# SPDX-License-Identifier: Apache-2.0
"""The layers of an EncryptedCache: those that keep all tokens, and those with a sliding window."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from .. import errors
from .handles import Handle, handle
from .tables import NATIVE_NAMES, Tables, overwrite, rows_of

__all__ = ["EncryptedLayer", "EncryptedSlidingLayer", "check_kind", "refuse_training"]


class EncryptedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer. `cross` marks that of a cross-attention, whose keys and values models take from
    the layer itself once the encoder's output is in it."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    #: Tokens that a row sees up to its own; None: all.
    window: int | None = None

    def __init__(self, tables: Tables, *, cross: bool = False) -> None:
        # Not the base's, which would set keys and values.
        self.tables = tables
        self.cross = cross
        self.is_initialized = False
        self.stamp = 0
        self.number = -1
        self._tokens = 0
        self._sequences = 0
        self._heads = 0
        self._sizes = (0, 0)
        self._dtype = torch.float32

    # ---- what transformers asks ----

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Adds the layer to the tables. Raises ArgumentError, ArgumentTypeError for what they do
        not take, and what KVTables() raises."""
        check_kind(key_states, value_states)
        sequences, heads, _, key_size = key_states.shape
        native = self.tables.made(sequences)
        name = self.tables.dtype or NATIVE_NAMES[key_states.dtype]
        self.number = native.add_layer(name, heads, key_size, value_states.shape[3])
        self._sequences, self._heads = sequences, heads
        self._sizes = (key_size, value_states.shape[3])
        self._dtype = key_states.dtype
        self._tokens = 0
        self.stamp += 1
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Handle, Handle]:
        """Seals keys and values of shape (sequences, heads, tokens, size) behind what there is.

        Returns handles to the keys and to the values that an attention of these tokens sees.
        Raises ArgumentError, ArgumentTypeError, ClosedError, IntegrityError, OutOfMemoryError,
        VersionExhaustedError.
        """
        refuse_training(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check_same(key_states, value_states)
        tokens = key_states.shape[2]
        native = self.tables.open()
        self._before_append()
        if tokens:
            keys, key_copy = rows_of(key_states)
            values, value_copy = rows_of(value_states)
            try:
                native.append(self.number, keys, values, tokens)
            finally:
                for states, copy in ((key_states, key_copy), (value_states, value_copy)):
                    if copy is not states:
                        overwrite(copy)
                    if self.tables.overwrite:
                        overwrite(states)
        self._tokens += tokens
        self.stamp += 1
        return self._handles(self._first_seen(tokens))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that the next attention sees, and the position of the first of them."""
        return self._tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self._tokens

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes sequence i what sequence beam_idx[i] was."""
        if self.is_initialized:
            self._reorder(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Makes `repeats` sequences of each, side by side."""
        if self.is_initialized:
            self._reorder([s for s in range(self._sequences) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the sequences with these numbers, or where a mask is true."""
        if self.is_initialized:
            self._reorder(torch.arange(self._sequences)[indices.cpu()].tolist())

    def check_crop(self, tokens_to_remove: int) -> int:
        """The tokens that would stay. Raises ArgumentError for what cannot be done."""
        if tokens_to_remove > 0:
            raise errors.ArgumentError(
                f"crop({tokens_to_remove}) meant tokens to keep in earlier versions of "
                f"transformers; pass a negative number, of tokens to remove."
            )
        if -tokens_to_remove > self._tokens and self.is_initialized:
            raise errors.ArgumentError(
                f"crop({tokens_to_remove}) would remove more tokens than the {self._tokens} that "
                f"this layer has."
            )
        return self._tokens + tokens_to_remove

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, as many as the negative number says. Raises ArgumentError,
        ClosedError, IntegrityError; see EncryptedCache.crop()."""
        kept = self.check_crop(tokens_to_remove)
        if not self.is_initialized or kept == self._tokens:
            return
        native = self.tables.open()
        for sequence in range(self._sequences):
            native.crop(self.number, sequence, kept)
        self._tokens = kept
        self.stamp += 1

    @property
    def keys(self) -> Handle | None:
        """Of a cross-attention a handle, None before there is one. Raises ArgumentError else."""
        return self._exposed(0)

    @property
    def values(self) -> Handle | None:
        """As keys."""
        return self._exposed(1)

    @property
    def batch_size(self) -> int:
        """Sequences; AttributeError before the first update, as for transformers' own layers."""
        if not self.is_initialized:
            raise AttributeError("batch_size")
        return self._sequences

    def offload(self) -> NoReturn:
        """Raises ArgumentError."""
        raise errors.ArgumentError(
            "An EncryptedCache is not offloaded: it lies in main memory, as ciphertext. Leave "
            "cache_implementation and offloading out."
        )

    prefetch = offload

    def reset(self) -> NoReturn:
        """Raises ArgumentError: layers share a key."""
        raise errors.ArgumentError("Reset the whole EncryptedCache: cache.reset().")

    # ---- what the cache and the attention ask ----

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sequences, heads, tokens."""
        return self._sequences, self._heads, self._tokens

    @property
    def sizes(self) -> tuple[int, int]:
        """Elements of a row of keys, and of values."""
        return self._sizes

    def first_kept(self) -> tuple[int, int]:
        """The first token that has not been given back, the least and the most of all sequences."""
        return 0, 0

    def forget(self) -> None:
        """Has no tokens and no place in the tables any more, which were reset."""
        self.is_initialized = False
        self._tokens = 0
        self.stamp += 1

    def forked(self, tables: Tables) -> EncryptedLayer:
        """The same layer in the fork of its tables."""
        new: EncryptedLayer = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.tables = tables
        return new

    # ---- the rest ----

    def _before_append(self) -> None:
        """Gives back what no row of the new tokens sees."""

    def _first_seen(self, new: int) -> int:
        """The first token that an attention of the last `new` tokens may see."""
        return 0

    def _handles(self, first: int) -> tuple[Handle, Handle]:
        shape = (self._sequences, self._heads, self._tokens - first)
        return (
            handle(self, 0, first, (*shape, self._sizes[0]), self._dtype),
            handle(self, 1, first, (*shape, self._sizes[1]), self._dtype),
        )

    def _exposed(self, which: int) -> Handle | None:
        if self.cross:
            return self._handles(0)[which] if self.is_initialized else None
        raise errors.ArgumentError(
            "An EncryptedCache exposes no keys and values: they would lie in the clear. Export, "
            "data-parallel models and code that works on layer.keys need a plain DynamicCache."
        )

    def _reorder(self, source: list[int]) -> None:
        self.tables.open().reorder(self.number, source)
        self._sequences = len(source)
        self.stamp += 1

    def _check_same(self, key_states: Tensor, value_states: Tensor) -> None:
        check_kind(key_states, value_states)
        sequences, heads, _, size = key_states.shape
        if sequences != self._sequences:
            raise errors.ArgumentError(
                f"This cache holds {self._sequences} sequences, and the input has {sequences}. "
                f"Expand it first by cache.batch_repeat_interleave(), as for beams or "
                f"num_return_sequences, or use a cache of its own for each input."
            )
        if (heads, size, value_states.shape[3]) != (self._heads, *self._sizes):
            raise errors.ArgumentError(
                f"This layer holds {self._heads} heads of {self._sizes} elements (keys, values), "
                f"and gets {heads} of ({size}, {value_states.shape[3]})."
            )
        if key_states.dtype != self._dtype and self.tables.dtype != "int8":
            raise errors.ArgumentTypeError(
                f"This layer holds {self._dtype}, and gets {key_states.dtype}."
            )


class EncryptedSlidingLayer(EncryptedLayer):
    """A layer whose rows see `window` tokens, up to their own. What no row sees any more is given
    back when the next tokens come; while the past is recorded, when crop() is called."""

    is_sliding = True

    def __init__(self, tables: Tables, window: int) -> None:
        super().__init__(tables)
        self.window: int = window
        self.record_past = False

    def activate_past_recording(self) -> None:
        """Keeps what has left the window until crop() is called."""
        self.record_past = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = max(self._tokens - self.window + 1, 0)
        return self._tokens - first + query_length, first

    def get_max_length(self) -> int:
        """The window, as for transformers' own layers."""
        return self.window

    def check_crop(self, tokens_to_remove: int) -> int:
        kept = super().check_crop(tokens_to_remove)
        if not self.is_initialized or not tokens_to_remove:
            return kept
        wanted = max(kept - self.window + 1, 0)
        if wanted < self.first_kept()[1]:
            raise errors.ArgumentError(
                f"crop({tokens_to_remove}) would need token {wanted} again, which has left the "
                f"sliding window of {self.window} and was given back; call "
                f"cache.activate_past_recording() before what may be rolled back."
            )
        return kept

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.is_initialized:
            self._evict()

    def first_kept(self) -> tuple[int, int]:
        native = self.tables.open()
        kept = [native.length(self.number, s)[1] for s in range(self._sequences)]
        return min(kept), max(kept)

    def _before_append(self) -> None:
        if not self.record_past:
            self._evict()

    def _evict(self) -> None:
        before = self._tokens - self.window + 1
        if before <= 0:
            return
        native = self.tables.open()
        for sequence in range(self._sequences):
            native.evict(self.number, sequence, before)

    def _first_seen(self, new: int) -> int:
        return max(self._tokens - new - self.window + 1, 0)


def check_kind(key_states: Tensor, value_states: Tensor) -> None:
    """Raises ArgumentError, ArgumentTypeError for what the tables do not take."""
    kind = key_states.dtype
    if (
        key_states.is_cpu
        and value_states.is_cpu
        and kind == value_states.dtype
        and kind in NATIVE_NAMES
        and key_states.dim() == value_states.dim() == 4
        and key_states.shape[:3] == value_states.shape[:3]
    ):
        return
    for name, states in (("keys", key_states), ("values", value_states)):
        if states.device.type != "cpu":
            raise errors.ArgumentError(
                f"The {name} lie on {str(states.device)!r}; an EncryptedCache is in main memory, "
                f"so the model has to be on the CPU."
            )
        if states.dtype not in NATIVE_NAMES:
            raise errors.ArgumentTypeError(
                f"An EncryptedCache takes {name} of float32, float16 or bfloat16, not of "
                f"{states.dtype}."
            )
        if states.dim() != 4:
            raise errors.ArgumentError(
                f"An EncryptedCache takes {name} of shape (sequences, heads, tokens, size), not "
                f"{tuple(states.shape)}."
            )
    if key_states.shape[:3] != value_states.shape[:3] or key_states.dtype != value_states.dtype:
        raise errors.ArgumentError(
            f"Keys {tuple(key_states.shape)} of {key_states.dtype} and values "
            f"{tuple(value_states.shape)} of {value_states.dtype} do not belong together."
        )


def refuse_training(key_states: Tensor, value_states: Tensor) -> None:
    """What is sealed has no gradient, and gradient checkpointing would append it twice."""
    if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
        raise errors.ArgumentError(
            "An EncryptedCache is for inference and passes no gradient on; call the model in "
            "`with torch.no_grad():`, or train it with use_cache=False."
        )
