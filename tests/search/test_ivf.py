# SPDX-License-Identifier: Apache-2.0
"""EncryptedIVF: with all lists it finds what EncryptedIndex finds, with some of them most of it,
and it opens no others."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_support import METRICS, assert_best, kept

from pyccmem import Key, errors
from pyccmem.vectors import EncryptedIndex, EncryptedIVF


@pytest.fixture(scope="module")
def key() -> Any:
    with Key.generate() as made:
        yield made


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((20, dim))
    return (centres[rng.integers(0, 20, n)] + 0.3 * rng.standard_normal((n, dim))).astype("f4")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_recall_and_all_lists(key: Key, tmp_path: Path, dtype: str, metric: str) -> None:
    vectors, queries = clustered(6000, 48, 2), clustered(70, 48, 3)
    with EncryptedIVF(48, 32, key=key, metric=metric, dtype=dtype, probes=4) as index:
        assert not index.trained
        with pytest.raises(errors.ArgumentError, match="train"):
            index.add(vectors)
        index.train(vectors[:3000], iterations=4)
        ids = np.random.default_rng(1).permutation(6000)
        bodies = [b"%d" % one for one in ids]
        assert np.array_equal(index.add(vectors[:5000], ids[:5000], bodies[:5000]), ids[:5000])
        for first in range(5000, 6000, 100):
            index.add(
                vectors[first : first + 100], ids[first : first + 100], bodies[first : first + 100]
            )
        assert index.payloads(ids[::97]) == bodies[::97]
        index.remove(ids[:1500])
        left = ids[1500:]
        values = kept(index, left, vectors[1500:])
        for some in (queries[:1], queries):
            assert_best(*index.search(some, 10, probes=32), some, values, left, metric, 10)
        rate = index.recall(queries, 10)
        assert rate > 0.8 and index.recall(queries, 10, probes=32) == 1
        assert index.recall(queries, 10, probes=1) <= rate
        # One query alone and among others: the same lists.
        alone = [index.search(one, 10)[1] for one in queries[:20]]
        assert np.mean(np.array(alone) == index.search(queries, 10)[1][:20]) > 0.98
        few = index.search(queries, 5, filter=left[:40], probes=32)
        assert_best(*few, queries, values[:40], left[:40], metric, 5)
        index.compact()
        assert_best(*index.search(queries, 10, probes=32), queries, values, left, metric, 10)
        before = index.search(queries, 10)
        index.save(tmp_path / "index")
        assert index.verify() == []
    with EncryptedIVF.load(tmp_path / "index", key=key) as index:
        index.probes = 4
        after = index.search(queries, 10)
        assert np.array_equal(after[1], before[1])
        index.add(vectors[:100])
        assert len(index) == 4600 and index.lists == 32
    with pytest.raises(errors.FileFormatError, match="EncryptedIVF"):
        EncryptedIndex.load(tmp_path / "index", key=key)


def test_only_probed_lists_are_opened(key: Key) -> None:
    vectors = clustered(6000, 64, 2)
    with EncryptedIVF(64, 16, key=key, metric="l2", probes=1) as index:
        index.train(vectors, iterations=3)
        index.add(vectors)
        (view,) = index._state.views
        query = vectors[0]
        near = index._coarse.search(query, 1)[1][0]
        far = np.flatnonzero(view.segment.lists[: view.total] != near)
        # A row in the middle of another list, whose page holds no row of this one.
        rows = [row for row in far if (view.segment.lists[row - 20 : row + 20] != near).all()]
        opened = np.frombuffer(view.segment.buffer.ciphertext, np.uint8)
        ctypes.c_uint8.from_address(opened.ctypes.data + int(rows[50]) * 256).value ^= 1
        index.search(query, 3)
        with pytest.raises(errors.IntegrityError):
            index.search(query, 3, probes=16)


def test_what_is_refused(key: Key) -> None:
    for lists, probes in ((0, 1), (4, 0), (1 << 21, 1)):
        with pytest.raises(errors.ArgumentError):
            EncryptedIVF(8, lists, key=key, probes=probes)
    with EncryptedIVF(8, 4, key=key) as index:
        with pytest.raises(errors.ArgumentError, match="centres"):
            index.train(np.ones((3, 8)))
        with pytest.raises(errors.ArgumentError, match="infinite"):
            index.train(np.full((9, 8), np.inf))
        assert index.search(np.ones(8), 2)[1].tolist() == [-1, -1]
        index.train(np.ones((9, 8)))
        index.add(np.ones((9, 8)))
        with pytest.raises(errors.ArgumentError, match="holds vectors"):
            index.train(np.ones((9, 8)))
    with pytest.raises(errors.ClosedError):
        index.search(np.ones(8), 1)
