# SPDX-License-Identifier: Apache-2.0
"""KVCache: the keys and values of an attention, held as ciphertext, under a key that can be
destroyed in one step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import errors
from .binding import wiped
from .binding.arguments import integer
from .core.forks import Lock
from .core.indexing import address
from .core.kv_tables import SEQUENCES_MAX, Attention, KVTables
from .core.resource import Resource
from .counters import CacheStats
from .keys import Key
from .kv.rows import (
    FLOATS,
    array_type,
    bounds,
    four_axes,
    mask_of,
    output,
    rows_of,
    sinks_of,
    strides_of,
    taken,
)
from .kv.shapes import LayerShape, add_layers, checked_dtype, checked_layers, opened_dtype

if TYPE_CHECKING:
    from .safetensors import Progress
    from .safetensors.providers import AnyKey

__all__ = ["KVCache"]

Array = npt.NDArray[Any]


class _Root:
    """What the exports of a cache and its forks are sealed under: the caller's key, or one that is
    made when it is first wanted, and closed when the last of them is."""

    __slots__ = ("_erased", "_given", "_lock", "_made", "_users")

    def __init__(self, given: Any) -> None:
        self._given: Any = given
        self._made: Key | None = None
        self._lock, self._users, self._erased = Lock(), 1, False

    def key(self, make: Callable[[], Key]) -> Any:
        """Returns the key; `make` makes one. Raises ClosedError after erase()."""
        if self._given is not None:
            return self._given
        with self._lock.here():
            if self._erased:
                raise errors.ClosedError(
                    "This cache was erased, and the key that its exports are sealed under with "
                    "it; make a new cache, with key=... for exports that are to stay."
                )
            if self._made is None:
                self._made = make()
            return self._made

    def shared(self) -> _Root:
        """Returns itself, for one cache more."""
        with self._lock.here():
            self._users += 1
        return self

    def left(self) -> None:
        """Counts a cache that is closed. With the last one a key that was made is destroyed."""
        with self._lock.here():
            self._users -= 1
            last = self._users <= 0
        if last:
            self.erase()

    def erase(self) -> None:
        """Destroys a key that was made."""
        with self._lock.here():
            self._erased, made = True, self._made
        if made is not None:
            made.close()


class KVCache(Resource):
    """Keys and values of `layers` layers and `sequences` sequences as ciphertext.

        cache = pyccmem.KVCache(layers=2, heads=8, key_size=128, dtype="float16")
        cache.append(0, k, v)           # [heads, tokens, size], or with sequences in front
        y = cache.attend(0, q)          # softmax(q K^T / sqrt(key_size)) V

    `heads`, `key_size` and `value_size` (None: that of `key_size`) are numbers, or one for each
    layer. `dtype` is the type that K and V are stored in: "bfloat16", "float16", "float32", or
    "int8" with a float32 scale for each row. Arrays of bfloat16 are those of ml_dtypes, or their
    bits in uint16. `name` is what errors and repr() call the cache.

    What is appended is sealed under a random key of this cache alone, which never leaves secret
    memory (`level` and `require` as of Key.generate()). erase() destroys it, and so all that was
    ever sealed under it, wherever copies of it are: in swap, in a core dump, in a snapshot. It
    happens on close(), when the cache is dropped, and when the interpreter ends.

    `key` is what export() seals files under: a Key (or what save_file() takes). None: one of the
    cache's own, made when it is first wanted and destroyed with the cache, so that nobody opens the
    files afterwards. Files under the caller's key live as long as that key does.

    All methods may be called from several threads at once; of two that change the same sequence,
    one comes first. A cache does not follow a fork of the process: in the child its use raises
    ForkError. After erase() or close() it raises ClosedError.
    """

    __slots__ = ("_dtype", "_level", "_root", "_shapes", "_tables")

    _instead_of_a_copy = "share what it holds with fork()"

    _tables: Any  # None when closed
    _shapes: tuple[LayerShape, ...]
    _dtype: str
    _level: tuple[str | None, str | None]
    _root: _Root

    def __init__(
        self,
        layers: int,
        heads: int | Sequence[int],
        key_size: int | Sequence[int],
        value_size: int | Sequence[int] | None = None,
        *,
        dtype: str = "bfloat16",
        sequences: int = 1,
        key: AnyKey | None = None,
        level: str | None = None,
        require: str | None = None,
        name: str | None = None,
        _encrypted: bool = True,  # False: measure.plain_cache()
    ) -> None:
        """An empty cache.

        Raises ArgumentError, ArgumentTypeError, SecretMemoryError, LockedMemoryError,
        OutOfMemoryError, EntropyError.
        """
        self._tables = None
        shapes = checked_layers(layers, heads, key_size, value_size)
        dtype = checked_dtype(dtype)
        _check_key(key)
        tables = KVTables(sequences, level=level, require=require, name=name, encrypted=_encrypted)
        add_layers(tables, dtype, shapes)
        self._finish(tables, shapes, dtype, _Root(key), (level, require))

    def _finish(
        self,
        tables: KVTables,
        shapes: tuple[LayerShape, ...],
        dtype: str,
        root: _Root,
        level: tuple[str | None, str | None],
    ) -> None:
        self._shapes, self._dtype, self._root, self._level = shapes, dtype, root, level
        self._tables = tables

    # ---- appending ----

    def append(
        self, layer: int, k: npt.ArrayLike, v: npt.ArrayLike, *, sequence: int | None = None
    ) -> None:
        """Appends tokens to one sequence, or to all of them.

        `k` has shape [sequences, heads, tokens, key_size], `v` the same with value_size. With
        `sequence`, and for a cache of one, the first axis may be left out, and that of tokens as
        well. Both are taken without a copy where they are of the cache's type (of float32, float16
        or bfloat16 for int8) and their last axis is dense; else they are converted in memory that
        is wiped.

        On any failure nothing has changed. Raises ArgumentError, ArgumentTypeError,
        OutOfMemoryError, LockedMemoryError, VersionExhaustedError, MissingPackageError,
        IntegrityError when a token that has to be sealed anew was changed.
        """
        tables = self._opened()
        layer, shape = self._layer(layer)
        first, count = self._sequences(tables, layer, sequence)
        types = FLOATS if self._dtype == "int8" else (self._dtype,)
        keys, values = taken("k", k, types), None
        try:
            values = taken("v", v, types)
            wanted = f"[sequences, {shape.heads}, tokens, {shape.key_size}]"
            four_k = four_axes("k", keys.array, count, wanted)
            tokens = four_k.shape[2]
            _check_shape("k", keys.array, four_k, (count, shape.heads, tokens, shape.key_size))
            four_v = four_axes("v", values.array, count, wanted)
            _check_shape("v", values.array, four_v, (count, shape.heads, tokens, shape.value_size))
            tables.append(
                layer,
                rows_of(four_k, keys.dtype),
                rows_of(four_v, values.dtype),
                tokens,
                sequence=first,
                sequences=count,
            )
        finally:
            keys.wipe()
            if values is not None:
                values.wipe()

    # ---- attention ----

    def attend(
        self,
        layer: int,
        q: npt.ArrayLike,
        *,
        sequence: int | None = None,
        scale: float | None = None,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        mask: npt.ArrayLike | None = None,
        sinks: npt.ArrayLike | None = None,
        lengths: int | Sequence[int] | None = None,
        starts: int | Sequence[int] | None = None,
        out: Array | None = None,
    ) -> Array:
        """Returns softmax(scale * q K^T) V, over what a layer holds.

        `q` has shape [sequences, query_heads, rows, key_size], with the axes that append() may do
        without; it is of float32, float16 or bfloat16 (others become float32). Query head h uses
        head h // (query_heads // heads) of K and V. The result has the type of `q` and shape
        [sequences, query_heads, rows, value_size], in memory that is wiped when the last reference
        goes, or is `out`. Scores and sums are float32.

        `scale`: of the scores; None: 1 / sqrt(key_size). `softcap`: c * tanh(score / c), before any
        mask. `causal`: row r of R is at position length - R + r, and sees no later token. `window`:
        it sees at most so many tokens, up to its own. `starts`, `lengths`: the first token that is
        seen, and the one after the last, for all sequences or for each: padding on the left, and on
        the right. `mask`: bool (True: seen) or added to the scores, broadcast to [sequences,
        query_heads, rows, tokens]; tokens are all of the longest sequence, evicted ones too.
        `sinks`: for each query head a score without a value that takes its share. A row that sees
        nothing is zeros.

        Raises ArgumentError, ArgumentTypeError; IntegrityError when something was changed (`out` is
        zeros then), OutOfMemoryError, PlaintextBudgetError.
        """
        tables = self._opened()
        layer, shape = self._layer(layer)
        first, count = self._sequences(tables, layer, sequence)
        query = taken("q", q, FLOATS)
        try:
            four = four_axes(
                "q", query.array, count, f"[sequences, query_heads, rows, {shape.key_size}]"
            )
            _, heads, rows, _ = four.shape
            _check_shape("q", query.array, four, (count, heads, rows, shape.key_size))
            if not heads or heads % shape.heads:
                raise errors.ArgumentError(
                    f"q has {heads} heads; it must have a multiple of the layer's {shape.heads}."
                )
            result = output(out, (*query.array.shape[:-1], shape.value_size), query)
            place = four_axes("out", result, count, "")
            from_, to = bounds("starts", starts, count), bounds("lengths", lengths, count)
            weights = sinks_of(sinks, heads)
            masked = None
            if mask is not None:
                every = range(first, first + count)
                longest = max(tables.length(layer, one)[0] for one in every)
                masked = mask_of(mask, (count, heads, rows, longest))
            q_sequence, q_head, q_row = strides_of(four)
            out_sequence, out_head, out_row = strides_of(place)
            steps = (0, 0, 0) if masked is None else strides_of(masked)
            tables.attend(
                Attention(
                    layer=layer,
                    sequence=first,
                    sequences=count,
                    query_heads=heads,
                    rows=rows,
                    q=address(four),
                    q_dtype=query.dtype,
                    q_sequence=q_sequence,
                    q_head=q_head,
                    q_row=q_row,
                    out=address(place),
                    out_sequence=out_sequence,
                    out_head=out_head,
                    out_row=out_row,
                    scale=_number("scale", scale, shape.key_size**-0.5),
                    softcap=_number("softcap", softcap, 0.0),
                    causal=bool(causal),
                    window=0 if window is None else _at_least("window", window, 1),
                    from_=from_,
                    to=to,
                    mask=None if masked is None else address(masked),
                    mask_sequence=steps[0],
                    mask_head=steps[1],
                    mask_row=steps[2],
                    mask_tokens=0 if masked is None else masked.shape[-1],
                    sinks=None if weights is None else address(weights),
                )
            )
        finally:
            query.wipe()
        return result

    def read(
        self,
        layer: int,
        which: str,
        *,
        sequence: int | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Array:
        """Returns K (`which` is "k") or V ("v") of tokens [start, stop) in the clear: an array of
        shape [sequences, heads, tokens, size], or [heads, tokens, size] of one `sequence`, in
        memory that is wiped when the last reference goes. None: from the first token that was not
        evicted, to the last. Of the cache's type; float32 where that is int8.

        Raises RangeError for tokens that were evicted or are not there, ArgumentError for sequences
        of different lengths; MissingPackageError for bfloat16 without ml_dtypes; IntegrityError,
        OutOfMemoryError, PlaintextBudgetError.
        """
        tables = self._opened()
        layer, shape = self._layer(layer)
        if which not in ("k", "v"):
            raise errors.ArgumentError(f"which is {which!r:.40}; it must be 'k' or 'v'.")
        first, count = self._sequences(tables, layer, sequence)
        extents = {tables.length(layer, first + at) for at in range(count)}
        if start is None and stop is None and len(extents) > 1:
            raise errors.ArgumentError(
                f"The sequences of layer {layer} have different tokens; name one with sequence=, "
                f"or tokens that all have with start= and stop=."
            )
        begin = max(first for _, first in extents) if start is None else start
        end = min(tokens for tokens, _ in extents) if stop is None else stop
        begin, end = _at_least("start", begin, 0), _at_least("stop", end, 0)
        if begin > end:
            raise errors.ArgumentError(f"start is {begin} and stop {end}; start comes first.")
        size = shape.key_size if which == "k" else shape.value_size
        kind = opened_dtype(self._dtype)
        found = wiped.empty((count, shape.heads, end - begin, size), array_type(kind))
        for at in range(count):
            tables.read(
                layer, first + at, which, begin, end - begin, rows_of(found[at : at + 1], kind)
            )
        return found if sequence is None else found[0]

    # ---- lists of tokens ----

    def crop(self, tokens: int | Sequence[int], layer: int | None = None) -> None:
        """Forgets all tokens from `tokens` on, a number for all sequences or one for each, of one
        layer or of all. On any failure nothing has changed, as long as no other thread changes the
        cache meanwhile.

        Raises RangeError when a sequence has fewer tokens, or when those that would be the last
        were evicted; else what append() raises.
        """
        counts = self._counts("tokens", tokens)
        with self._changing(layer, len(counts)) as (tables, layers):
            for one in layers:
                for sequence, count in enumerate(counts):
                    tables.crop(one, sequence, count)

    def evict(self, before: int | Sequence[int], layer: int | None = None) -> None:
        """Gives back blocks all of whose tokens lie before token `before`, a number for all
        sequences or one for each, as a sliding window may. Positions stay as they are."""
        starts = self._counts("before", before)
        tables = self._opened()
        layers = range(len(self._shapes)) if layer is None else [self._layer(layer)[0]]
        for one in layers:
            for sequence, start in enumerate(starts):
                tables.evict(one, sequence, start)

    def reorder(self, indices: Sequence[int]) -> None:
        """Makes sequence i what sequence indices[i] was: beams that were chosen. There may be more
        or fewer of them than before. Nothing is copied. Failures as of crop(); raises
        ArgumentError, OutOfMemoryError, LockedMemoryError."""
        chosen = [integer("an index", one) for one in np.atleast_1d(indices)]
        count = self.sequences
        for one in chosen:
            if not 0 <= one < count:
                raise errors.ArgumentError(
                    f"indices has {one}; there are {count} sequences, from 0 to {count - 1}."
                )
        if not 1 <= len(chosen) <= SEQUENCES_MAX:
            raise errors.ArgumentError(
                f"indices has {len(chosen)} numbers; it must have from 1 to {SEQUENCES_MAX}."
            )
        with self._changing(None, 1) as (tables, layers):
            for layer in layers:
                tables.reorder(layer, chosen)

    def repeat(self, n: int) -> None:
        """Makes `n` sequences of each one, which follow each other and share what they hold.
        Failures as of crop()."""
        times, count = _at_least("n", n, 1), self.sequences
        if times * count > SEQUENCES_MAX:
            raise errors.ArgumentError(
                f"n is {times}; {count} sequences can become {SEQUENCES_MAX} at most."
            )
        self.reorder([at for at in range(count) for _ in range(times)])

    @contextmanager
    def _changing(self, layer: int | None, calls: int) -> Iterator[tuple[KVTables, Sequence[int]]]:
        """Yields the tables and the layers to change. If one of several calls fails, the cache goes
        on with a fork of what it was before the first."""
        tables = self._opened()
        chosen = range(len(self._shapes)) if layer is None else [self._layer(layer)[0]]
        if len(chosen) * calls == 1:
            yield tables, chosen
            return
        before = tables.fork()
        try:
            yield tables, chosen
        except BaseException:
            if self._tables is tables:
                self._tables, before = before, tables
            raise
        finally:
            before.close()

    def fork(self) -> KVCache:
        """Returns another cache with the same contents, which the two share, under the same key.
        Later calls change one of them; erase() of either erases both. For a beginning that several
        conversations of one user have. Raises OutOfMemoryError, LockedMemoryError."""
        other = KVCache.__new__(KVCache)
        other._tables = None
        tables = self._opened().fork()
        other._finish(tables, self._shapes, self._dtype, self._root.shared(), self._level)
        return other

    # ---- files ----

    @property
    def key(self) -> AnyKey:
        """What export() seals files under: `key` as it was given, or a Key of the cache's own, of
        which this makes it. Raises ClosedError, SecretMemoryError, LockedMemoryError."""
        self._opened()
        level, require = self._level
        return self._root.key(lambda: Key.generate(level=level, require=require))  # type: ignore[no-any-return]

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        key: AnyKey | None = None,
        progress: bool | Progress | None = None,
        context: Any = None,
    ) -> str:
        """Writes what the cache holds now into a sealed file, which appears whole or not at all:
        under `key`, or under the cache's `key`. Returns what load() pins it by. The file lives as
        long as that key does: erase() destroys the cache's own, and no other.

        Plaintext passes through a few MiB that are wiped. An int8 cache is written as float32, and
        quantised again when it is loaded, which gives the same bytes and scales.
        `progress` as for load_file(), `context` as for save_file(): a request's or a tenant's name,
        which load() may demand.

        Raises FileWriteError, IntegrityError, OutOfMemoryError, and what a key provider raises.
        """
        from .kv.files import export

        tables = self._opened()
        root = self.key if key is None else key
        return export(
            tables,
            self._shapes,
            self._dtype,
            path,
            key=root,
            progress=progress,
            context=context,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        key: AnyKey,
        *,
        level: str | None = None,
        require: str | None = None,
        name: str | None = None,
        expect: Any = None,
        progress: bool | Progress | None = None,
        context: Any = None,
    ) -> KVCache:
        """Returns a cache with what export() wrote, under a new random key: nothing is sealed again
        as it was before, even if a file is loaded twice. `key` is what the file was sealed for, and
        what the new cache's exports are. `context` and `expect` as for load_file(): without
        `expect`, an older file in the place of a newer one is not noticed.

        Raises FileReadError, FileFormatError, IntegrityError, InvalidKeyError, and what KVCache()
        raises.
        """
        from .kv.files import filled, opened

        self = cls.__new__(cls)
        self._tables = None
        file, contents = opened(path, key, expect, context)
        with file:
            tables = KVTables(contents.sequences, level=level, require=require, name=name)
            filled(file, contents, tables, path, progress)
        self._finish(tables, contents.shapes, contents.dtype, _Root(key), (level, require))
        return self

    # ---- what it is ----

    @property
    def name(self) -> str:
        """What errors call the cache and its forks."""
        return str(self._opened().name)

    @property
    def dtype(self) -> str:
        """The type that K and V are stored in."""
        return self._dtype

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self._shapes)

    @property
    def sequences(self) -> int:
        """How many sequences each layer has."""
        return int(self._opened().sequences(0))

    def length(self, layer: int = 0, sequence: int = 0) -> int:
        """Returns how many tokens a sequence has had in a layer, evicted ones included."""
        return self._extent(layer, sequence)[0]

    def first(self, layer: int = 0, sequence: int = 0) -> int:
        """Returns the first token of a sequence that was not evicted from a layer."""
        return self._extent(layer, sequence)[1]

    def __len__(self) -> int:
        """Returns the number of tokens of the longest sequence in the first layer."""
        return max(self.length(0, sequence) for sequence in range(self.sequences))

    def __bool__(self) -> bool:
        """Returns True, also for an empty cache."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache takes, together with its forks."""
        return self.stats()["memory_bytes"]

    def stats(self) -> CacheStats:
        """Returns counts for the cache and its forks together: `blocks` of a head, `records` of
        tokens that are not in blocks yet, `ciphertext_bytes` of these, `memory_bytes` of all; how
        many were `sealed` and `opened` up to now; `integrity_failures`."""
        found: CacheStats = self._opened().stats()
        return found

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._tables is None

    @property
    def erased(self) -> bool:
        """True when the key is gone: after close(), or after erase() of this cache or of a fork.
        Raises ForkError."""
        return self._tables is None or bool(self._tables.erased)

    def erase(self) -> None:
        """Destroys the key, and with it, at once, all that this cache and its forks hold, and every
        copy of it; a key of the cache's own that exports were sealed under, too. Waits for calls
        that run in other threads. Every later use raises ClosedError; memory is given back by
        close(). May be repeated."""
        tables = self._opened()
        tables.erase()
        self._root.erase()

    def close(self) -> None:
        """Gives the memory back, and erases, if no fork is open. May be repeated."""
        tables, self._tables = self._tables, None
        if tables is not None:
            tables.close()
            self._root.left()

    def _opened(self) -> Any:
        """Returns the tables. Raises ClosedError."""
        tables = self._tables
        if tables is None:
            raise errors.ClosedError("This cache is closed, and what it held is gone.")
        return tables

    def _description(self) -> str:
        tables = self._tables
        name = "" if tables is None else f"{tables.name!a}, "
        return f"{name}{len(self._shapes)} layers, {self._dtype}"

    # ---- arguments ----

    def _layer(self, layer: Any) -> tuple[int, LayerShape]:
        number = integer("layer", layer)
        if not 0 <= number < len(self._shapes):
            raise errors.ArgumentError(
                f"layer is {number}; the cache has {len(self._shapes)} layers, from 0 on."
            )
        return number, self._shapes[number]

    def _sequences(self, tables: KVTables, layer: int, sequence: Any) -> tuple[int, int]:
        """Returns the first sequence of a call, and how many it is for."""
        count = tables.sequences(layer)
        if sequence is None:
            return 0, count
        number = integer("sequence", sequence)
        if not 0 <= number < count:
            raise errors.ArgumentError(
                f"sequence is {number}; the cache has {count} sequences, from 0 on."
            )
        return number, 1

    def _counts(self, name: str, value: Any) -> list[int]:
        """Returns a number of tokens for each sequence."""
        found = bounds(name, value, self.sequences)
        if found is None:
            raise errors.ArgumentTypeError(f"{name} must be an integer, or one for each sequence.")
        return [int(one) for one in found]

    def _extent(self, layer: Any, sequence: Any) -> tuple[int, int]:
        tables = self._opened()
        number, _ = self._layer(layer)
        first, _ = self._sequences(tables, number, integer("sequence", sequence))
        found: tuple[int, int] = tables.length(number, first)
        return found


def _check_key(key: Any) -> None:
    """Raises ArgumentTypeError for what no file can be sealed under."""
    if key is None or isinstance(key, Key):
        return
    from .safetensors.providers import check_key

    check_key(key)


def _check_shape(name: str, given: Array, four: Array, wanted: tuple[int, ...]) -> None:
    if four.shape != wanted:
        raise errors.ArgumentError(
            f"{name} has shape {given.shape}; it must have shape {wanted}: sequences, heads, "
            f"tokens or rows, size."
        )


def _at_least(name: str, value: Any, least: int) -> int:
    number = integer(name, value)
    if not least <= number < 2**63:
        raise errors.ArgumentError(f"{name} is {number}; it must be at least {least}.")
    return number


def _number(name: str, value: Any, default: float) -> float:
    """Returns a finite float that float32 can hold; `softcap` is at least 0. Raises ArgumentError,
    ArgumentTypeError."""
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise errors.ArgumentTypeError(
            f"{name} must be a number or None, not {type(value).__name__}."
        ) from None
    if not math.isfinite(number) or abs(number) > 3e38 or (name == "softcap" and number < 0):
        raise errors.ArgumentError(f"{name} is {number}; it must be a finite number of float32.")
    return number
