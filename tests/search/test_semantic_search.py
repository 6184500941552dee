# SPDX-License-Identifier: Apache-2.0
"""semantic_search() finds what sentence_transformers finds, over arrays, tensors and indexes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyccmem import Key, errors
from pyccmem.vectors import EncryptedIndex, semantic_search

RNG = np.random.default_rng(5)
CORPUS = RNG.standard_normal((400, 48)).astype("f4")
QUERIES = RNG.standard_normal((7, 48)).astype("f4")


def plain(metric: str) -> np.ndarray:
    """The score of each query and row."""
    rows, queries = CORPUS.astype("f8"), QUERIES.astype("f8")
    if metric == "euclidean":
        return -np.linalg.norm(queries[:, None] - rows[None], axis=2)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1)[:, None]
        queries = queries / np.linalg.norm(queries, axis=1)[:, None]
    return queries @ rows.T


def assert_same(found: Any, wanted: Any) -> None:
    assert [[hit["corpus_id"] for hit in one] for one in found] == [
        [hit["corpus_id"] for hit in one] for one in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        assert all(hit.keys() == {"corpus_id", "score"} for hit in one)
        assert all(type(hit["corpus_id"]) is int and type(hit["score"]) is float for hit in one)
        np.testing.assert_allclose(
            [hit["score"] for hit in one], [hit["score"] for hit in other], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_numpy_finds_the_same(metric: str) -> None:
    scores = plain(metric)
    order = np.argsort(-scores, axis=1)[:, :6]
    wanted = [
        [{"corpus_id": int(at), "score": float(row[at])} for at in best]
        for row, best in zip(scores, order, strict=True)
    ]
    assert_same(semantic_search(QUERIES, CORPUS, top_k=6, score_function=metric), wanted)
    ours = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}[metric]
    with Key.generate() as key, EncryptedIndex(48, key=key, metric=ours) as index:
        index.add(CORPUS)
        assert_same(semantic_search(QUERIES, index, top_k=6), wanted)
        assert_same(semantic_search(QUERIES[0], index, top_k=6, score_function=metric), wanted[:1])
        other = "dot" if metric != "dot" else "cosine"
        with pytest.raises(errors.ArgumentError, match="the index has"):
            semantic_search(QUERIES, index, score_function=other)


def test_sentence_transformers_finds_the_same() -> None:
    pytest.importorskip("sentence_transformers", reason="needs the [sentence-transformers] extra")
    import torch
    from sentence_transformers import util

    corpus, queries = torch.from_numpy(CORPUS), torch.from_numpy(QUERIES)
    assert_same(semantic_search(queries, corpus), util.semantic_search(queries, corpus))
    for function in (util.cos_sim, util.dot_score, util.euclidean_sim):
        wanted = util.semantic_search(queries, corpus, 2, 90, 5, function)
        assert_same(semantic_search(queries, corpus, 2, 90, 5, function), wanted)
    halves = queries.to(torch.bfloat16).requires_grad_()
    wanted = util.semantic_search(halves.detach().float(), corpus)
    assert_same(semantic_search(halves, corpus.to_sparse()), wanted)
    assert_same(semantic_search(list(halves), list(corpus)), wanted)


def test_few_and_none() -> None:
    found = semantic_search(QUERIES, CORPUS[:3], top_k=10)
    assert [sorted(hit["corpus_id"] for hit in one) for one in found] == [[0, 1, 2]] * 7
    assert semantic_search(QUERIES, CORPUS[:0]) == [[]] * 7
    assert semantic_search(QUERIES[:0], CORPUS) == []


def test_ids_of_an_index_are_the_corpus_ids() -> None:
    with Key.generate() as key, EncryptedIndex(48, key=key, metric="cosine") as index:
        index.add(CORPUS[:9], ids=np.arange(9) * 100)
        index.remove([400])
        ids = {hit["corpus_id"] for hit in semantic_search(CORPUS[4], index)[0]}
        assert ids == {0, 100, 200, 300, 500, 600, 700, 800}
        assert semantic_search(CORPUS[7], index, top_k=1)[0][0]["corpus_id"] == 700


def test_bad_arguments() -> None:
    def cos_sim(a: Any, b: Any) -> Any:
        return -(a @ b.T)

    for bad, fault in (
        (cos_sim, errors.ArgumentError),
        ("manhattan", errors.ArgumentError),
        (7, errors.ArgumentTypeError),
    ):
        with pytest.raises(fault, match="score_function"):
            semantic_search(QUERIES, CORPUS, score_function=bad)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="corpus_embeddings has shape"):
        semantic_search(QUERIES, CORPUS[0])
    with pytest.raises(errors.ArgumentError):
        semantic_search(QUERIES[:, :7], CORPUS)
    with pytest.raises(errors.ArgumentError):
        semantic_search(QUERIES, CORPUS, top_k=0)
    with Key.generate() as key:
        assert semantic_search(QUERIES, CORPUS, key=key) == semantic_search(QUERIES, CORPUS)
