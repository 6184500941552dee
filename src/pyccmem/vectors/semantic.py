# SPDX-License-Identifier: Apache-2.0
"""semantic_search(): what sentence_transformers.util.semantic_search() does, over ciphertext."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import errors
from ..keys import Key
from .index import EncryptedIndex

if TYPE_CHECKING:
    from ..safetensors.providers import AnyKey

__all__ = ["semantic_search"]

#: What was found for each query.
Hits = list[list[dict[str, int | float]]]

#: The metric of each name: those of an index, and of SimilarityFunction in sentence_transformers.
_NAMES = {"cosine": "cosine", "ip": "ip", "dot": "ip", "l2": "l2", "euclidean": "l2"}

#: The metric of each function of sentence_transformers.util that an index has one for.
_FUNCTIONS = {
    "cos_sim": "cosine",
    "pytorch_cos_sim": "cosine",
    "dot_score": "ip",
    "euclidean_sim": "l2",
}


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: str | Callable[..., Any] | None = None,
    *,
    key: AnyKey | None = None,
) -> Hits:
    """Returns for each query a list of {"corpus_id": id, "score": score}, the best first, of no
    more than `top_k`, as sentence_transformers.util.semantic_search() does.

    `query_embeddings`: an array or a torch tensor of shape [n, dim], or [dim] for one query.
    `corpus_embeddings`: an EncryptedIndex, whose ids are the corpus_ids; or an array or a tensor,
    which is encrypted for this call, with `key` or a random one: make an index to search more than
    once. `score_function`: "cosine", "dot" or "euclidean", or cos_sim, dot_score or euclidean_sim
    of sentence_transformers.util; None: what the index has, or "cosine". Euclidean scores are
    negative distances. The sizes of chunks are taken and not needed. Equal scores come in the order
    of their ids.

    Raises ArgumentError, among others for a score function that the index does not have,
    ArgumentTypeError, IntegrityError, and what EncryptedIndex() and add() raise.
    """
    metric = None if score_function is None else _metric_of(score_function)
    queries = _array_of(query_embeddings)
    if isinstance(corpus_embeddings, EncryptedIndex):
        index = corpus_embeddings
        if metric not in (None, index.metric):
            raise errors.ArgumentError(
                f"score_function is {metric!r}, and the index has {index.metric!r}; give None, or "
                f"make an index with that metric."
            )
        return _searched(index, queries, top_k)
    corpus = np.asarray(_array_of(corpus_embeddings))
    if corpus.ndim != 2:
        raise errors.ArgumentError(
            f"corpus_embeddings has shape {corpus.shape}; it must have shape [n, dim], or be an "
            f"EncryptedIndex."
        )
    if key is None:
        with Key.generate() as made:
            return _searched_once(corpus, made, metric or "cosine", queries, top_k)
    return _searched_once(corpus, key, metric or "cosine", queries, top_k)


def _searched_once(corpus: Any, key: AnyKey, metric: str, queries: Any, top_k: int) -> Hits:
    with EncryptedIndex(corpus.shape[1], key=key, metric=metric) as index:
        index.add(corpus)
        return _searched(index, queries, top_k)


def _searched(
    index: EncryptedIndex, queries: Any, top_k: int
) -> list[list[dict[str, int | float]]]:
    scores, ids = index.search(queries, top_k)
    if index.metric == "l2":
        scores = -np.sqrt(scores)
    return [
        [
            {"corpus_id": number, "score": score}
            for number, score in zip(some_ids, some_scores, strict=True)
            if number >= 0
        ]
        for some_ids, some_scores in zip(
            np.atleast_2d(ids).tolist(), np.atleast_2d(scores).tolist(), strict=True
        )
    ]


def _metric_of(function: Any) -> str:
    """Returns the metric of a name or a function. Raises ArgumentError, ArgumentTypeError."""
    if isinstance(function, str):
        found = _NAMES.get(function)
    elif callable(function):
        module = str(getattr(function, "__module__", ""))
        ours = module.split(".")[0] == "sentence_transformers"
        found = _FUNCTIONS.get(getattr(function, "__name__", "")) if ours else None
    else:
        raise errors.ArgumentTypeError(
            f"score_function must be a name or a function, not {type(function).__name__}."
        )
    if found is None:
        raise errors.ArgumentError(
            f"score_function is {function!a}; an index has 'cosine', 'dot' and 'euclidean', and "
            f"cos_sim, dot_score and euclidean_sim of sentence_transformers.util."
        )
    return found


def _array_of(value: Any) -> Any:
    """Returns what NumPy can read: of a torch tensor, or a list of some, the numbers as float32."""
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "detach"):
        return np.stack([_array_of(one) for one in value])
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return tensor.cpu().float().numpy()
