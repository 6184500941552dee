# SPDX-License-Identifier: Apache-2.0
"""KVTables: an encrypted key-value cache as adapters use it, over plain memory that they have the
addresses of.

It owns the native cache, and turns statuses into exceptions. What the addresses mean, and that they
stay valid during a call, is the caller's to see to: pyccmem.KVCache does it for arrays.
"""

from __future__ import annotations

import atexit
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import LEVELS, OK, anchor, check, ffi, lib
from ..binding.arguments import integer
from ..binding.owned import CACHE
from ..binding.status import CacheCall
from ..counters import CacheStats
from .dtypes import NATIVE
from .fork_warning import name_also
from .indexing import address
from .registry import Registry
from .resource import Resource
from .secret_level import native_level, wanted_level

__all__ = [
    "ROW_MAX",
    "SEQUENCES_MAX",
    "Attention",
    "Batch",
    "KVTables",
    "Place",
    "Rows",
    "open_caches",
]

#: Elements of a row of K or V, and sequences of a cache, at most.
ROW_MAX = int(lib.CCMEM_CACHE_ROW_MAX)
SEQUENCES_MAX = 1 << 16

_append = lib.ccmem_cache_append
_attend = lib.ccmem_cache_attend
_attend_runs = lib.ccmem_cache_attend_runs
_cast = ffi.cast
_new = ffi.new
_ATTENTION = ffi.typeof("ccmem_attention *")
_FLOATS = ffi.typeof("const float *")
_NULL = ffi.NULL
_ROWS = ffi.typeof("ccmem_cache_rows *")
_RUNS = ffi.typeof("ccmem_cache_run[]")
_VOID = ffi.typeof("void *")
_WORDS = ffi.typeof("const uint64_t *")

#: What tells caches apart that were given no name.
_numbers = itertools.count(1)


class Rows(NamedTuple):
    """Rows in plain memory: element e of head h, token t of sequence s is at
    address + (s * sequence + h * head + t * token) * size of an element + e. Rows are dense; the
    strides are in elements."""

    address: int
    dtype: str
    sequence: int
    head: int
    token: int


@dataclass(kw_only=True, slots=True)
class Attention:
    """One attention, see ccmem_attention in csrc/ccmem.h. Memory is given by its address, strides
    are in elements, and a stride of 0 repeats."""

    layer: int
    sequence: int = 0
    sequences: int = 1
    query_heads: int
    rows: int
    q: int  # the address of rows of key_size elements
    q_dtype: str  # and that of what is at `out`
    q_sequence: int
    q_head: int
    q_row: int
    out: int  # the address of room for rows of value_size elements
    out_sequence: int
    out_head: int
    out_row: int
    scale: float
    softcap: float = 0.0
    causal: bool = True
    window: int = 0
    from_: npt.NDArray[np.uint64] | None = None
    to: npt.NDArray[np.uint64] | None = None
    mask: int | None = None  # the address of float32
    mask_sequence: int = 0
    mask_head: int = 0
    mask_row: int = 0
    mask_tokens: int = 0
    sinks: int | None = None  # the address of a float32 for each query head


class Place(NamedTuple):
    """Where a block (which: 0, of K, or 1, of V) or a record (2) lies, and the number that it was
    sealed under; valid until the sequence changes."""

    data: int
    nbytes: int
    tag: int  # the address of 16 bytes
    number: int
    first: int
    tokens: int
    head: int
    which: int


class KVTables(Resource):
    """The keys and values of `sequences` sequences (1 to 65536) as ciphertext, under a random key
    of their own that never leaves secret memory.

    Without layers at first: see add_layer(). All methods may be called from several threads at
    once. What is out of range raises ArgumentError; every method raises ClosedError after close()
    and, where it would open or seal something, after erase() of this cache or of a fork; ForkError
    in a forked process.
    """

    __slots__ = ("_anchor", "_cache", "_name")

    _instead_of_a_copy = "share what it holds with fork()"

    _cache: Any
    _anchor: Any
    _name: str

    def __init__(
        self,
        sequences: int,
        *,
        level: str | None = None,
        require: str | None = None,
        name: str | None = None,
        encrypted: bool = True,
    ) -> None:
        """An empty cache; `level` and `require` as Key.generate() has them. `encrypted=False`: one
        that holds all in the clear, by which pyccmem.measure finds what encryption costs.

        Raises ArgumentError, ArgumentTypeError, SecretMemoryError, LockedMemoryError,
        OutOfMemoryError, EntropyError.
        """
        self._cache = self._anchor = None
        wanted = wanted_level(require, level)
        if not (name is None or isinstance(name, str)):
            raise errors.ArgumentTypeError(
                f"name must be a str or None, not {type(name).__name__}."
            )
        count = integer("sequences", sequences)
        if not 1 <= count <= SEQUENCES_MAX:
            raise errors.ArgumentError(
                f"sequences is {count}; it must be from 1 to {SEQUENCES_MAX}."
            )
        kind = "cache" if encrypted else "plain-cache"
        self._name = f"{kind}-{next(_numbers)}" if name is None else name
        out = CACHE.cell()
        if encrypted:
            status = lib.ccmem_cache_new(count, native_level(wanted), out)
        else:
            status = lib.ccmem_measure_cache_new(count, out)
        check(status, CacheCall("a key-value cache", self._name, require=wanted))
        self._adopt(out)

    def _adopt(self, out: Any) -> None:
        """Takes over the native cache in a cell."""
        # Closing only drops this reference: a call that runs in another thread holds its own, and
        # the cache is erased and freed when the last one goes.
        self._cache = CACHE.own(out)
        self._anchor = anchor(self._cache)
        _registry.add(self)

    # ---- layers ----

    def add_layer(self, dtype: str, heads: int, key_size: int, value_size: int) -> int:
        """Adds a layer of `heads` heads of K and V, rows of `key_size` and `value_size` elements (1
        to ROW_MAX) of `dtype`, a name of NATIVE. Returns its number, from 0."""
        limits = f"heads is {heads}, key_size {key_size}, value_size {value_size}, dtype {dtype!r}"
        try:
            layer = _new("ccmem_cache_layer *", (NATIVE[dtype], heads, key_size, value_size))
        except (KeyError, OverflowError, TypeError):
            self._refuse("a layer", limits)
        number = _new("uint32_t *")
        status = lib.ccmem_cache_add_layer(self._opened(), layer, number)
        if status != OK:
            self._fail(status, "a layer", limits=limits)
        return int(number[0])

    def block_tokens(self, layer: int) -> int:
        """Returns how many tokens a block of the layer has."""
        return self._of_layer(lib.ccmem_cache_block_tokens, layer)

    def sequences(self, layer: int) -> int:
        """Returns how many sequences the layer has."""
        return self._of_layer(lib.ccmem_cache_sequences, layer)

    def _of_layer(self, function: Any, layer: int) -> int:
        try:
            found = int(function(self._opened(), layer))
        except (OverflowError, TypeError):
            found = 0
        if not found:
            self._refuse("a call", f"there is no layer {layer!r}")
        return found

    def length(self, layer: int, sequence: int) -> tuple[int, int]:
        """Returns how many tokens the sequence has had, evicted ones included, and the first one
        that was not evicted."""
        cache = self._opened()
        found = _new("uint64_t[2]")
        try:
            status = lib.ccmem_cache_length(cache, layer, sequence, found, found + 1)
        except (OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        if status != OK:
            self._fail(status, "length()", layer, sequence)
        return int(found[0]), int(found[1])

    # ---- what changes it ----

    def append(
        self,
        layer: int,
        k: Rows,
        v: Rows,
        tokens: int,
        *,
        sequence: int = 0,
        sequences: int | None = None,
    ) -> None:
        """Appends `tokens` rows of K and V of all heads to sequences [sequence, sequence +
        sequences) of the layer (None: to all from `sequence` on); in the rows' strides the first of
        these is number 0. The rows are of the layer's type, or, where that is int8, of any other.

        On any failure nothing has changed. Raises IntegrityError, OutOfMemoryError,
        LockedMemoryError, VersionExhaustedError.
        """
        cache = self._opened()
        try:
            if sequences is None:
                sequences = lib.ccmem_cache_sequences(cache, layer) - sequence
            status = _append(
                cache, layer, sequence, sequences, tokens, _native_rows(k), _native_rows(v)
            )
        except (KeyError, OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        if status != OK:
            self._fail(status, f"append() of {tokens} tokens", layer, sequence)

    def crop(self, layer: int, sequence: int, tokens: int) -> None:
        """Forgets all tokens from `tokens` on. On any failure nothing has changed. Raises
        RangeError when there are fewer, or when those that would be the last were evicted; else
        what append() raises."""
        cache = self._opened()
        try:
            status = lib.ccmem_cache_crop(cache, layer, sequence, tokens)
        except (OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        if status != OK:
            self._fail(status, f"crop() to {tokens} tokens", layer, sequence)

    def evict(self, layer: int, sequence: int, before: int) -> None:
        """Gives back the blocks all of whose tokens lie before token `before`."""
        cache = self._opened()
        try:
            status = lib.ccmem_cache_evict(cache, layer, sequence, before)
        except (OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        if status != OK:
            self._fail(status, f"evict() before token {before}", layer, sequence)

    def reorder(self, layer: int, source: Sequence[int]) -> None:
        """Makes sequence i of the layer what sequence source[i] was, for as many as `source` has.
        All layers must get the same number before the next append(). Raises
        OutOfMemoryError, LockedMemoryError; nothing has changed then."""
        cache = self._opened()
        try:
            indices = _new("uint32_t[]", list(source))
            status = lib.ccmem_cache_reorder(cache, layer, indices, len(indices))
        except (OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        if status != OK:
            self._fail(status, "reorder()", layer)

    # ---- what opens it ----

    def attend(self, what: Attention) -> None:
        """Computes softmax(scale * q K^T) V, as `what` says. On any failure all of `out` is zero.
        Raises IntegrityError, OutOfMemoryError, PlaintextBudgetError; ArgumentTypeError,
        ArgumentError for `from_` and `to`."""
        cache = self._opened()
        first, last = what.from_, what.to
        if first is not None:
            _check_bounds("from_", first, what.sequences)
        if last is not None:
            _check_bounds("to", last, what.sequences)
        try:
            native = _native_attention(what)
        except (KeyError, OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        else:
            status = _attend(cache, native)
        if status != OK:
            self._fail(status, "attend()", what.layer, what.sequence)

    def read(
        self, layer: int, sequence: int, which: str, first: int, tokens: int, out: Rows
    ) -> None:
        """Opens K (`which` is "k") or V ("v") of `tokens` tokens from token `first` on, of all
        heads of one sequence, into rows of the layer's type, or of float32 where that is int8. On
        any failure these are zero. Raises RangeError for tokens that were evicted or are not there;
        else what attend() raises."""
        cache = self._opened()
        try:
            status = lib.ccmem_cache_read(
                cache, layer, sequence, {"k": 0, "v": 1}[which], first, tokens, _native_rows(out)
            )
        except (KeyError, OverflowError, TypeError):
            status = lib.CCMEM_ERR_ARGUMENT
        if status != OK:
            self._fail(status, f"read() of {tokens} tokens from {first} on", layer, sequence)

    # ---- lifetime ----

    def fork(self) -> KVTables:
        """Returns another cache under the same key with the same contents, which the two share.
        Later calls change one of them; erase() of either erases both. Raises OutOfMemoryError,
        LockedMemoryError."""
        cache = self._opened()
        other = KVTables.__new__(KVTables)
        other._cache = other._anchor = None
        other._name = self._name
        out = CACHE.cell()
        status = lib.ccmem_cache_fork(cache, out)
        if status != OK:
            self._fail(status, "fork()")
        other._adopt(out)
        return other

    def erase(self) -> None:
        """Destroys the key. From now on nothing opens what this cache and its forks hold, nor any
        copy of it. Waits for calls that run; takes as long for a large cache as for a small one.
        May be repeated."""
        status = lib.ccmem_cache_erase(self._opened())
        if status != OK:
            self._fail(status, "erase()")

    def close(self) -> None:
        """Gives back what no fork shares, at once or when the last call that uses it returns; the
        last of the forks erases. May be repeated."""
        self._cache = self._anchor = None
        _registry.discard(self)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._cache is None

    @property
    def erased(self) -> bool:
        """True after close(), and after erase() of this cache or of a fork. Raises ForkError."""
        cache = self._cache
        if cache is None:
            return True
        status = lib.ccmem_cache_check(cache)
        if status not in (OK, lib.CCMEM_ERR_CLOSED):
            self._fail(status, "a call")
        return bool(status != OK)

    @property
    def name(self) -> str:
        """What errors call the cache and its forks."""
        return self._name

    @property
    def level(self) -> str:
        """The secret-memory level of the key: "secretmem" or "mlock"; "none" for a cache that
        encrypts nothing. Raises ClosedError."""
        return LEVELS[lib.ccmem_cache_level(self._opened())]

    # ---- what it holds ----

    def stats(self) -> CacheStats:
        """Returns counts for the cache and its forks together: `blocks` of a head, `records` of
        tokens that are not in blocks yet, `ciphertext_bytes` of these, `memory_bytes` of all; how
        many were `sealed` and `opened` up to now; `integrity_failures`."""
        found = _new("ccmem_cache_stats *")
        status = lib.ccmem_cache_get_stats(self._opened(), found)
        if status != OK:
            self._fail(status, "stats()")
        return CacheStats(
            blocks=int(found.blocks),
            records=int(found.records),
            ciphertext_bytes=int(found.ciphertext_bytes),
            memory_bytes=int(found.memory_bytes),
            sealed=int(found.sealed),
            opened=int(found.opened),
            integrity_failures=int(found.integrity_failures),
        )

    def places(self, layer: int, sequence: int) -> list[Place]:
        """Returns where the sequence's blocks and records lie, in order. For tests that damage
        them."""
        cache = self._opened()
        count, room = _new("uint64_t *"), 0
        while True:
            found = _new("ccmem_cache_place[]", max(room, 1))
            try:
                status = lib.ccmem_cache_places(cache, layer, sequence, found, room, count)
            except (OverflowError, TypeError):
                status = lib.CCMEM_ERR_ARGUMENT
            if status != OK:
                self._fail(status, "places()", layer, sequence)
            if count[0] <= room:
                return [_place(found[at]) for at in range(count[0])]
            room = int(count[0])

    # ---- for all of these ----

    def _opened(self) -> Any:
        cache = self._cache
        if cache is None:
            raise errors.ClosedError(
                f"Cache {self._name!a} is closed, and what it held is gone; make a new one."
            )
        return cache

    def _description(self) -> str:
        return repr(self._name)

    def _fail(
        self,
        status: int,
        action: str,
        layer: int | None = None,
        sequence: int | None = None,
        limits: str = "",
    ) -> NoReturn:
        """Raises what a status stands for."""
        check(
            status,
            CacheCall(
                action, self._name, layer, sequence, limits=limits or self._limits(layer, sequence)
            ),
        )
        raise AssertionError("check() returned for a status that is not CCMEM_OK")

    def _refuse(self, action: str, limits: str) -> NoReturn:
        """Raises ArgumentError; ClosedError and ForkError first."""
        status = lib.ccmem_cache_check(self._opened())
        if status != lib.CCMEM_ERR_FORK:
            status = lib.CCMEM_ERR_ARGUMENT
        self._fail(status, action, limits=limits)

    def _limits(self, layer: Any, sequence: Any) -> str:
        """Says what a layer and a sequence could have been, and how many tokens there are."""
        cache = self._cache
        if cache is None or layer is None:
            return "it is outside its documented domain"
        found = _new("uint64_t[2]")
        try:
            count = lib.ccmem_cache_sequences(cache, layer)
            status = lib.ccmem_cache_length(cache, layer, sequence or 0, found, found + 1)
        except (OverflowError, TypeError):
            return f"there is no layer {layer!r} with a sequence {sequence!r}"
        if not count:
            return f"there is no layer {layer}"
        if status != OK:
            return f"layer {layer} has {count} sequences, and sequence {sequence} is none of them"
        return f"layer {layer} has {count} sequences, and this one tokens {found[1]} to {found[0]}"


class Batch:
    """Rows of a batch that belong to several caches, each to sequence 0 of its own, for native
    calls that do all. Keeps the caches open. Raises ClosedError."""

    __slots__ = ("_kept", "_native")

    def __init__(self, runs: Sequence[tuple[KVTables, int, int, int]]) -> None:
        """`runs`: the tables, how many tokens they have, the first row, and how many rows come
        behind these tokens."""
        self._kept = [tables._opened() for tables, *_ in runs]
        self._native = _new(_RUNS, len(runs))
        for at, (_, past, first, rows) in enumerate(runs):
            one = self._native[at]
            one.cache, one.past, one.first, one.rows = self._kept[at], past, first, rows

    def attend(self, layers: Sequence[int], k: Rows, v: Rows, what: Attention) -> list[int]:
        """Appends the rows of k and v to each run's layer, and computes the attention of its rows
        of q, as append() and attend() do; a row is `q_row`, `out_row` or `token` behind the one
        before it. The layer, sequences and rows of `what` count for nothing, and it has no bounds
        and no mask.

        Returns the numbers of the runs that were not done, for reasons that append() and attend()
        will tell: the caller repeats them, behind a crop() where they were appended. Raises
        ArgumentError.
        """
        native, count = self._native, len(self._kept)
        if what.from_ is not None or what.to is not None or what.mask is not None:
            raise errors.ArgumentError("A batch of caches has no bounds and no mask.")
        try:
            for at, layer in enumerate(layers):
                native[at].layer = layer
            attention, keys, values = _native_attention(what), _native_rows(k), _native_rows(v)
        except (KeyError, OverflowError, TypeError):
            return list(range(count))
        if _attend_runs(native, count, keys, values, attention) == OK:
            return []
        return [at for at in range(count) if native[at].status != OK]


def _native_attention(what: Attention) -> Any:
    """Raises KeyError, OverflowError, TypeError."""
    return _new(
        _ATTENTION,
        (
            what.layer,
            what.sequence,
            what.sequences,
            what.query_heads,
            what.rows,
            _cast(_VOID, what.q),
            NATIVE[what.q_dtype],
            what.q_sequence,
            what.q_head,
            what.q_row,
            _cast(_VOID, what.out),
            what.out_sequence,
            what.out_head,
            what.out_row,
            what.scale,
            what.softcap,
            what.causal,
            what.window,
            _NULL if what.from_ is None else _cast(_WORDS, address(what.from_)),
            _NULL if what.to is None else _cast(_WORDS, address(what.to)),
            _NULL if what.mask is None else _cast(_FLOATS, what.mask),
            what.mask_sequence,
            what.mask_head,
            what.mask_row,
            what.mask_tokens,
            _NULL if what.sinks is None else _cast(_FLOATS, what.sinks),
        ),
    )


def _native_rows(rows: Rows) -> Any:
    """Raises KeyError, OverflowError, TypeError."""
    return _new(
        _ROWS,
        (
            _cast(_VOID, rows.address),
            NATIVE[rows.dtype],
            rows.sequence,
            rows.head,
            rows.token,
        ),
    )


def _check_bounds(name: str, bounds: Any, sequences: int) -> None:
    """Raises ArgumentTypeError, ArgumentError for what is not a number of tokens a sequence."""
    if not isinstance(bounds, np.ndarray) or bounds.dtype != np.uint64:
        raise errors.ArgumentTypeError(f"{name} must be an array of uint64.")
    if bounds.shape != (sequences,) or not bounds.flags.c_contiguous:
        raise errors.ArgumentError(
            f"{name} has shape {bounds.shape}; it must be contiguous, of shape ({sequences},), one "
            f"number for each sequence."
        )


def _place(found: Any) -> Place:
    return Place(
        int(_cast("uintptr_t", found.data)),
        int(found.bytes),
        int(_cast("uintptr_t", found.tag)),
        int(found.number),
        int(found.first),
        int(found.tokens),
        int(found.head),
        int(found.which),
    )


# ---- all caches of the process -------------------------------------------------------------------

#: Every open cache.
_registry: Registry[KVTables] = Registry(256)


def open_caches() -> Iterator[KVTables]:
    """The caches of this process that can be used, forks among them."""
    for tables in _registry:
        cache = tables._cache
        if cache is not None and lib.ccmem_cache_check(cache) == OK:
            yield tables


def _lost_at_fork() -> list[str]:
    """This process's caches, as a warning names them."""
    return sorted({f"{tables.name!a} (a key-value cache)" for tables in open_caches()})


def _erase_all() -> None:
    """Erases every cache when the interpreter ends. Destructors of what modules refer to may not
    run then."""
    for tables in open_caches():
        lib.ccmem_cache_erase(tables._cache)


name_also(_lost_at_fork)
atexit.register(_erase_all)
