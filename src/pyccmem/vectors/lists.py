# SPDX-License-Identifier: Apache-2.0
"""EncryptedIVF: an index whose vectors lie in lists, of which a search opens some."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..binding.arguments import integer
from . import searching
from .bitmaps import Bitmap
from .encoding import Floats, matrix_of
from .form import Form
from .ids import Integers
from .index import EncryptedIndex, Filter
from .segment import View

__all__ = ["EncryptedIVF"]

#: Lists at most.
_LISTS_MAX = 1 << 20

#: Vectors of the training set that are used for each list, at most.
_SAMPLE = 256

#: Vectors whose lists are looked for at a time.
_PART = 4096


class EncryptedIVF(EncryptedIndex):
    """An EncryptedIndex that does not look at all vectors: an inverted file.

        index = EncryptedIVF(384, 1024, key=key, metric="cosine", probes=16)
        index.train(vectors[:100_000])
        index.add(vectors)
        scores, ids = index.search(query, 10)

    train() finds `lists` centres, which are encrypted as vectors are. Each vector lies with those
    of the centre that is nearest to it, and a search opens the lists of the `probes` centres
    nearest to the query, and nothing else. So it may miss some of the best, which recall() counts;
    with as many probes as lists it finds what an EncryptedIndex finds. Which memory is read tells
    which lists are near to the query; the numbers of vectors' lists lie in the clear in memory.

    Vectors that are added a few at a time lie in short runs, until compact() puts those of a list
    together. All else is as in EncryptedIndex.
    """

    __slots__ = ("_coarse", "_lists", "_probes")

    _coarse: EncryptedIndex | None  # the centres

    def __init__(
        self,
        dim: int,
        lists: int,
        *,
        key: Any,
        metric: str = "ip",
        dtype: str = "float32",
        rerank: str | None = None,
        factor: int = 4,
        probes: int = 8,
        name: str | None = None,
    ) -> None:
        """An empty index without centres; see EncryptedIndex(). `probes`: how many lists a search
        opens unless it is told. Raises what that raises."""
        number = integer("lists", lists)
        if not 1 <= number <= _LISTS_MAX:
            raise errors.ArgumentError(f"lists is {number}; it must be from 1 to {_LISTS_MAX}.")
        self._lists = number
        self._probes = self._checked_probes(probes)
        super().__init__(
            dim, key=key, metric=metric, dtype=dtype, rerank=rerank, factor=factor, name=name
        )

    def _begin(self, form: Form, key: Any, name: Any) -> None:
        self._coarse = None
        super()._begin(form, key, name)

    # ---- what it is ----

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return self._lists

    @property
    def probes(self) -> int:
        """How many of them a search opens; may be set."""
        return self._probes

    @probes.setter
    def probes(self, value: int) -> None:
        self._probes = self._checked_probes(value)

    @property
    def trained(self) -> bool:
        """True after train()."""
        return self._coarse is not None

    def _checked_probes(self, value: Any) -> int:
        number = integer("probes", value)
        if number < 1:
            raise errors.ArgumentError(f"probes is {number}; it must be at least 1.")
        return min(number, self._lists)

    # ---- centres ----

    def train(self, vectors: npt.ArrayLike, *, iterations: int = 10, seed: int = 1) -> None:
        """Finds the centres: k-means over `vectors`, of shape [n, dim], at least as many as lists;
        of more than 256 for each list some are taken by chance. They need not be added. The same
        vectors and seed give the same centres with the same number of threads or another.

        Raises ArgumentError, also once there are vectors in the index, ArgumentTypeError,
        OutOfMemoryError, PlaintextBudgetError.
        """
        given = matrix_of("vectors", vectors, self.dim)
        rounds = integer("iterations", iterations)
        if len(given) < self._lists:
            raise errors.ArgumentError(
                f"vectors has {len(given)} rows, which cannot have {self._lists} centres; give "
                f"more vectors, or use fewer lists."
            )
        if len(self):
            raise errors.ArgumentError(
                "The index holds vectors, whose lists train() would change; train a new index."
            )
        random = np.random.default_rng(integer("seed", seed))
        chosen = np.arange(len(given))
        if len(chosen) > _SAMPLE * self._lists:
            chosen = np.sort(random.choice(len(given), _SAMPLE * self._lists, replace=False))
        sample: Floats = wiped.empty((len(chosen), self.dim), np.float32)
        centres: Floats = wiped.empty((self._lists, self.dim), np.float32)
        coarse = None
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                for at, row in enumerate(chosen.tolist()):
                    np.copyto(sample[at], given[row], casting="unsafe")
            self._prepare(sample)
            centres[...] = sample[np.sort(random.choice(len(sample), self._lists, replace=False))]
            for _ in range(max(rounds, 0)):
                coarse = self._coarse_of(centres)
                nearest = _nearest(coarse, sample)
                coarse.close()
                _move(centres, sample, nearest, random)
            with self._lock.here():
                self._opened()
                old, self._coarse = self._coarse, self._coarse_of(centres)
            if old is not None:
                old.close()
        finally:
            sample.fill(0)
            centres.fill(0)

    def _prepare(self, sample: Floats) -> None:
        """Gives vectors length 1 where that is what their centres are of."""
        good = np.isfinite(sample).all(axis=1)
        if not good.all():
            raise errors.ArgumentError(
                "vectors has a number that is infinite or not a number; leave such vectors out."
            )
        if self.metric != "cosine":
            return
        for first in range(0, len(sample), _PART):
            part = sample[first : first + _PART]
            norm = np.sqrt(np.einsum("ij,ij->i", part, part))
            norm[norm == 0] = 1
            np.divide(part, norm[:, None], out=part)

    def _coarse_of(self, centres: Floats) -> EncryptedIndex:
        coarse = EncryptedIndex(
            self.dim,
            key=self._key,
            metric="l2" if self.metric == "l2" else "cosine",
            name=f"{self.name}, centres",
        )
        coarse.add(centres)
        return coarse

    def _trained(self) -> EncryptedIndex:
        coarse = self._coarse
        if coarse is None:
            raise errors.ArgumentError("The index has no centres yet; call train() first.")
        return coarse

    def _lists_of(self, given: Any) -> Integers:
        return _nearest(self._trained(), given)

    # ---- searching ----

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        filter: Filter | None = None,
        *,
        probes: int | None = None,
    ) -> tuple[Floats, Integers]:
        """Does EncryptedIndex.search() for the vectors in the lists of the `probes` centres that
        are nearest to each query; None: as many as the index says."""
        number = self._probes if probes is None else self._checked_probes(probes)
        return self._search(queries, k, filter, number)

    def recall(self, queries: npt.ArrayLike, k: int, *, probes: int | None = None) -> float:
        """Returns which part of the `k` best of each query, those of all vectors as get() returns
        them, a search with `probes` finds, from 0 to 1. Raises what search() raises."""
        return self._recall(queries, k, self.search(queries, k, probes=probes)[1])

    def _parts(
        self, state: Any, masks: Any, queries: Floats, probes: int | None, numbered: bool
    ) -> searching.Parts:
        if probes is None or probes >= self._lists or self._coarse is None:
            return super()._parts(state, masks, queries, None, numbered)
        _, nearest = self._coarse.search(queries, probes)
        # The queries of each list, one list after the other.
        lists = nearest.reshape(-1)
        asking = np.repeat(np.arange(len(queries), dtype=np.uint32), probes)
        order = np.argsort(lists, kind="stable")
        numbers = np.ascontiguousarray(asking[order])
        many = np.bincount(lists, minlength=self._lists)
        begin = np.cumsum(many) - many
        asked = _Asked(numbers, begin, many, len(queries) == 1)
        parts, before = searching.Parts(self._form), 0
        for view, mask in zip(state.views, masks, strict=True):
            _add_runs(parts, view, mask, asked, before if numbered else None)
            before += view.total
        return parts

    # ---- files and lifetime ----

    def _centroids(self) -> Floats:
        return self._trained().get(np.arange(self._lists))

    def _take_centroids(self, centroids: Floats | None) -> None:
        if centroids is None:
            raise errors.FileFormatError(
                "The file has an index without lists; load it with EncryptedIndex.load()."
            )
        self._lists = len(centroids)
        self._probes = min(8, self._lists)
        self._coarse = self._coarse_of(centroids)
        centroids.fill(0)

    def close(self) -> None:
        """Does EncryptedIndex.close()."""
        coarse, self._coarse = self._coarse, None
        if coarse is not None:
            coarse.close()
        super().close()


def _nearest(coarse: EncryptedIndex, given: Any) -> Integers:
    """Returns the number of the centre that is nearest to each vector."""
    found = np.empty(len(given), np.int64)
    for first in range(0, len(given), _PART):
        found[first : first + _PART] = coarse.search(given[first : first + _PART], 1)[1][:, 0]
    return found


def _move(centres: Floats, sample: Floats, nearest: Integers, random: Any) -> None:
    """Puts each centre in the middle of its vectors. One without takes the place of a vector."""
    order = np.argsort(nearest, kind="stable")
    many = np.bincount(nearest, minlength=len(centres))
    end = np.cumsum(many)
    for number in range(len(centres)):
        mine = order[end[number] - many[number] : end[number]]
        if len(mine):
            centres[number] = 0
            for row in mine.tolist():
                np.add(centres[number], sample[row], out=centres[number])
            np.divide(centres[number], np.float32(len(mine)), out=centres[number])
        else:
            centres[number] = sample[random.integers(len(sample))]


class _Asked(NamedTuple):
    """Which queries ask for each list: `many` of `numbers` from `begin` on."""

    numbers: npt.NDArray[np.uint32]
    begin: Integers
    many: Integers
    single: bool  # there is one query


def _add_runs(
    parts: searching.Parts, view: View, mask: Bitmap | None, asked: _Asked, positions: int | None
) -> None:
    """Adds the runs of a view's rows whose lists some query asks for."""
    runs = view.segment.runs(view.total)
    wanted = asked.many[runs.list] > 0
    first, total, which = runs.first[wanted], runs.total[wanted], runs.list[wanted]
    if len(first):
        queries = None if asked.single else (asked.numbers, asked.begin[which], asked.many[which])
        parts.add(view, mask, first, total, queries, positions=positions)
