# SPDX-License-Identifier: Apache-2.0
"""EncryptedVectorStore: LangChain's documents as records beside the vectors of an index."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from .. import errors
from ..vectors import EncryptedIndex, Found, Record, Records

if TYPE_CHECKING:
    from ..safetensors.providers import AnyKey

__all__ = ["EncryptedVectorStore"]

#: What `filter` takes: what metadata must have, or a function of a document.
Filter = Mapping[str, Any] | Callable[[Document], bool]


class EncryptedVectorStore(VectorStore):
    """Documents in an EncryptedIndex (or EncryptedIVF): ids, texts and metadata are its payloads.

        index = EncryptedIndex(384, key=key, metric="cosine")
        store = EncryptedVectorStore(embedding, index)
        store.add_documents(documents)
        found = store.similarity_search("a question", k=4, filter={"source": "manual"})

    Metadata is kept as JSON: tuples come back as lists, and keys as text. All searches take
    `filter`: a mapping that the metadata must contain, or a function that is given a Document and
    returns whether it may be found. Documents are opened for it in the order of their scores, until
    enough have passed: put what few documents have in an index of its own.

    Scores are those of the index: inner products, cosines, or squared distances, which are the
    better the smaller they are. Relevance is the cosine, no less than 0; 1 - distance / 2, which is
    the same for vectors of length 1; or the inner product as it is. Texts, queries and embeddings
    pass through Python objects, which are not wiped. Everything may be called from several threads.
    """

    def __init__(self, embedding: Embeddings, index: EncryptedIndex) -> None:
        """A store over an index that only stores have added to. Raises ArgumentTypeError."""
        if not isinstance(embedding, Embeddings):
            raise errors.ArgumentTypeError(
                f"embedding must be an Embeddings of LangChain, not {type(embedding).__name__}."
            )
        self._embedding = embedding
        self._records = Records(index)

    @property
    def embeddings(self) -> Embeddings:
        """What turns texts into vectors."""
        return self._embedding

    @property
    def index(self) -> EncryptedIndex:
        """Where all lies."""
        return self._records.index

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        key: AnyKey | None = None,
        metric: str = "cosine",
        dtype: str = "float32",
        **kwargs: Any,
    ) -> EncryptedVectorStore:
        """Returns a store of these texts, over a new EncryptedIndex of `key`, `metric` and `dtype`.
        Raises what EncryptedIndex() and add_texts() raise, ArgumentError without a key."""
        if key is None:
            raise errors.ArgumentError(
                "A store needs a key: give key=pyccmem.Key.generate(), for example."
            )
        texts = list(texts)
        # Without texts one must be embedded, to learn how long vectors are.
        vectors = embedding.embed_documents(texts or [" "])
        index = EncryptedIndex(len(vectors[0]), key=key, metric=metric, dtype=dtype)
        try:
            store = cls(embedding, index)
            store._put(texts, vectors, metadatas, ids)
        except BaseException:
            index.close()
            raise
        return store

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        embedding: Embeddings,
        *,
        key: AnyKey,
        expect: Any = None,
    ) -> EncryptedVectorStore:
        """Returns the store that save() wrote; see EncryptedIndex.load(). For the file of an
        EncryptedIVF, load that and make a store of it."""
        index = EncryptedIndex.load(path, key=key, expect=expect)
        try:
            return cls(embedding, index)
        except BaseException:
            index.close()
            raise

    def save(self, path: str | os.PathLike[str], *, key: AnyKey | None = None) -> str:
        """Writes a sealed file, and returns its pin; see EncryptedIndex.save()."""
        return self.index.save(path, key=key)

    def close(self) -> None:
        """Closes the index. May be repeated."""
        self.index.close()

    def __enter__(self) -> EncryptedVectorStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- changes ----

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Adds texts, and returns their ids; None, for one or for all, stands for a new random one.
        Texts whose ids are there replace what was there.

        Raises ArgumentError, also for other numbers of metadata or ids than of texts,
        ArgumentTypeError, also for metadata that JSON cannot write, and what EncryptedIndex.add()
        raises.
        """
        texts = list(texts)
        return self._put(texts, None, metadatas, ids)

    def _put(
        self,
        texts: list[str],
        vectors: list[list[float]] | None,
        metadatas: Sequence[dict[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> list[str]:
        """Adds texts; `vectors` are theirs, if they were embedded."""
        count = len(texts)
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != count:
                raise errors.ArgumentError(
                    f"{name} has {len(given)} entries for {count} texts; give one for each."
                )
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise errors.ArgumentTypeError(f"A text must be a str, not {type(wrong).__name__}.")
        chosen = [str(uuid.uuid4()) if id is None else id for id in ids or [None] * count]
        values = [
            {"text": text, "metadata": metadata or {}}
            for text, metadata in zip(texts, metadatas or [{}] * count, strict=True)
        ]
        if count:
            found = self._embedding.embed_documents(texts) if vectors is None else vectors
            self._records.put(chosen, np.asarray(found, np.float32), values)
        return chosen

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Deletes the documents of these ids, None: all. Ids that are not there are ignored.
        Returns True. Their ciphertext is dropped as EncryptedIndex.remove() says."""
        if ids is None:
            self._records.clear()
        else:
            self._records.remove(ids)
        return True

    # ---- reading ----

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Returns the documents of these ids, without those that are not there. Raises
        ArgumentTypeError, IntegrityError."""
        return [_document(one) for one in self._records.get(ids) if one is not None]

    def similarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Returns the `k` documents that are nearest to a query, the best first, or fewer when
        there are fewer. Raises what EncryptedIndex.search() raises."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Returns what similarity_search() returns, each with its score."""
        vector = self._embedding.embed_query(query)
        return [(_document(one.record), one.score) for one in self._found(vector, k, filter)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Returns the `k` documents that are nearest to a vector."""
        return [_document(one.record) for one in self._found(embedding, k, filter)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Returns `k` of the `fetch_k` nearest documents that are near to the query and far from
        each other; the less `lambda_mult` is, from 1 to 0, the farther."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Returns what max_marginal_relevance_search() returns, for a vector."""
        found = self._found(embedding, max(fetch_k, k), filter)
        if not found:
            return []
        vectors = self._records.vectors(found)
        try:
            chosen = maximal_marginal_relevance(
                np.asarray(embedding, np.float32), list(vectors), lambda_mult=lambda_mult, k=k
            )
        finally:
            vectors.fill(0)
        return [_document(found[at].record) for at in chosen]

    def _found(self, vector: list[float], k: int, filter: Filter | None) -> list[Found]:
        return self._records.search(np.asarray(vector, np.float32), k, _test_of(filter))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self.index.metric == "l2":
            return lambda distance: max(1 - distance / 2, 0.0)
        if self.index.metric == "cosine":  # float32 rounds some to more than 1
            return lambda score: min(max(score, 0.0), 1.0)
        return lambda score: score


def _document(record: Record) -> Document:
    return Document(
        id=record.id, page_content=record.value["text"], metadata=record.value["metadata"]
    )


def _test_of(filter: Filter | None) -> Callable[[Record], bool] | None:
    """Returns whether a record passes a filter, as a function. Raises ArgumentTypeError."""
    if filter is None:
        return None
    if isinstance(filter, Mapping):
        wanted = dict(filter)

        def has(record: Record) -> bool:
            metadata = record.value["metadata"]
            return all(key in metadata and metadata[key] == wanted[key] for key in wanted)

        return has
    if callable(filter):
        function = filter
        return lambda record: bool(function(_document(record)))
    raise errors.ArgumentTypeError(
        f"filter must be a mapping or a function, not {type(filter).__name__}."
    )
