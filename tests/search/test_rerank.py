# SPDX-License-Identifier: Apache-2.0
"""Rows of int8 find candidates, and finer rows rank them again: almost as good as the finer rows
alone, with their scores; a change of either kind of row raises."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_support import METRICS, assert_best, exact, rounded, tolerance

from pyccmem import Key, errors
from pyccmem.vectors import EncryptedIndex, EncryptedIVF

FINE = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def key() -> Any:
    with Key.generate() as made:
        yield made


def data(n: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype("f4")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rerank", FINE)
def test_scores_are_those_of_the_fine_rows(key: Key, rerank: str, metric: str) -> None:
    vectors, queries = data(4000, 96, 1), data(40, 96, 2)
    ids = np.random.default_rng(5).permutation(8000)[:4000]
    fine = rounded(vectors, rerank)
    options = {"key": key, "metric": metric, "dtype": "int8"}
    with (
        EncryptedIndex(96, **options, rerank=rerank) as index,
        EncryptedIndex(96, **options) as coarse,
    ):
        assert (index.dtype, index.rerank, index.factor) == ("int8", rerank, 4)
        index.add(vectors[:2500], ids[:2500])
        index.add(vectors[2500:], ids[2500:])
        coarse.add(vectors, ids)
        assert np.array_equal(index.get(ids), fine)
        answer = exact(queries, fine, metric)
        place = {int(one): at for at, one in enumerate(ids)}
        for many in (1, 40):
            scores, found = index.search(queries[:many], 10)
            rows = np.vectorize(place.__getitem__)(found)
            wanted = np.take_along_axis(answer[:many], rows, 1)
            assert np.all(np.abs(scores - wanted) <= tolerance(queries, fine, metric))
            order = scores if metric == "l2" else -scores
            assert np.all(np.diff(order, axis=1) >= 0)
        # As a control: the rows of int8 alone miss some.
        best = np.argsort(answer if metric == "l2" else -answer, axis=1)[:, :10]
        rough = coarse.search(queries, 10)[1]
        missed = np.mean([len(np.setdiff1d(ids[a], b)) for a, b in zip(best, rough, strict=True)])
        assert missed > 0 and index.recall(queries, 10) >= 0.995
        index.factor = 1
        assert abs(index.recall(queries, 10) - (1 - missed / 10)) < 0.02
        index.factor = 400
        assert_best(*index.search(queries, 10), queries, fine, ids, metric, 10)
        assert index.recall(queries, 10) == 1


def test_changes_filters_and_ties(key: Key) -> None:
    vectors = data(3000, 32, 3)
    vectors[100:140] = vectors[7]
    with EncryptedIndex(32, key=key, metric="l2", dtype="int8", rerank="float32") as index:
        index.add(vectors, payloads=[b"%d" % i for i in range(3000)])
        assert index.search(vectors[7], 9)[1].tolist() == [7, *range(100, 108)]
        even = index.search(vectors[:5], 6, filter=lambda ids: ids % 2 == 0)
        index.factor = 500
        assert_best(*even, vectors[:5], vectors[::2], np.arange(0, 3000, 2), "l2", 6)
        index.remove(np.arange(0, 2000))
        index.update([2500], vectors[:1], [b"new"])
        index.compact()
        values = index.get(index.ids())
        left = np.append(np.delete(np.arange(2000, 3000), 500), 2500)
        assert np.array_equal(index.ids(), left)
        assert np.array_equal(values, np.append(vectors[left[:-1]], vectors[:1], axis=0))
        assert_best(*index.search(vectors[:9], 5), vectors[:9], values, left, "l2", 5)
        assert index.search(vectors[0], 1)[1].tolist() == [2500]
        assert index.payloads([2500, 2000]) == [b"new", b"2000"]
        assert index.search(vectors[:2], 2000)[1][:, 1000:].max() == -1


@pytest.mark.parametrize("metric", METRICS)
def test_files(key: Key, tmp_path: Path, metric: str) -> None:
    vectors, queries = data(2000, 40, 4), data(6, 40, 5)
    with EncryptedIndex(40, key=key, metric=metric, dtype="int8", rerank="float16") as index:
        index.add(vectors, np.arange(2000)[::-1])
        index.remove([5, 6])
        before = index.search(queries, 7)
        index.save(tmp_path / "index")
    with EncryptedIndex.load(tmp_path / "index", key=key) as index:
        assert index.rerank == "float16" and index.verify() == []
        after = index.search(queries, 7)
        assert after[0].tobytes() == before[0].tobytes() and np.array_equal(after[1], before[1])
        index.add(vectors[:10])
        assert np.array_equal(index.get([2000]), vectors[:1].astype("f2"))
        assert index.search(vectors[1], 1)[1].tolist() in ([1998], [2001])
    with pytest.raises(errors.FileFormatError):
        EncryptedIVF.load(tmp_path / "index", key=key)


def test_with_lists(key: Key, tmp_path: Path) -> None:
    centres = data(20, 48, 6)
    vectors = (np.repeat(centres, 200, 0) + 0.3 * data(4000, 48, 7)).astype("f4")
    queries = vectors[::97] + 0.1 * data(len(vectors[::97]), 48, 8)
    options = {"key": key, "metric": "cosine", "dtype": "int8", "rerank": "float32"}
    with EncryptedIVF(48, 16, **options, probes=4) as index:
        index.train(vectors)
        index.add(vectors[:3000])
        index.add(vectors[3000:])
        assert index.recall(queries, 10) > 0.9
        assert index.recall(queries, 10, probes=16) > 0.99
        index.factor = 400
        assert_best(*index.search(queries, 5, probes=16), queries, vectors, np.arange(4000),
                    "cosine", 5)  # fmt: skip
        before = index.search(queries, 10)
        index.save(tmp_path / "index")
    with EncryptedIVF.load(tmp_path / "index", key=key) as index:
        index.probes, index.factor = 4, 400
        assert np.array_equal(index.search(queries, 10)[1], before[1])


def test_a_change_of_any_row_raises(key: Key) -> None:
    vectors = data(3000, 100, 9)
    with EncryptedIndex(100, key=key, metric="l2", dtype="int8", rerank="float32") as index:
        index.add(vectors)
        wanted = index.search(vectors[3], 4)[1].tolist()
        (view,) = index._state.views
        buffers = view.segment.buffers()
        assert len(buffers) == 4
        for buffer in buffers:
            memory = np.frombuffer(buffer.ciphertext, np.uint8)
            bit = ctypes.c_uint8.from_address(memory.ctypes.data + 5)  # of the first row
            bit.value ^= 4
            assert 0 in index.verify()
            with pytest.raises(errors.IntegrityError) as caught:
                index.search(vectors[0], 4)
            assert caught.value.name == buffer.name and caught.value.page == 0
            bit.value ^= 4
        assert index.verify() == [] and index.search(vectors[3], 4)[1].tolist() == wanted


def test_what_is_refused(key: Key) -> None:
    for options in (
        {"rerank": "float32"},
        {"dtype": "float16", "rerank": "float32"},
        {"dtype": "int8", "rerank": "int8"},
        {"dtype": "int8", "rerank": "float64"},
        {"factor": 0},
        {"factor": 1 << 21},
    ):
        with pytest.raises(errors.ArgumentError):
            EncryptedIndex(8, key=key, **options)
    for options in ({"dtype": "int8", "rerank": 4}, {"factor": "2"}):
        with pytest.raises(errors.ArgumentTypeError):
            EncryptedIndex(8, key=key, **options)
    with EncryptedIndex(8, key=key, dtype="int8", rerank="float16") as index:
        with pytest.raises(errors.ArgumentError, match="too large for float16"):
            index.add(np.full((2, 8), 1e5))
        assert len(index) == 0 and index.search(np.ones(8), 2)[1].tolist() == [-1, -1]
        with pytest.raises(errors.ArgumentError):
            index.factor = -1
        index.add(np.ones((2, 8)))
        assert index.search(np.ones(8), 3)[1].tolist() == [0, 1, -1]
