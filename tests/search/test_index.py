# SPDX-License-Identifier: Apache-2.0
"""EncryptedIndex finds what a search in float64 finds, after any changes, and refuses what it
should."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from vector_support import METRICS, TYPES, assert_best, exact, kept, tolerance

import pyccmem
from pyccmem import Key, errors
from pyccmem.vectors import EncryptedIndex


@pytest.fixture(scope="module")
def key() -> Any:
    with Key.generate() as made:
        yield made


def data_of(kind: str, n: int, dim: int, seed: int = 1) -> np.ndarray:
    """Vectors of several kinds."""
    rng = np.random.default_rng(seed)
    if kind == "clustered":
        centres = rng.standard_normal((7, dim))
        return (centres[rng.integers(0, 7, n)] + 0.05 * rng.standard_normal((n, dim))).astype("f4")
    if kind == "duplicate":
        some = rng.standard_normal((max(n // 9, 1), dim))
        return some[rng.integers(0, len(some), n)].astype("f4")
    if kind == "degenerate":
        found = rng.standard_normal((n, dim)).astype("f4")
        found[::5] = 0
        found[1::5] = found[1]
        found[2::5] *= np.float32(1e-12)
        return found
    return rng.standard_normal((n, dim)).astype("f4")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [1, 7, 64, 384])
def test_the_best_are_found(key: Key, dtype: str, metric: str, dim: int) -> None:
    vectors = data_of("random", 2500, dim)
    with EncryptedIndex(dim, key=key, metric=metric, dtype=dtype) as index:
        assert index.add(vectors).tolist() == list(range(2500))
        values = kept(index, np.arange(2500), vectors)
        for nqueries in (1, 3, 60):
            queries = data_of("random", nqueries, dim, 2)
            scores, ids = index.search(queries, 10)
            assert_best(scores, ids, queries, values, np.arange(2500), metric, 10)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["clustered", "duplicate", "degenerate"])
def test_ties_and_odd_vectors(key: Key, kind: str, metric: str) -> None:
    vectors = data_of(kind, 3000, 32)
    with EncryptedIndex(32, key=key, metric=metric) as index:
        order = np.random.default_rng(3).permutation(3000)
        index.add(vectors[order], order)
        queries = np.concatenate(
            [vectors[:4], data_of("random", 2, 32, 5), np.zeros((1, 32), "f4")]
        )
        scores, ids = index.search(queries, 50)
        assert_best(scores, ids, queries, vectors, np.arange(3000), metric, 50)
        for threads in (1, 2):
            before = pyccmem.get_num_threads()
            pyccmem.set_num_threads(threads)
            try:
                again = index.search(queries, 50)
            finally:
                pyccmem.set_num_threads(before)
            assert again[0].tobytes() == scores.tobytes() and again[1].tobytes() == ids.tobytes()


@pytest.mark.parametrize("metric", METRICS)
def test_faiss_finds_the_same(key: Key, metric: str) -> None:
    faiss = pytest.importorskip("faiss")
    vectors, queries = data_of("clustered", 5000, 96), data_of("clustered", 70, 96)
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    other = faiss.IndexFlatL2(96) if metric == "l2" else faiss.IndexFlatIP(96)
    other.add(vectors)
    with EncryptedIndex(96, key=key, metric=metric) as index:
        index.add(vectors)
        for some in (queries[:1], queries[:16], queries):
            scores, ids = index.search(some, 10)
            wanted, names = other.search(some, 10)
            off = tolerance(some, vectors, metric)
            assert np.allclose(scores, wanted, rtol=0, atol=2 * off)
            answer = exact(some, vectors, metric)
            differ = ids != names
            mine, theirs = (np.take_along_axis(answer, one, 1) for one in (ids, names))
            assert np.all(np.abs(mine - theirs)[differ] <= 4 * off)
            assert differ.mean() < 0.02


@pytest.mark.parametrize("steps", [2000, pytest.param(10_000, marks=pytest.mark.full)])
def test_thousands_of_steps(key: Key, steps: int) -> None:
    """Against a dictionary: adding, removing, changing, searching in any order."""
    rng = np.random.default_rng(7)
    dim, metric = 24, "l2"
    model: dict[int, np.ndarray] = {}
    bodies: dict[int, bytes | None] = {}
    with EncryptedIndex(dim, key=key, metric=metric) as index:
        for step in range(steps):
            what = rng.random()
            if what < 0.4 or not model:
                n = int(rng.integers(1, 30))
                vectors = rng.standard_normal((n, dim)).astype("f4")
                payloads = [rng.bytes(int(rng.integers(0, 60))) if rng.random() < 0.7 else None
                            for _ in range(n)]  # fmt: skip
                ids = None
                if rng.random() < 0.3:
                    free = np.setdiff1d(rng.integers(0, 1 << 40, 3 * n), [*model])
                    ids = rng.permutation(free)[:n]
                got = index.add(vectors, ids, payloads)
                assert ids is None or np.array_equal(got, ids)
                for one, vector, payload in zip(got.tolist(), vectors, payloads, strict=True):
                    assert one not in model
                    model[one], bodies[one] = vector, payload
            elif what < 0.62:
                n = min(int(rng.integers(1, 50)), len(model))
                chosen = rng.choice([*model], n, replace=False)
                index.remove(chosen)
                for one in chosen.tolist():
                    del model[one], bodies[one]
            elif what < 0.75:
                n = min(int(rng.integers(1, 10)), len(model))
                chosen = rng.choice([*model], n, replace=False)
                vectors = rng.standard_normal((n, dim)).astype("f4")
                payloads = [rng.bytes(5) for _ in range(n)]
                both = rng.integers(1, 4)
                index.update(chosen, vectors if both & 1 else None, payloads if both & 2 else None)
                for at, one in enumerate(chosen.tolist()):
                    if both & 1:
                        model[one] = vectors[at]
                    if both & 2:
                        bodies[one] = payloads[at]
            elif what < 0.76:
                index.compact()
            else:
                queries = rng.standard_normal((int(rng.integers(1, 4)), dim)).astype("f4")
                names = np.array([*model])
                filtered = None
                if rng.random() < 0.3:
                    filtered = rng.choice(names, min(len(names), 30), replace=False)
                    names = filtered
                scores, ids = index.search(queries, 5, filter=filtered)
                vectors = np.array([model[int(one)] for one in names])
                assert_best(scores, ids, queries, vectors, names, metric, 5)
                some = rng.choice([*model], min(len(model), 4), replace=False)
                assert np.array_equal(index.get(some), [model[int(one)] for one in some])
                assert index.payloads(some) == [bodies[int(one)] for one in some]
            assert len(index) == len(model)
            if step % 1000 == 999:
                assert sorted(index.ids().tolist()) == sorted(model)
                assert index.verify() == []


def test_filters(key: Key) -> None:
    vectors, queries = data_of("random", 5000, 16), data_of("random", 5, 16, 3)
    with EncryptedIndex(16, key=key) as index:
        index.add(vectors)
        even = index.search(queries, 8, filter=lambda ids: ids % 2 == 0)
        assert_best(*even, queries, vectors[::2], np.arange(0, 5000, 2), "ip", 8)
        named = index.search(queries, 8, filter=np.arange(0, 10_000, 2))
        assert np.array_equal(named[1], even[1])
        few = index.search(queries, 8, filter=[17, 4711])
        assert_best(*few, queries, vectors[[17, 4711]], np.array([17, 4711]), "ip", 8)
        none = index.search(queries, 3, filter=[])
        assert (none[1] == -1).all() and (none[0] == -np.inf).all()
        index.remove([17])
        assert index.search(queries, 2, filter=[17, 4711])[1].tolist() == [[4711, -1]] * 5
        with pytest.raises(errors.ArgumentError, match="bool"):
            index.search(queries, 1, filter=lambda ids: ids)
        with pytest.raises(errors.ArgumentTypeError):
            index.search(queries, 1, filter=["a"])


def test_shapes_and_padding(key: Key) -> None:
    with EncryptedIndex(4, key=key, metric="l2") as index:
        scores, ids = index.search(np.zeros(4), 3)
        assert scores.tolist() == [np.inf] * 3 and ids.tolist() == [-1] * 3
        assert index.add([1, 2, 3, 4]).tolist() == [0]
        assert index.search(np.zeros((0, 4)), 3)[0].shape == (0, 3)
        scores, ids = index.search([1, 2, 3, 4], 2)
        assert scores.tolist() == [0, np.inf] and ids.tolist() == [0, -1]
        assert index.add(np.zeros((0, 4))).tolist() == []
        assert index.payloads(ids) == [None, None]
        assert index.payloads([[0, -1]]) == [[None, None]]
        assert len(index) == 1 and 0 in index and 1 not in index and "a" not in index


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_refused(key: Key, dtype: str, metric: str) -> None:
    good = np.ones((3, 8), "f4")
    with EncryptedIndex(8, key=key, metric=metric, dtype=dtype) as index:
        index.add(good, [5, 6, 7], [b"a", None, b"c"])
        for bad in (np.nan, np.inf, -np.inf):
            wrong = good.copy()
            wrong[1, 3] = bad
            for call in (
                lambda wrong=wrong: index.add(wrong),
                lambda wrong=wrong: index.update([5, 6, 7], wrong),
                lambda wrong=wrong: index.search(wrong, 1),
            ):
                with pytest.raises(errors.ArgumentError, match="row 1"):
                    call()
        if dtype == "float16":
            with pytest.raises(errors.ArgumentError, match="too large for float16"):
                index.add(good * 70_000)
        if metric != "ip" and dtype in ("float32", "bfloat16"):
            with pytest.raises(errors.ArgumentError, match="norm"):
                index.add(good * 1e20)
        for vectors, ids, payloads in (
            (good[:, :7], None, None),
            (good, [1, 2], None),
            (good, [1, 2, 2], None),
            (good, [1, 2, 5], None),
            (good, [1, 2, -3], None),
            (good, [1, 2, 2**63 - 1], None),
            (good, [[1], [2], [3]], None),
            (good, None, [b"a"]),
        ):
            with pytest.raises(errors.ArgumentError):
                index.add(vectors, ids, payloads)
        for vectors, ids, payloads in (
            (good, [1.5, 2, 3], None),
            ("abc", None, None),
            (good.astype(complex), None, None),
            (good, None, ["text", None, None]),
            (good, None, b"abc"),
        ):
            with pytest.raises(errors.ArgumentTypeError):
                index.add(vectors, ids, payloads)
        for call in (
            lambda: index.remove([5, 8]),
            lambda: index.remove([5, 5]),
            lambda: index.get([9]),
            lambda: index.payloads([9]),
            lambda: index.update([9], good[:1]),
            lambda: index.update([5], good),
            lambda: index.search(good, 0),
        ):
            with pytest.raises(errors.ArgumentError):
                call()
        assert len(index) == 3 and index.ids().tolist() == [5, 6, 7]
        assert index.payloads([5, 6, 7]) == [b"a", None, b"c"]
    for call in (lambda: len(index), lambda: index.search(good, 1), lambda: index.add(good)):
        with pytest.raises(errors.ClosedError):
            call()


def test_arguments_of_the_constructor(key: Key) -> None:
    for options in ({"dim": 0}, {"metric": "l1"}, {"dtype": "float64"}):
        with pytest.raises(errors.ArgumentError):
            EncryptedIndex(**{"dim": 8, "key": key, **options})
    for options in ({"dim": "8"}, {"metric": 1}, {"dtype": None}, {"key": b"x"}, {"name": 3}):
        with pytest.raises(errors.ArgumentTypeError):
            EncryptedIndex(**{"dim": 8, "key": key, **options})


@pytest.mark.parametrize("dtype", TYPES)
def test_vectors_come_back(key: Key, dtype: str) -> None:
    vectors = data_of("random", 3000, 50)
    with EncryptedIndex(50, key=key, dtype=dtype, metric="cosine") as index:
        index.add(vectors[:1700], np.arange(1700)[::-1])
        index.add(vectors[1700:].astype(np.float64))
        order = np.random.default_rng(1).permutation(3000)
        values = vectors.copy()
        values[:1700] = values[:1700][::-1]
        assert np.array_equal(index.get(order), kept(index, order, values[order]))


def test_readers_beside_a_writer(key: Key) -> None:
    """Each search sees one state: vectors of a group are there together or not at all."""
    dim, group = 16, 50
    wrong: list[Any] = []
    done = threading.Event()
    with EncryptedIndex(dim, key=key) as index:
        index.add(np.eye(1, dim, dtype="f4"), [1 << 40])

        def reads() -> None:
            while not done.is_set():
                try:
                    scores, ids = index.search(np.ones(dim), 600)
                    mine = (ids >= 0) & (ids < 1 << 40)
                    found = ids[mine]
                    groups, counts = np.unique(found // group, return_counts=True)
                    if set(counts) - {group}:
                        wrong.append((groups, counts))
                    expected = np.where(found % 2 == 0, dim * (found // group + 1.0), 0)
                    if not np.allclose(scores[mine], expected):
                        wrong.append((scores, ids))
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=reads) for _ in range(2)]
        for one in threads:
            one.start()
        rng = np.random.default_rng(1)
        present: list[int] = []
        for number in range(400):
            chosen = number % 100
            ids = np.arange(chosen * group, (chosen + 1) * group)
            vectors = np.where(ids[:, None] % 2 == 0, np.float32(chosen + 1), np.float32(0))
            if chosen in present:
                index.update(ids, vectors.repeat(dim, 1))
            else:
                index.add(vectors.repeat(dim, 1), ids)
                present.append(chosen)
            if len(present) > 7:
                gone = present.pop(int(rng.integers(len(present))))
                index.remove(np.arange(gone * group, (gone + 1) * group))
        done.set()
        for one in threads:
            one.join()
    assert not wrong, wrong[0]


def test_a_large_k(key: Key) -> None:
    vectors = data_of("random", 4000, 8)
    with EncryptedIndex(8, key=key) as index:
        index.add(vectors)
        scores, ids = index.search(vectors[:2], 5000)
        assert_best(scores, ids, vectors[:2], vectors, np.arange(4000), "ip", 5000)
        many = data_of("random", 700, 8, 9)
        assert_best(*index.search(many, 3), many, vectors, np.arange(4000), "ip", 3)
