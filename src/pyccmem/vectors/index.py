# SPDX-License-Identifier: Apache-2.0
"""EncryptedIndex: vectors that stay ciphertext, and are searched."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding.arguments import integer, plain_array
from ..core.forks import Lock
from ..core.resource import Resource
from ..keys import Key, another
from . import files, searching
from .bitmaps import Bitmap, bitmap_of, both, extended, without
from .encoding import Encoded, Floats, encoded, matrix_of, queries_of
from .form import Form, checked_form
from .ids import Integers
from .payloads import Chunk, Log, Places, no_places, payloads_of, read
from .segment import Segment, View, capacity_for

if TYPE_CHECKING:
    from ..safetensors import Progress
    from ..safetensors.providers import AnyKey

__all__ = ["EncryptedIndex"]

#: What `filter` takes: ids, or a function from an array of ids to one of bool.
Filter = npt.ArrayLike | Callable[[Integers], Any]

#: A segment is written anew when at least so many of its rows were removed, and a quarter of all.
_COMPACT_ROWS = 1024

#: Candidates that are ranked again, for each vector that is asked for.
_FACTOR = 4

#: Payloads are, when those of so many bytes were, and half of all.
_COMPACT_BYTES = 1 << 20

_numbers = itertools.count(1)


class _State(NamedTuple):
    """What readers see: it never changes."""

    views: tuple[View, ...]
    places: tuple[Places | None, ...]  # of the payloads, for each view
    chunks: tuple[Chunk, ...]
    alive: int


_EMPTY = _State((), (), (), 0)


class EncryptedIndex(Resource):
    """Vectors of `dim` float32 numbers as ciphertext, each with an id and maybe a payload.

        index = EncryptedIndex(384, key=key, metric="cosine")
        index.add(vectors, payloads=[text.encode() for text in texts])
        scores, ids = index.search(query, 10)

    `metric`: what search() ranks by. "ip": the inner product, the largest first. "cosine": that of
    vectors of length 1; a zero vector (of a norm below 2**-100) has 0 with everything. "l2": the
    squared Euclidean distance, the smallest first.

    `dtype`: what vectors are rounded to: "float32", "float16", "bfloat16", or "int8", whole numbers
    from -127 to 127 times a scale for each vector. All metrics are those of the rounded vectors and
    of queries of float32.

    `rerank`: the type of a second set of rows, "float32", "float16" or "bfloat16", for an index of
    "int8". A search then finds `factor` times `k` candidates by their rows of int8, and ranks these
    by the others. So it reads little more than the rows of int8, and misses few of the best, which
    recall() counts; scores, and what get() returns, are those of the second rows.

    Rows, norms, scales and payloads are encrypted, with a tag for each page of 4 KiB; a page that
    was changed raises IntegrityError, and nothing of the call's result is returned. A search opens
    some pages at a time in the caches of the cores that multiply them. Ids, the number of vectors
    and the lengths of payloads lie in the clear in memory; in a file all is encrypted.

    `key`: a Key (which may be closed afterwards), from which the keys of the memory are derived; or
    a Passphrase or KeyProvider, for files, and the memory gets a random key. `name` is what errors
    and repr() call the index.

    All methods may be called from several threads at once. A search, or any other method that
    reads, sees the index as one change left it, and no reader waits for a change. Of two changes
    one comes first. On any failure of a change nothing has changed. After close() all methods raise
    ClosedError; in a forked process ForkError.
    """

    __slots__ = (
        "_factor",
        "_form",
        "_given",
        "_key",
        "_lock",
        "_log",
        "_log_dead",
        "_name",
        "_next",
        "_state",
    )

    _instead_of_a_copy = "save() it and load() the file"

    _state: _State | None  # None when closed

    def __init__(
        self,
        dim: int,
        *,
        key: AnyKey,
        metric: str = "ip",
        dtype: str = "float32",
        rerank: str | None = None,
        factor: int = 4,
        name: str | None = None,
    ) -> None:
        """An empty index.

        Raises ArgumentError, ArgumentTypeError, ClosedError or ForkError for the key,
        LockedMemoryError, OutOfMemoryError.
        """
        self._state = None
        self._factor = _checked_factor(factor)
        self._begin(checked_form(dim, metric, dtype, rerank), key, name)
        self._state = _EMPTY

    def _begin(self, form: Form, key: Any, name: Any) -> None:
        if not (name is None or isinstance(name, str)):
            raise errors.ArgumentTypeError(
                f"name must be a str or None, not {type(name).__name__}."
            )
        if not isinstance(key, Key):
            from ..safetensors.providers import check_key

            check_key(key)
        self._form = form
        self._name = f"index-{next(_numbers)}" if name is None else name
        self._key = another(key) if isinstance(key, Key) else Key.generate()
        self._given = self._key if isinstance(key, Key) else key
        self._lock = Lock()
        self._log = Log(self._key, self._name)
        self._log_dead = 0
        self._next = 0

    # ---- what it is ----

    @property
    def dim(self) -> int:
        """Elements of a vector."""
        return self._form.dim

    @property
    def metric(self) -> str:
        """What search() ranks by: "ip", "cosine" or "l2"."""
        return self._form.metric

    @property
    def dtype(self) -> str:
        """The type that vectors are rounded to."""
        return self._form.dtype

    @property
    def rerank(self) -> str | None:
        """The type of the rows by which candidates are ranked again; None where there are none."""
        return self._form.rerank

    @property
    def factor(self) -> int:
        """How many candidates are ranked again, as a multiple of those that are asked for; may be
        set."""
        return self._factor

    @factor.setter
    def factor(self, value: int) -> None:
        self._factor = _checked_factor(value)

    @property
    def name(self) -> str:
        """What errors call the index."""
        return self._name

    def __len__(self) -> int:
        """Returns how many vectors there are. Raises ClosedError."""
        return self._opened().alive

    def __contains__(self, id: object) -> bool:
        """Returns whether there is a vector of this id. Raises ClosedError."""
        try:
            wanted = np.array([integer("id", id)], np.int64)
        except (errors.PyccmemError, OverflowError):
            return False
        with self._lock.here():
            return any((view.rows_of(wanted) >= 0).any() for view in self._opened().views)

    def ids(self) -> Integers:
        """Returns the ids of all vectors, an array of int64, in the order in which they lie. Raises
        ClosedError."""
        parts = [view.ids_of(np.flatnonzero(view.mask())) for view in self._opened().views]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that vectors, ids and payloads take, as ciphertext with its tags and
        versions. Raises ClosedError."""
        state = self._opened()
        found = sum(view.segment.nbytes(view.total) for view in state.views)
        found += self._log.end
        found += sum(
            0 if one is None else one.start.nbytes + one.length.nbytes for one in state.places
        )
        return found

    # ---- changes ----

    def add(
        self,
        vectors: npt.ArrayLike,
        ids: npt.ArrayLike | None = None,
        payloads: Sequence[Any] | None = None,
    ) -> Integers:
        """Adds vectors, and returns their ids, an array of int64.

        `vectors` has shape [n, dim], or [dim] for one; numbers of other types than float32 become
        float32 first. `ids`: n different integers from 0 on that no vector has yet; None: those
        that follow the largest id that ever was. `payloads`: n objects of bytes, or None for
        vectors without.

        Raises ArgumentError, among others for numbers that are infinite or not a number, or that
        `dtype` cannot hold, and for ids that are there; ArgumentTypeError, OutOfMemoryError,
        LockedMemoryError, PlaintextBudgetError, IntegrityError when the page that the first row
        shares with others was changed. Nothing has changed then.
        """
        given = matrix_of("vectors", vectors, self._form.dim)
        count = len(given)
        bodies = None if payloads is None else payloads_of(payloads, count)
        with self._lock.here():
            state = self._opened()
            chosen = self._new_ids(state, ids, count)
            if count:
                places = None if bodies is None else self._log.append(bodies)
                self._publish(self._appended(state, given, chosen, places))
                self._next = max(self._next, int(chosen.max()) + 1)
        return chosen

    def remove(self, ids: npt.ArrayLike) -> None:
        """Removes the vectors of these ids, with their payloads. No search finds them from then on.
        Their ciphertext is dropped when a quarter of a segment was removed, or by compact().

        Raises ArgumentError when an id is not there or comes twice, ArgumentTypeError; nothing has
        changed then.
        """
        wanted = _ids("ids", ids)
        with self._lock.here():
            state = self._opened()
            new, dead = self._without(state, wanted)
            self._log_dead += dead
            self._publish(self._compacted(new, forced=False))

    def update(
        self,
        ids: npt.ArrayLike,
        vectors: npt.ArrayLike | None = None,
        payloads: Sequence[Any] | None = None,
    ) -> None:
        """Gives the vectors of these ids other numbers, other payloads, or both; what is None stays
        as it is. A search sees all of the change or nothing of it. Raises what add() and remove()
        raise; nothing has changed then."""
        wanted = _ids("ids", ids)
        count = len(wanted)
        given = None if vectors is None else matrix_of("vectors", vectors, self._form.dim)
        if given is not None and len(given) != count:
            raise errors.ArgumentError(
                f"vectors has {len(given)} rows for {count} ids; give one for each."
            )
        bodies = None if payloads is None else payloads_of(payloads, count)
        with self._lock.here():
            state = self._opened()
            found = self._places_of(state, wanted)
            if not count:
                return
            places = found if bodies is None else self._log.append(bodies)
            if given is None:
                if bodies is not None:
                    self._publish(self._replaced(state, wanted, places))
                    self._log_dead += int(found.length.sum())
                return
            new, _ = self._without(state, wanted)
            any_places = places if (places.start >= 0).any() else None
            new = self._appended(new, given, wanted, any_places)
            if bodies is not None:
                self._log_dead += int(found.length.sum())
            self._publish(self._compacted(new, forced=False))

    def compact(self) -> None:
        """Writes what is left of segments and payloads anew, under new keys, where something was
        removed: nothing that was removed can be opened afterwards, once no reader sees it any more.
        Takes the memory of a segment twice meanwhile. Raises IntegrityError, OutOfMemoryError,
        LockedMemoryError; nothing has changed then."""
        with self._lock.here():
            self._publish(self._compacted(self._opened(), forced=True))

    # ---- reading ----

    def search(
        self, queries: npt.ArrayLike, k: int, filter: Filter | None = None
    ) -> tuple[Floats, Integers]:
        """Returns the `k` best vectors of each query: scores, of float32, and ids, of int64, both
        of shape [n, k] for queries of shape [n, dim], and [k] for one of shape [dim].

        The best come first: the largest inner products or cosines, the smallest squared distances.
        Equal scores come in the order of their ids, so that the same call gives the same bits. (How
        the last bits of a score are rounded depends on how many queries are searched for at once.)
        Where there are fewer than `k`, the rest has the id -1, and the score -infinity, or infinity
        for distances. A vector whose score overflows to what is not a number is not found.

        `filter`: ids, of which alone vectors are found (those that are not there are ignored); or a
        function that is given arrays of ids and returns arrays of bool: True for those that may be
        found. Memory that holds pages in the clear: a tile for each thread.

        Raises ArgumentError, ArgumentTypeError; IntegrityError when a page was changed (nothing is
        returned then), OutOfMemoryError, PlaintextBudgetError.
        """
        return self._search(queries, k, filter, None)

    def recall(self, queries: npt.ArrayLike, k: int) -> float:
        """Returns which part of the `k` best of each query, those of all vectors as get() returns
        them, search() finds, from 0 to 1: less than 1 only with `rerank`. Raises what search()
        raises."""
        return self._recall(queries, k, self.search(queries, k)[1])

    def get(self, ids: npt.ArrayLike) -> Floats:
        """Returns the vectors of these ids as float32, of shape [n, dim], in memory that is wiped
        when the last reference goes. Raises ArgumentError for an id that is not there,
        ArgumentTypeError, IntegrityError, OutOfMemoryError, PlaintextBudgetError."""
        from ..binding import wiped

        wanted = _ids("ids", ids, unique=False)
        with self._lock.here():
            state = self._opened()
            at, rows = _located(state, wanted)
        out: Floats = wiped.empty((len(wanted), self._form.dim), np.float32)
        try:
            for number in np.unique(at):
                here = np.flatnonzero(at == number)
                found = state.views[number].segment.vectors(rows[here])
                out[here] = found
                found.fill(0)
        except BaseException:
            out.fill(0)
            raise
        return out

    def payloads(self, ids: npt.ArrayLike) -> list[Any]:
        """Returns the payloads of these ids, None for vectors without: a list, or one of lists for
        ids of shape [n, k]. -1, which search() fills up with, gives None, too. Python cannot
        overwrite bytes: they stay in memory until their place is reused. Raises ArgumentError for
        an id that is not there, ArgumentTypeError, IntegrityError."""
        given = plain_array("ids", ids)
        if given.ndim > 2:
            raise errors.ArgumentError(
                f"ids has shape {given.shape}; it must have one dimension, or two."
            )
        if given.ndim == 2:
            return [self.payloads(row) for row in given]
        known = np.atleast_1d(given) != -1
        wanted = _ids("ids", np.atleast_1d(given)[known], unique=False)
        with self._lock.here():
            state = self._opened()
            at, rows = _located(state, wanted)
        found = iter([_payload(state, int(n), int(row)) for n, row in zip(at, rows, strict=True)])
        return [next(found) if there else None for there in known]

    def verify(self) -> list[int]:
        """Checks every page. Returns the ids of the vectors that cannot be read as they were added,
        with their norms and payloads, in ascending order; an empty list if all can. Raises
        FileReadError for pages of a file that cannot be read from it, ClosedError, ForkError."""
        state = self._opened()
        bad: list[Integers] = []
        for view, places in zip(state.views, state.places, strict=True):
            mask = view.segment.damaged(view.total)
            if places is not None:
                mask |= _damaged_payloads(state.chunks, places, view.total)
            bad.append(view.ids_of(np.flatnonzero(mask & view.mask())))
        return sorted(int(one) for part in bad for one in part)

    def _recall(self, queries: Any, k: Any, found: Integers) -> float:
        best = np.atleast_2d(self._search(queries, k, None, None, exact=True)[1])
        hits = sum(
            len(np.intersect1d(a[a >= 0], b[b >= 0]))
            for a, b in zip(np.atleast_2d(found), best, strict=True)
        )
        return hits / max(int((best >= 0).sum()), 1)

    def _search(
        self, queries: Any, k: Any, filter: Any, probes: int | None, *, exact: bool = False
    ) -> tuple[Floats, Integers]:
        """Does search(); `probes` is for _parts(). `exact`: by all fine rows, not by candidates."""
        number = integer("k", k)
        if not 1 <= number < 2**31:
            raise errors.ArgumentError(f"k is {number}; it must be from 1 to {2**31 - 1}.")
        asked = queries_of(queries, self._form)
        state, masks = self._filtered(filter)
        scores, ids = _results(len(asked.floats), number)
        found = min(number, state.alive)
        if found:
            fine = self._form.fine
            wide = found if fine is None or exact else min(found * self._factor, state.alive)
            step = searching.queries_at_once(wide)
            for first in range(0, len(asked.floats), step):
                some = asked.floats[first : first + step]
                if exact:
                    parts = _all_rows(fine or self._form, state, masks, numbered=False)
                else:
                    parts = self._parts(state, masks, some, probes, fine is not None)
                    if fine is not None:
                        _, numbers = searching.best(parts, some, wide)
                        parts = searching.candidates(fine, state.views, numbers)
                end = first + len(some)
                scores[first:end, :found], ids[first:end, :found] = searching.best(
                    parts, some, found
                )
        scores[:, found:], ids[:, found:] = -np.inf, -1
        if self._form.metric == "l2":
            distance = asked.square[:, None] - 2 * scores.astype(np.float64)
            with np.errstate(over="ignore"):
                np.copyto(scores, np.maximum(distance, 0), casting="unsafe")
            # Ranks that differed may have become equal distances.
            order = np.lexsort((ids[:, :found], scores[:, :found]))
            for whole in (scores, ids):
                whole[:, :found] = np.take_along_axis(whole[:, :found], order, 1)
        asked.floats.fill(0)
        return (scores[0], ids[0]) if asked.single else (scores, ids)

    def _parts(
        self,
        state: _State,
        masks: Sequence[Bitmap | None],
        queries: Floats,
        probes: int | None,
        numbered: bool,
    ) -> searching.Parts:
        """Returns the rows that are searched for some queries: all. `numbered`: they are called by
        their numbers through all views, not by their ids."""
        return _all_rows(self._form, state, masks, numbered)

    # ---- files ----

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        key: AnyKey | None = None,
        progress: bool | Progress | None = None,
        context: Any = None,
    ) -> str:
        """Writes a sealed file of what the index holds when the call begins, without what was
        removed. `key`: another than the index's own. Returns the file's pin, for `expect` of
        load(): "FILE_ID:GENERATION". The file appears whole or not at all; plaintext passes
        through 1 MiB that is wiped.

        Raises FileWriteError, IntegrityError, ClosedError, and what a key provider raises.
        """
        state = self._opened()
        return files.save(
            path,
            self._form,
            list(zip(state.views, state.places, strict=True)),
            state.chunks,
            centroids=self._centroids(),
            next_id=self._next,
            key=self._given if key is None else key,
            progress=progress,
            context=context,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        key: AnyKey,
        expect: Any = None,
        name: str | None = None,
        context: Any = None,
    ) -> EncryptedIndex:
        """Returns the index that save() wrote. Its rows are the pages of the file, which is mapped,
        and shared with other processes; nothing is decrypted but the ids. What is added later lies
        in memory of its own, and the file never changes. `expect` pins the file, or a later one of
        the same: see safetensors.safe_open().

        Raises FileFormatError for another file, FileReadError, IntegrityError, InvalidKeyError, and
        what a key provider raises.
        """
        loaded = files.load(path, key=key, expect=expect, context=context)
        self = cls.__new__(cls)
        self._state = None
        self._factor = _FACTOR
        try:
            self._begin(loaded.form, key, os.fspath(path) if name is None else name)
            self._take_centroids(loaded.centroids)
        except BaseException:
            loaded.close()
            raise
        self._next = loaded.next_id
        self._log = Log(self._key, self._name, loaded.chunks, loaded.payload_bytes)
        self._state = _State(loaded.views, loaded.places, loaded.chunks, loaded.total)
        return self

    def _centroids(self) -> Floats | None:
        """Returns the centres of the lists, in memory that is wiped; None where there are none."""
        return None

    def _take_centroids(self, centroids: Floats | None) -> None:
        """Takes those of a file. Raises FileFormatError."""
        if centroids is not None:
            raise errors.FileFormatError(
                "The file has an index with lists; load it with EncryptedIVF.load()."
            )

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._state is None

    def close(self) -> None:
        """Wipes the keys and frees the ciphertext, at once or when the last call that uses them
        returns. May be repeated."""
        state, self._state = self._state, None
        if state is None:
            return
        for view in state.views:
            view.segment.close()
        for chunk in (*state.chunks, *self._log.chunks()):
            chunk.buffer.close()
        self._key.close()

    def _opened(self) -> _State:
        state = self._state
        if state is None:
            raise errors.ClosedError("This index is closed; make a new one, or load a file.")
        return state

    def _description(self) -> str:
        state = self._state
        count = "" if state is None else f" of {state.alive} vectors"
        form = self._form
        rerank = "" if form.rerank is None else f" and {form.rerank}"
        return f"{self._name!a}{count}, {form.dim} x {form.dtype}{rerank}, {form.metric}"

    # ---- the writer's part; the lock is held ----

    def _publish(self, state: _State) -> None:
        """Makes a state what readers see."""
        if self._state is None:
            raise errors.ClosedError("This index was closed meanwhile.")
        self._state = state._replace(chunks=self._log.chunks())

    def _new_ids(self, state: _State, ids: Any, count: int) -> Integers:
        if ids is None:
            if self._next + count > 2**63 - 1:
                raise errors.ArgumentError("No ids follow the largest one; give ids of your own.")
            return np.arange(self._next, self._next + count, dtype=np.int64)
        chosen = _ids("ids", ids)
        if len(chosen) != count:
            raise errors.ArgumentError(
                f"ids has {len(chosen)} numbers for {count} vectors; give one for each."
            )
        for view in state.views:
            there = view.rows_of(chosen) >= 0
            if there.any():
                raise errors.ArgumentError(
                    f"ids has {chosen[np.argmax(there)]}, which a vector of the index has already; "
                    f"use update(), or another id."
                )
        return chosen

    def _appended(self, state: _State, given: Any, ids: Integers, places: Places | None) -> _State:
        """Writes rows, and returns a state in which they are seen."""
        writer = _Appending(state, self._form, self._key, self._name, len(ids))
        lists = self._lists_of(given)
        if lists is None:
            for part in encoded("vectors", given, self._form):
                writer.put(part)
            return writer.state(ids, places)
        # Those of a list lie together.
        order = np.argsort(lists, kind="stable")
        for part in encoded("vectors", given, self._form, order):
            writer.put(part)
        if places is not None:
            places = Places(places.start[order], places.length[order])
        return writer.state(ids[order], places, lists[order].astype(np.uint32))

    def _lists_of(self, given: Any) -> npt.NDArray[Any] | None:
        """Returns the list that each vector belongs to; None where there are no lists."""
        return None

    def _without(self, state: _State, ids: Integers) -> tuple[_State, int]:
        """Returns a state without these vectors, and the bytes of their payloads."""
        at, rows = _located(state, ids)
        views, dead = list(state.views), 0
        for number in np.unique(at):
            gone, view, places = rows[at == number], views[number], state.places[number]
            live = without(view.live, view.total, gone)
            views[number] = view._replace(live=live, alive=view.alive - len(gone))
            if places is not None:
                dead += int(places.length[gone].sum())
        return state._replace(views=tuple(views), alive=state.alive - len(ids)), dead

    def _places_of(self, state: _State, ids: Integers) -> Places:
        """Returns where the payloads of these vectors are. Raises ArgumentError for ids that are
        not there."""
        at, rows = _located(state, ids)
        found = no_places(len(ids))
        for number in np.unique(at):
            places = state.places[number]
            if places is not None:
                here = at == number
                found.start[here] = places.start[rows[here]]
                found.length[here] = places.length[rows[here]]
        return found

    def _replaced(self, state: _State, ids: Integers, new: Places) -> _State:
        """Returns a state in which vectors have other payloads."""
        at, rows = _located(state, ids)
        all_places = list(state.places)
        for number in np.unique(at):
            here, old = at == number, all_places[number]
            capacity = state.views[number].segment.capacity
            places = no_places(capacity) if old is None else old.copy()
            places.start[rows[here]] = new.start[here]
            places.length[rows[here]] = new.length[here]
            all_places[number] = places
        return state._replace(places=tuple(all_places))

    def _compacted(self, state: _State, *, forced: bool) -> _State:
        """Returns a state whose segments have few rows that were removed; with `forced` none."""
        views, all_places = [], []
        for view, places in zip(state.views, state.places, strict=True):
            dead = view.total - view.alive
            if (
                view.alive
                and not (forced and dead)
                and not (dead >= _COMPACT_ROWS and dead * 4 > view.total)
            ):
                views.append(view)
                all_places.append(places)
            elif view.alive:
                copied = _copied(view, places, self._form, self._key, self._name)
                views.append(copied[0])
                all_places.append(copied[1])
        state = state._replace(views=tuple(views), places=tuple(all_places))
        dead_bytes = self._log_dead
        if dead_bytes and (
            forced or (dead_bytes >= _COMPACT_BYTES and dead_bytes * 2 > self._log.end)
        ):
            state = self._payloads_anew(state)
        return state

    def _payloads_anew(self, state: _State) -> _State:
        log = Log(self._key, self._name)
        all_places: list[Places | None] = []
        for number, (view, places) in enumerate(zip(state.views, state.places, strict=True)):
            if places is not None:
                fresh = no_places(view.segment.capacity)
                rows = np.flatnonzero(view.mask() & (places.start[: view.total] >= 0))
                for first in range(0, len(rows), 1024):
                    some = rows[first : first + 1024]
                    old = state._replace(chunks=self._log.chunks())
                    bodies = [_payload(old, number, int(row)) for row in some]
                    new = log.append(bodies)
                    fresh.start[some], fresh.length[some] = new.start, new.length
                all_places.append(fresh)
            else:
                all_places.append(None)
        self._log, self._log_dead = log, 0
        return state._replace(places=tuple(all_places))

    def _filtered(self, filter: Any) -> tuple[_State, list[Bitmap | None]]:
        """Returns a state, and which rows of each view may be found."""
        if filter is None:
            state = self._opened()
            return state, [view.live for view in state.views]
        if callable(filter):
            state = self._opened()
            masks = [_called(filter, view) for view in state.views]
            return state, [both(v.live, m) for v, m in zip(state.views, masks, strict=True)]
        wanted = _ids("filter", filter, unique=False)
        with self._lock.here():
            state = self._opened()
            found = [view.rows_of(wanted) for view in state.views]
        bitmaps: list[Bitmap | None] = []
        for view, rows in zip(state.views, found, strict=True):
            mask = np.zeros(view.total, np.bool_)
            mask[rows[rows >= 0]] = True
            bitmaps.append(bitmap_of(mask))
        return state, bitmaps


class _Appending:
    """Rows that are written behind those of a state. Nothing of it is seen until state() is."""

    def __init__(self, state: _State, form: Form, key: Key, name: str, coming: int) -> None:
        self._before, self._form, self._key, self._name = state, form, key, name
        self._views = list(state.views)
        self._places = list(state.places)
        self._coming, self._total = coming, state.alive
        #: Number of the view, first row, number of the first vector, how many.
        self._runs: list[tuple[int, int, int, int]] = []
        self._used = self._views[-1].total if self._views else 0

    def put(self, part: Encoded) -> None:
        """Writes some vectors."""
        at = 0
        while at < part.total:
            if not self._views or not self._room():
                self._add_segment()
            count = min(self._room(), part.total - at)
            segment = self._views[-1].segment
            segment.put(self._used, part, at, count)
            self._runs.append((len(self._views) - 1, self._used, part.first + at, count))
            self._used += count
            self._coming -= count
            self._total += count
            at += count

    def _room(self) -> int:
        segment = self._views[-1].segment
        return segment.capacity - self._used if segment.writable else 0

    def _add_segment(self) -> None:
        capacity = capacity_for(self._form, self._total, self._coming)
        segment = Segment.new(self._form, capacity, self._key, f"{self._name}.{len(self._views)}")
        self._views.append(View(segment, 0, 0, None, 0))
        self._places.append(None)
        self._used = 0

    def state(
        self,
        ids: Integers,
        places: Places | None,
        lists: npt.NDArray[np.uint32] | None = None,
    ) -> _State:
        """Returns a state in which the rows are seen."""
        for number, row, first, count in self._runs:
            view = self._views[number]
            segment = view.segment
            if lists is not None:
                if segment.lists is None:
                    segment.lists = np.empty(segment.capacity, np.uint32)
                segment.lists[row : row + count] = lists[first : first + count]
            segment.ids.put(row, ids[first : first + count])
            self._views[number] = view._replace(
                total=row + count,
                ids=segment.ids.column(),
                live=extended(view.live, row, count),
                alive=view.alive + count,
            )
            if places is not None:
                self._put_places(number, row, places, first, count)
        return self._before._replace(
            views=tuple(self._views), places=tuple(self._places), alive=self._total
        )

    def _put_places(self, number: int, row: int, places: Places, first: int, count: int) -> None:
        """Notes where payloads are, behind what is seen of the same arrays."""
        mine = self._places[number]
        if mine is None:
            mine = self._places[number] = no_places(self._views[number].segment.capacity)
        mine.start[row : row + count] = places.start[first : first + count]
        mine.length[row : row + count] = places.length[first : first + count]


def _copied(
    view: View, places: Places | None, form: Form, key: Key, name: str
) -> tuple[View, Places | None]:
    """Returns a view of a new segment with the rows that were not removed."""
    rows = np.flatnonzero(view.mask())
    old = view.segment
    if old.lists is not None:
        rows = rows[np.argsort(old.lists[rows], kind="stable")]
    segment = Segment.new(form, capacity_for(form, len(rows), 0), key, f"{name}, compacted")
    if segment.capacity < len(rows):
        segment = Segment.new(form, len(rows), key, f"{name}, compacted")
    step = max((1 << 20) // form.row_bytes, 1)
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        part = old.stored(some)
        segment.put(first, part, 0, len(some))
        part.wipe()
    segment.ids.put(0, view.ids_of(rows))
    if old.lists is not None:
        segment.lists = np.empty(segment.capacity, np.uint32)
        segment.lists[: len(rows)] = old.lists[rows]
    new = View(segment, len(rows), segment.ids.column(), None, len(rows))
    if places is None:
        return new, None
    fresh = no_places(segment.capacity)
    fresh.start[: len(rows)], fresh.length[: len(rows)] = places.start[rows], places.length[rows]
    return new, fresh


def _located(state: _State, ids: Integers) -> tuple[Integers, Integers]:
    """Returns the view and the row of each id. Raises ArgumentError for one that is not there. For
    the thread that holds the lock."""
    at, rows = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int64)
    for number, view in enumerate(state.views):
        found = view.rows_of(ids)
        here = found >= 0
        at[here], rows[here] = number, found[here]
    if len(ids) and (at < 0).any():
        raise errors.ArgumentError(
            f"The index has no vector of id {ids[np.argmin(at)]}; `id in index` tells which it has."
        )
    return at, rows


def _checked_factor(value: Any) -> int:
    number = integer("factor", value)
    if not 1 <= number <= 1 << 20:
        raise errors.ArgumentError(f"factor is {number}; it must be from 1 to {1 << 20}.")
    return number


def _ids(name: str, value: Any, *, unique: bool = True) -> Integers:
    """Returns ids as an array of int64. Raises ArgumentError, ArgumentTypeError."""
    array = plain_array(name, list(value) if isinstance(value, (set, frozenset, range)) else value)
    if not array.size:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise errors.ArgumentTypeError(f"{name} is of {array.dtype}; it must hold whole numbers.")
    array = np.atleast_1d(array)
    if array.ndim != 1:
        raise errors.ArgumentError(f"{name} has shape {array.shape}; it must have one dimension.")
    if array.size and (array.min() < 0 or array.max() > 2**63 - 2):
        wrong = array.min() if array.min() < 0 else array.max()
        raise errors.ArgumentError(f"{name} has {wrong}; ids are from 0 to {2**63 - 2}.")
    found: Integers = np.array(array, np.int64)
    if unique and len(found) > 1:
        ordered = np.sort(found)
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            raise errors.ArgumentError(f"{name} has {ordered[twice[0]]} twice.")
    return found


def _results(count: int, k: int) -> tuple[Floats, Integers]:
    """Returns memory for the results of `count` queries. Raises OutOfMemoryError."""
    try:
        return np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    except (MemoryError, ValueError):
        raise errors.OutOfMemoryError(
            f"There is no memory for {k} results of each of {count} queries; ask for fewer."
        ) from None


def _called(filter: Callable[[Integers], Any], view: View) -> Bitmap:
    ids = view.ids_of(np.arange(view.total))
    mask = np.asarray(filter(ids))
    if mask.dtype != np.bool_ or mask.shape != ids.shape:
        raise errors.ArgumentError(
            f"filter returned an array of {mask.dtype} and shape {mask.shape} for {len(ids)} ids; "
            f"it must return one of bool, an element for each."
        )
    return bitmap_of(mask)


def _payload(state: _State, number: int, row: int) -> bytes | None:
    places = state.places[number]
    if places is None or places.start[row] < 0:
        return None
    return read(state.chunks, int(places.start[row]), int(places.length[row]))


def _all_rows(
    form: Form, state: _State, masks: Sequence[Bitmap | None], numbered: bool
) -> searching.Parts:
    parts, before = searching.Parts(form), 0
    for view, mask in zip(state.views, masks, strict=True):
        first, total = np.zeros(1, np.int64), np.full(1, view.total, np.int64)
        parts.add(view, mask, first, total, positions=before if numbered else None)
        before += view.total
    return parts


def _damaged_payloads(chunks: Iterable[Chunk], places: Places, count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    start = places.start[:count]
    end = start + places.length[:count]
    for chunk in chunks:
        for page in chunk.buffer.verify():
            first = chunk.start + page * chunk.buffer.page_size
            mask |= (start >= 0) & (start < first + chunk.buffer.page_size) & (end > first)
    return mask
