# SPDX-License-Identifier: Apache-2.0
"""EncryptedVectorStore: LlamaIndex's nodes as records beside the vectors of an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import (
    build_metadata_filter_fn,
    metadata_dict_to_node,
    node_to_metadata_dict,
)

from .. import errors
from ..vectors import EncryptedIndex, Record, Records

__all__ = ["EncryptedVectorStore"]


class EncryptedVectorStore(BasePydanticVectorStore):
    """Nodes, with their texts and metadata, as payloads of an EncryptedIndex or EncryptedIVF.

    The index stays the caller's, to save and to close; a store over a loaded index has the nodes
    that were saved. Similarities are the index's scores, and for squared distances 1 - distance /
    2, which is the cosine for vectors of length 1. Nodes pass through Python objects, which are not
    wiped.
    """

    stores_text: bool = True
    _records: Records = PrivateAttr()

    def __init__(self, index: EncryptedIndex) -> None:
        """A store over an index that only stores have added to. Raises ArgumentTypeError."""
        super().__init__(stores_text=True)
        self._records = Records(index)

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls the class."""
        return "PyccmemEncryptedVectorStore"

    @property
    def client(self) -> EncryptedIndex:
        """The index."""
        return self._records.index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes, which have embeddings, and returns their ids. Nodes whose ids are there
        replace what was there. Raises what EncryptedIndex.add() raises, ArgumentTypeError for
        metadata that JSON cannot write."""
        if not nodes:
            return []
        ids = [node.node_id for node in nodes]
        try:
            values = [node_to_metadata_dict(node, flat_metadata=False) for node in nodes]
        except (TypeError, ValueError) as error:
            raise errors.ArgumentTypeError(f"A node cannot be written as JSON ({error}).") from None
        vectors = np.asarray([node.get_embedding() for node in nodes], np.float32)
        self._records.put(ids, vectors, values)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes the nodes of a document. Opens all payloads to find them."""
        self._records.remove(
            [one.id for one in self._records.all() if one.value["ref_doc_id"] == ref_doc_id]
        )

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Deletes the nodes of these ids that pass the filters; None: of all ids."""
        self._records.remove([one.id for one in self._chosen(node_ids, filters)])

    def clear(self) -> None:
        """Deletes all nodes."""
        self._records.clear()

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Returns the nodes of these ids that pass the filters; None: of all ids."""
        return [metadata_dict_to_node(one.value) for one in self._chosen(node_ids, filters)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Returns the `similarity_top_k` nodes that are nearest to the query's embedding, of those
        that pass its filters, ids and documents. Raises ArgumentError for other modes than the
        default and without an embedding, and what EncryptedIndex.search() raises."""
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise errors.ArgumentError(
                f"The mode is {query.mode.value!r}; an encrypted store has 'default' alone."
            )
        if query.query_embedding is None:
            raise errors.ArgumentError("The query has no embedding; embed it first.")
        found = self._records.search(
            np.asarray(query.query_embedding, np.float32), query.similarity_top_k, _test_of(query)
        )
        distances = self.client.metric == "l2"
        return VectorStoreQueryResult(
            nodes=[metadata_dict_to_node(one.record.value) for one in found],
            similarities=[1 - one.score / 2 if distances else one.score for one in found],
            ids=[one.record.id for one in found],
        )

    def _chosen(self, ids: list[str] | None, filters: MetadataFilters | None) -> list[Record]:
        found = self._records.all() if ids is None else self._records.get(ids)
        passes = _filter_of(filters)
        return [one for one in found if one is not None and passes(one)]


def _filter_of(filters: MetadataFilters | None) -> Callable[[Record], bool]:
    """Returns whether a record passes LlamaIndex's filters, as a function."""

    def passes(record: Record) -> bool:
        return bool(build_metadata_filter_fn(lambda _: record.value, filters)(record.id))

    return passes


def _test_of(query: VectorStoreQuery) -> Callable[[Record], bool] | None:
    if not (query.node_ids is not None or query.doc_ids is not None or query.filters):
        return None
    passes = _filter_of(query.filters)
    nodes = None if query.node_ids is None else set(query.node_ids)
    documents = None if query.doc_ids is None else set(query.doc_ids)

    def test(record: Record) -> bool:
        return (
            (nodes is None or record.id in nodes)
            and (documents is None or record.value["ref_doc_id"] in documents)
            and passes(record)
        )

    return test
