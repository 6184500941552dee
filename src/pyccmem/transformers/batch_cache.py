# SPDX-License-Identifier: Apache-2.0
"""EncryptedPagedCache: the cache of continuous batching, with keys and values as ciphertext.

transformers keeps them in pages of one plain tensor, and counts which request has which pages. Here
the pages are counted as there, so that its scheduler admits, evicts and forks requests as it does,
but there is no tensor: each request has encrypted tables under a key of its own, which is destroyed
when the request ends. So no request can see another one, whatever mask there is or is not.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import SLIDING_ATTENTION

from .. import errors
from ..counters import BatchCacheStats
from .deferred import Deferred, uncompiled
from .layers import check_kind, refuse_training
from .tables import NATIVE_NAMES, Tables, overwrite, rows_of

__all__ = ["BatchHandle", "EncryptedPagedCache", "Run"]

#: Tokens that two prompts have to begin with alike before one shares them with the other.
_SHARED_MIN = 32

#: The slot of tokens that are padding. Those of requests are numbered from 0.
_PADDING = -1


class _Layer:
    """What one request has in one layer."""

    __slots__ = ("number", "tokens")

    def __init__(self, number: int, tokens: int) -> None:
        self.number, self.tokens = number, tokens


class _Request:
    """What one request has: tables, and what is in them."""

    __slots__ = ("_users", "ids", "layers", "past", "slot", "tables")

    def __init__(self, tables: Tables, slot: int) -> None:
        self.tables = tables
        self.slot = slot
        self._users = [1]  # requests under the same key: this one and its forks
        self.layers: dict[int, _Layer] = {}
        self.past = 0  # tokens before those of the batch that comes next
        self.ids: list[int] = []  # of its prompt, where others may share it

    def forked(self, slot: int) -> _Request:
        """A request with the same contents, which the two share."""
        other = _Request(self.tables.forked(), slot)
        other.layers = {at: _Layer(one.number, one.tokens) for at, one in self.layers.items()}
        other.past = self.past
        other._users = self._users
        self._users[0] += 1
        return other

    def end(self) -> None:
        """Destroys the key, unless a fork goes on: at once, whoever still refers to the tables, as
        the traceback of an error does."""
        self._users[0] -= 1
        self.tables.drop(for_good=True, forks=not self._users[0])

    def crop(self, tokens: int) -> None:
        """Forgets all tokens from `tokens` on."""
        for layer in self.layers.values():
            self.tables.open().crop(layer.number, 0, tokens)
            layer.tokens = tokens

    @property
    def tokens(self) -> int:
        """How many tokens all layers have."""
        return min((one.tokens for one in self.layers.values()), default=0)

    def layer(self, index: int, key_states: Tensor, value_states: Tensor) -> _Layer:
        """The layer, made when it is first used."""
        found = self.layers.get(index)
        if found is None:
            name = self.tables.dtype or NATIVE_NAMES[key_states.dtype]
            heads, key_size, value_size = (
                key_states.shape[1],
                key_states.shape[3],
                value_states.shape[3],
            )
            number = self.tables.made(1).add_layer(name, heads, key_size, value_size)
            found = self.layers[index] = _Layer(number, 0)
        return found


class Run(NamedTuple):
    """Rows [begin, end) of a batch, which are the last tokens of one request."""

    tables: Tables
    number: int
    begin: int
    end: int


class BatchHandle(Deferred):
    """The keys (`which` 0) or values (1) that the requests of a batch have in one layer. Its shape
    is that of the new ones, (1, heads, tokens, size)."""

    which: int
    runs: list[Run]
    window: int  # tokens that a row sees up to its own; 0: all
    layer: int
    stamp: int
    cache: EncryptedPagedCache

    def noun(self) -> str:
        return "a handle to the requests of a batch in an encrypted cache"

    def check(self) -> None:
        """Raises ClosedError when the layer has got another batch since."""
        if self.stamp != self.cache.stamps.get(self.layer):
            raise errors.ClosedError(
                f"This is {self.noun()} that has changed since; use what the last update() has "
                f"returned."
            )

    def plain(self) -> Tensor:
        raise errors.ArgumentError(
            "Something else than pyccmem's attention computes with the keys and values of a batch, "
            "which are of many requests and stay encrypted: this model works on its cache itself. "
            "Use generate(), which opens them into memory that is wiped."
        )


class EncryptedPagedCache(PagedAttentionCache):  # type: ignore[misc]
    """What a ContinuousBatchingManager of a protected model uses; arguments are those of
    transformers' own. `new_tables` makes the tables of a request.

    `sharing`: requests whose prompts begin alike share that beginning while both run. Whoever adds
    requests can then tell by the time that they take whether another one begins in the same way, so
    it is for the requests of one caller alone.
    """

    def __init__(
        self, *args: Any, new_tables: Callable[[], Tables], device: Any, **kwargs: Any
    ) -> None:
        # A tensor on "meta" has a shape and no memory: what would write plain keys there fails.
        super().__init__(*args, device=torch.device("meta"), **kwargs)
        self.device = device
        #: Of each layer, which changes with its contents.
        self.stamps: dict[int, int] = {}
        self._new_tables = new_tables
        self._requests: dict[str, _Request] = {}
        self._slots: dict[int, _Request] = {}
        self._next_slot = 0
        self._batch: tuple[Tensor | None, list[tuple[_Request, int, int]]] = (None, [])
        self.shares_prefixes = False
        for allocator in self.cache_allocators.values():
            allocator.write_trash_index = _PADDING

    # ---- requests ----

    def _request(self, request_id: str) -> _Request:
        found = self._requests.get(request_id)
        return self._add(request_id, None) if found is None else found

    def _add(self, request_id: str, source: _Request | None) -> _Request:
        slot = self._next_slot
        self._next_slot += 1  # never used again: what is left of an old batch finds nothing
        made = _Request(self._new_tables(), slot) if source is None else source.forked(slot)
        self._drop(request_id)
        self._requests[request_id] = self._slots[slot] = made
        return made

    def _drop(self, request_id: str) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._slots.pop(request.slot, None)
            self._batch = (None, [])
            request.end()

    def free_blocks(self, request_id: str, no_cache: bool = False) -> None:
        """The request has ended, or has to make room and begins anew later."""
        self._drop(request_id)
        super().free_blocks(request_id, no_cache)

    def free_all_requests(self, clear_ledgers: bool = False) -> None:
        """All requests have ended."""
        for request_id in list(self._requests):
            self._drop(request_id)
        super().free_all_requests(clear_ledgers)

    def stats(self) -> BatchCacheStats:
        """Returns sums over the `requests` that have something; see KVTables.stats()."""
        every = [request.tables.stats() for request in list(self._requests.values())]
        counts = [one for one in every if one is not None]
        return BatchCacheStats(
            requests=len(counts),
            blocks=sum(one["blocks"] for one in counts),
            records=sum(one["records"] for one in counts),
            ciphertext_bytes=sum(one["ciphertext_bytes"] for one in counts),
            memory_bytes=sum(one["memory_bytes"] for one in counts),
            sealed=sum(one["sealed"] for one in counts),
            opened=sum(one["opened"] for one in counts),
            integrity_failures=sum(one["integrity_failures"] for one in counts),
        )

    # ---- what is shared ----

    @property
    def sharing(self) -> bool:
        """Whether requests share beginnings of prompts; may be set."""
        return bool(self.use_prefix_sharing)

    @sharing.setter
    def sharing(self, value: bool) -> None:
        # Blocks that have left a window could not be shared.
        self.use_prefix_sharing = value and SLIDING_ATTENTION not in self.cache_allocators

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        """Shares what a request that still runs has of the same beginning. Returns how many tokens
        that is, never the whole prompt."""
        if not self.sharing:
            return 0
        best, most = None, _SHARED_MIN - 1
        for request in self._requests.values():
            limit = min(request.tokens, len(request.ids), len(prompt_ids) - 1)
            if limit > most and request.ids[: most + 1] == prompt_ids[: most + 1]:
                best, most = request, _common(request.ids, prompt_ids, limit)
        if best is None:
            self._request(request_id).ids = prompt_ids
            return 0
        made = self._add(request_id, best)
        made.ids = prompt_ids
        made.crop(most)
        return most

    def count_new_complete_blocks(self, state: Any, request_len: int) -> dict[str, int]:
        """None: transformers' own way of sharing is by hashes of pages."""
        return {}

    def mark_complete_blocks(self, state: Any, complete_blocks: dict[str, int]) -> None:
        """Nothing, as above."""

    def prepare_fork_request(
        self, src_state: Any, dst_req_ids: list[str], copy_src_and_dst: Any
    ) -> list[str]:
        """Forks a request into as many others as there is room for (num_return_sequences)."""
        forked: list[str] = super().prepare_fork_request(src_state, dst_req_ids, copy_src_and_dst)
        for request_id in forked:
            self._add(request_id, self._request(src_state.request_id))
        return forked

    def perform_cache_copy(self, copy_src_and_dst: Any) -> None:
        """Nothing: a fork shares what there is."""

    # ---- a batch ----

    def extend_read_and_write_indices(
        self,
        request_id: str,
        past_length: int,
        query_length: int,
        read_index: Any,
        write_index: list[list[int]],
    ) -> None:
        """Says of each token of a batch which request it belongs to, where transformers would say
        where it lies."""
        request = self._request(request_id)
        request.past = past_length
        for indices in write_index:
            indices.extend([request.slot] * query_length)

    def get_seq_length(self, *_: Any) -> NoReturn:
        """Raises ArgumentError: it is another one for each request."""
        _refuse_model()

    def fill_block_table(self, *args: Any) -> None:
        """Raises ArgumentError."""
        raise errors.ArgumentError(
            "Block tables are for kernels of GPUs; leave max_blocks_per_request out."
        )

    @uncompiled
    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[BatchHandle, BatchHandle]:
        """Seals the new keys and values, (1, heads, tokens, size), behind what each request has.

        Returns handles, which the attention "pyccmem" takes. Raises ArgumentError,
        ArgumentTypeError, ClosedError, IntegrityError, OutOfMemoryError, VersionExhaustedError.
        """
        if kwargs is None or "write_index" not in kwargs:
            _refuse_model()
        check_kind(key_states, value_states)
        refuse_training(key_states, value_states)
        allocator = self.layer_to_allocator[layer_idx]
        window = allocator.sliding_window if allocator.layer_type == SLIDING_ATTENTION else 0
        self.stamps[layer_idx] = self.stamps.get(layer_idx, 0) + 1
        keys, key_copy = rows_of(key_states)
        values, value_copy = rows_of(value_states)
        wipes, runs = False, []
        try:
            for request, begin, end in self._of_batch(kwargs, key_states.shape[2]):
                wipes = wipes or request.tables.overwrite
                layer = request.layer(layer_idx, key_states, value_states)
                if layer.tokens != request.past:
                    raise errors.ArgumentError(
                        f"A request has {layer.tokens} tokens in layer {layer_idx}, and its batch "
                        f"goes on behind {request.past}; stop this manager and make another one."
                    )
                native = request.tables.open()
                if window and request.past >= window:
                    native.evict(layer.number, 0, request.past - window + 1)
                native.append(
                    layer.number,
                    keys._replace(address=_row(key_copy, begin)),
                    values._replace(address=_row(value_copy, begin)),
                    end - begin,
                )
                layer.tokens += end - begin
                runs.append(Run(request.tables, layer.number, begin, end))
        finally:
            for states, copy in ((key_states, key_copy), (value_states, value_copy)):
                if copy is not states:
                    overwrite(copy)
                if wipes:
                    overwrite(states)
        return (
            self._handle(0, layer_idx, runs, window, key_states),
            self._handle(1, layer_idx, runs, window, value_states),
        )

    def _of_batch(self, kwargs: dict[str, Any], tokens: int) -> list[tuple[_Request, int, int]]:
        """The requests of a batch, and which rows are theirs; the same for all layers."""
        ends = kwargs["cu_seq_lens_q"]
        if self._batch[0] is ends:
            return self._batch[1]
        places, slots = ends.tolist(), kwargs["write_index"][0].tolist()
        found = []
        for begin, end in pairwise(places):
            if begin == end:
                continue
            request = self._slots.get(slots[begin])
            if request is None or slots[begin:end].count(request.slot) != end - begin:
                raise errors.ClosedError(
                    f"Tokens {begin} to {end} of a batch belong to no request that is there: it "
                    f"has ended since."
                )
            found.append((request, begin, end))
        if places[-1] > tokens:
            raise errors.ArgumentError(f"A batch of {places[-1]} tokens has keys of {tokens}.")
        self._batch = (ends, found)
        return found

    def _handle(
        self, which: int, layer: int, runs: list[Run], window: int, states: Tensor
    ) -> BatchHandle:
        made: BatchHandle = BatchHandle.standing_for(tuple(states.shape), states.dtype)
        made.which, made.runs, made.window = which, runs, window
        made.layer, made.stamp, made.cache = layer, self.stamps[layer], self
        return made


def _refuse_model() -> NoReturn:
    raise errors.ArgumentError(
        "This model has an attention or positions of its own, which do not say which request a "
        "token belongs to; use generate() with a batch in place of continuous batching."
    )


def _row(states: Tensor, token: int) -> int:
    """The address of a token's first element."""
    return states.data_ptr() + token * states.stride(2) * states.element_size()


def _common(a: list[int], b: list[int], limit: int) -> int:
    """How many of the first `limit` numbers are the same."""
    for at in range(limit):
        if a[at] != b[at]:
            return at
    return limit
