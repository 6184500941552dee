# SPDX-License-Identifier: Apache-2.0
"""Measures the searches of vectors.py and prints them as JSON. vectors.py runs it in a new process,
whose environment sets the threads of BLAS and OpenMP.

Usage: python -m pyccmem.bench.vectors_child ROUNDS THREADS COUNTxDIM...
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..keys import Key
from ..process import get_num_threads, set_num_threads
from ..vectors import EncryptedIndex, EncryptedIVF
from .rounds import CheckError, interleave
from .vectors import BLAS, FAISS, GROUP, NUMPY, OURS, QUERIES, USEARCH, K

#: What faiss calls its types.
QUANTIZERS = {"float16": "QT_fp16", "int8": "QT_8bit"}

#: Part of the best that a search of all vectors must find: types round, and near scores change
#: places.
LEAST = {"float32": 0.99, "float16": 0.95, "int8": 0.7}

#: Inverted lists: how many vectors each has, and probes to try.
LIST, PROBES = 1000, (1, 2, 4, 8, 16, 32, 64, 128)

#: Queries of lists that recall is counted with, and of those how many are timed, one by one.
RECALL_QUERIES, TIMED_QUERIES = 256, 16

_CHUNK = 50_000

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Exact:
    """The ids of the best of what was added, found with NumPy: what every search is checked by."""

    def __init__(self, queries: Floats, metric: str) -> None:
        self._queries = queries
        self._euclidean = metric == "l2"
        self._count = 0
        self._scores = np.full((len(queries), K), -np.inf, np.float32)
        self.ids: Integers = np.full((len(queries), K), -1, np.int64)

    def add(self, vectors: Floats) -> None:
        """Takes more vectors; their ids follow those of the ones before."""
        scores = self._queries @ vectors.T
        if self._euclidean:  # the smallest |q - v|^2 is the largest qv - |v|^2 / 2
            scores -= np.einsum("ij,ij->i", vectors, vectors) / 2
        best = np.argpartition(scores, -K, axis=1)[:, -K:]
        both = np.hstack((self._scores, np.take_along_axis(scores, best, 1)))
        ids = np.hstack((self.ids, best + self._count))
        order = np.argsort(-both, axis=1)[:, :K]
        self._scores = np.take_along_axis(both, order, 1)
        self.ids = np.take_along_axis(ids, order, 1)
        self._count += len(vectors)

    def recall(self, found: Any) -> float:
        """Returns which part of the best is in `found`, the ids for the first queries."""
        rows = np.atleast_2d(np.asarray(found)).astype(np.int64)
        hits = [len(np.intersect1d(a, b)) for a, b in zip(rows, self.ids, strict=False)]
        return float(np.sum(hits)) / (K * len(rows))


def measure_here(rounds: int, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Returns the samples of everything, each with its name."""
    faiss = _module("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(get_num_threads())
    found: list[dict[str, Any]] = []
    with Key.generate() as key:
        for count, dim in shapes:
            for dtype in LEAST:
                found += _flat(key, faiss, count, dim, dtype, rounds)
        found += _lists(key, faiss, *shapes[0], rounds)
    return found


def _module(name: str) -> Any:
    """Returns a package, or None where it is not installed."""
    return None if importlib.util.find_spec(name) is None else importlib.import_module(name)


def _chunks(count: int, dim: int) -> Iterator[Floats]:
    """Yields random vectors, the same ones every time, and never all at once."""
    generator = np.random.default_rng(dim)
    for first in range(0, count, _CHUNK):
        yield generator.standard_normal((min(_CHUNK, count - first), dim), dtype=np.float32)


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _flat(
    key: Key, faiss: Any, count: int, dim: int, dtype: str, rounds: int
) -> list[dict[str, Any]]:
    """Measures an index that looks at all vectors: adding them, its memory, searches."""
    about: dict[str, Any] = {"shape": [count, dim], "dtype": dtype}
    queries = np.random.default_rng(7).standard_normal((max(QUERIES), dim), dtype=np.float32)
    exact = Exact(queries, "ip")
    with EncryptedIndex(dim, key=key, dtype=dtype) as index:
        other = None if faiss is None else _faiss_flat(faiss, dim, dtype)
        adding = dict.fromkeys((OURS,) if other is None else (OURS, FAISS), 0.0)
        for number, chunk in enumerate(_chunks(count, dim)):
            if other is not None and not other.is_trained:
                other.train(chunk)
            exact.add(chunk)
            for name in adding if number % 2 else reversed(adding):
                taker: Any = index if name == OURS else other
                adding[name] += _seconds(partial(taker.add, chunk))
        element = {"float32": 4, "float16": 2, "int8": 1}[dtype]
        memory = index.nbytes / (count * dim * element)
        found = [{**about, "what": "memory", "name": OURS, "samples": [memory]}]
        found += [
            {**about, "what": "add", "name": name, "samples": [seconds]}
            for name, seconds in adding.items()
        ]
        for many in QUERIES:
            calls = _searches(index, faiss, other, queries[:many], dtype, count)
            _check(calls, exact, dtype)
            for name, samples in _timed(calls, rounds).items():
                found.append(
                    {**about, "what": "search", "queries": many, "name": name, "samples": samples}
                )
    return found


def _timed(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of calls that take turns."""
    series = {name: partial(_seconds, call) for name, call in calls.items()}
    taken = interleave(series, min(rounds, 9), tries=1)
    return {name: samples.tolist() for name, samples in taken.items()}


def _faiss_flat(faiss: Any, dim: int, dtype: str) -> Any:
    if dtype == "float32":
        return faiss.IndexFlatIP(dim)
    kind = getattr(faiss.ScalarQuantizer, QUANTIZERS[dtype])
    return faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)


def _searches(
    index: EncryptedIndex, faiss: Any, other: Any, queries: Floats, dtype: str, count: int
) -> dict[str, Callable[[], Any]]:
    """Returns what is timed: functions that return the ids of the best. All others search the
    plain vectors that faiss holds."""
    calls: dict[str, Callable[[], Any]] = {OURS: lambda: index.search(queries, K)[1]}
    if other is None:
        return calls
    calls[FAISS] = partial(_faiss_search, faiss, other, queries, 1 << 30)
    if dtype == "float32":
        if len(queries) > 1:
            calls[BLAS] = partial(_faiss_search, faiss, other, queries, 1)
        dim = queries.shape[1]
        plain = faiss.rev_swig_ptr(other.get_xb(), count * dim).reshape(count, dim)
        calls[NUMPY] = partial(_numpy_search, plain, queries)
        if _module("usearch") is not None:
            calls[USEARCH] = partial(_usearch_search, _module("usearch.index"), plain, queries)
    return calls


def _faiss_search(faiss: Any, other: Any, queries: Floats, least: int) -> Any:
    """Searches with faiss, which multiplies `least` queries and more by its BLAS."""
    faiss.cvar.distance_compute_blas_threshold = least
    return other.search(queries, K)[1]


def _numpy_search(plain: Floats, queries: Floats) -> Any:
    scores = queries @ plain.T
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
    return np.take_along_axis(best, order, 1)


def _usearch_search(usearch: Any, plain: Floats, queries: Floats) -> Any:
    metric, threads = usearch.MetricKind.IP, get_num_threads()
    return usearch.search(plain, queries, K, metric, exact=True, threads=threads).keys


def _check(calls: Mapping[str, Callable[[], Any]], exact: Exact, dtype: str) -> None:
    """Checks that all find the best, as far as their types go."""
    for name, call in calls.items():
        recall = exact.recall(call())
        if recall < LEAST[dtype]:
            raise CheckError(
                f"{GROUP}, {dtype}, {name}: only {recall:.3f} of the best were found, so its "
                "speed means nothing."
            )


def _lists(key: Key, faiss: Any, count: int, dim: int, rounds: int) -> list[dict[str, Any]]:
    """Measures inverted lists of clustered vectors, by the number of lists that are opened."""
    lists = max(count // LIST, 16)
    centres = np.random.default_rng(3).standard_normal((4 * lists, dim), dtype=np.float32)

    def drawn(number: int, many: int) -> Floats:
        generator = np.random.default_rng(number)
        noise = generator.standard_normal((many, dim), dtype=np.float32)
        return centres[generator.integers(0, len(centres), many)] + noise

    queries = drawn(1, RECALL_QUERIES)
    sample = drawn(2, min(64 * lists, count))
    exact = Exact(queries, "l2")
    other = None if faiss is None else faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    with EncryptedIVF(dim, lists, key=key, metric="l2") as index:
        index.train(sample, iterations=10)
        if other is not None:
            other.train(sample)
        for number, first in enumerate(range(0, count, _CHUNK)):
            part = drawn(100 + number, min(_CHUNK, count - first))
            exact.add(part)
            index.add(part)
            if other is not None:
                other.add(part)
        index.compact()
        if exact.recall(index.search(queries, K, probes=lists)[1]) < LEAST["float32"]:
            raise CheckError(f"{GROUP}, lists: all of them together do not hold the best.")
        found = []
        for probes in (number for number in PROBES if number <= lists):
            searches = {OURS: partial(_ids, index, k=K, probes=probes)}
            if other is not None:
                other.nprobe = probes
                searches[FAISS] = partial(_ids, other, k=K)
            rates = {name: exact.recall(search(queries)) for name, search in searches.items()}
            calls = {name: partial(_each, queries, search) for name, search in searches.items()}
            for name, samples in _timed(calls, rounds).items():
                found.append(
                    {"what": "lists", "name": name, "probes": probes, "recall": rates[name],
                     "samples": [seconds / TIMED_QUERIES for seconds in samples]}
                )  # fmt: skip
    return found


def _ids(index: Any, queries: Floats, **options: int) -> Any:
    return index.search(queries, **options)[1]


def _each(queries: Floats, search: Callable[[Floats], object]) -> None:
    """Searches for queries one by one, each in other lists."""
    for at in range(TIMED_QUERIES):
        search(queries[at : at + 1])


def _main(rounds: str, threads: str, *shapes: str) -> None:
    set_num_threads(int(threads))
    sizes = [tuple(map(int, shape.split("x"))) for shape in shapes]
    print(json.dumps(measure_here(int(rounds), [(count, dim) for count, dim in sizes])))


if __name__ == "__main__":
    _main(*sys.argv[1:])
