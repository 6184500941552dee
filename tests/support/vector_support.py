# SPDX-License-Identifier: Apache-2.0
"""What the tests of vector search share: the answer in float64, and how near a result has to be."""

from __future__ import annotations

from typing import Any

import numpy as np

TYPES = ("float32", "float16", "bfloat16", "int8")
METRICS = ("ip", "cosine", "l2")


def kept(index: Any, ids: Any, vectors: Any) -> np.ndarray:
    """What an index keeps of vectors, in float64: of int8 what it says, which is near to them."""
    if index.dtype != "int8":
        return rounded(vectors, index.dtype)
    found = index.get(ids).astype(np.float64)
    most = np.abs(vectors).max(axis=1, keepdims=True)
    assert np.all(np.abs(found - vectors) <= 0.75 * most / 127)
    return found


def rounded(vectors: Any, dtype: str) -> np.ndarray:
    """Vectors as numbers of another type, in float64."""
    x = np.asarray(vectors, np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float64)
    if dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        return (
            (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32))
            .view(np.float32)
            .astype(np.float64)
        )
    return x.astype(np.float64)


def exact(queries: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    """The scores of all vectors, in float64, as search() gives them."""
    q, v = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    if metric == "ip":
        return q @ v.T
    if metric == "l2":
        return ((q[:, None] - v[None]) ** 2).sum(axis=2)
    norms = [np.linalg.norm(one, axis=1) for one in (q, v)]
    norms = [np.where(one < 2.0**-100, np.inf, one) for one in norms]
    return (q / norms[0][:, None]) @ (v / norms[1][:, None]).T


def tolerance(queries: np.ndarray, vectors: np.ndarray, metric: str) -> float:
    """By how much float32 may miss a score."""
    q, v = np.abs(queries).astype(np.float64), np.abs(vectors).astype(np.float64)
    unit = (q.shape[1] + 16) * 2.0**-24
    if metric == "cosine":
        return unit * 4
    largest = (q @ v.T).max(initial=0)
    if metric == "l2":
        largest = 2 * largest + (q**2).sum(axis=1).max() + (v**2).sum(axis=1).max(initial=0)
    return float(unit * largest) * 2 + 1e-30


def assert_best(
    scores: np.ndarray,
    ids: np.ndarray,
    queries: np.ndarray,
    vectors: np.ndarray,
    of: np.ndarray,
    metric: str,
    k: int,
) -> None:
    """That a result has the k best of `vectors`, whose ids are `of`, for each query."""
    assert scores.shape == ids.shape == (len(queries), k)
    assert scores.dtype == np.float32 and ids.dtype == np.int64
    found = min(k, len(vectors))
    assert (ids[:, found:] == -1).all()
    assert np.isinf(scores[:, found:]).all()
    if not found:
        return
    answer = exact(queries, vectors, metric)
    off = tolerance(queries, vectors, metric)
    sign = -1 if metric == "l2" else 1
    place = {int(one): at for at, one in enumerate(of)}
    for q in range(len(queries)):
        got = [place[int(one)] for one in ids[q, :found]]
        assert len(set(got)) == found, "an id twice"
        assert np.all(np.abs(answer[q, got] - scores[q, :found]) <= off), (
            np.abs(answer[q, got] - scores[q, :found]).max(),
            off,
        )
        ordered = sign * scores[q, :found]
        assert np.all(ordered[:-1] >= ordered[1:])
        same = np.flatnonzero(ordered[:-1] == ordered[1:])
        assert np.all(ids[q, same] < ids[q, same + 1]), "ties not in the order of ids"
        best = np.sort(sign * answer[q])[::-1][:found]
        assert np.all(sign * answer[q, got] >= best[-1] - 2 * off), "a better one was missed"
