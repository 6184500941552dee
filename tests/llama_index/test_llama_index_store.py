# SPDX-License-Identifier: Apache-2.0
"""LlamaIndex's store over an EncryptedIndex finds what its SimpleVectorStore finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="needs the [llama-index] extra")

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from pyccmem import Key, errors
from pyccmem.llama_index import EncryptedVectorStore
from pyccmem.vectors import EncryptedIndex

VECTORS = np.random.default_rng(2).standard_normal((200, 24)).astype("f4")


def nodes_of(numbers: Any) -> list[TextNode]:
    return [
        TextNode(
            id_=f"node-{n}",
            text=f"passage {n} of a secret",
            metadata={"number": n, "parity": ["even", "odd"][n % 2], "deep": {"list": [n]}},
            embedding=VECTORS[n].tolist(),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc-{n // 10}")},
        )
        for n in numbers
    ]


@pytest.fixture
def key() -> Iterator[Key]:
    with Key.generate() as made:
        yield made


@pytest.fixture
def store(key: Key) -> Iterator[EncryptedVectorStore]:
    with EncryptedIndex(24, key=key, metric="cosine") as index:
        made = EncryptedVectorStore(index)
        assert made.add(nodes_of(range(200))) == [f"node-{n}" for n in range(200)]
        yield made


FILTERS = [
    None,
    MetadataFilters(filters=[MetadataFilter(key="parity", value="even")]),
    MetadataFilters(
        filters=[
            MetadataFilter(key="number", value=180, operator=FilterOperator.GTE),
            MetadataFilter(key="number", value=[3, 4], operator=FilterOperator.IN),
        ],
        condition=FilterCondition.OR,
    ),
]


@pytest.mark.parametrize("filters", FILTERS, ids=["none", "even", "or"])
def test_a_plain_store_finds_the_same(store: EncryptedVectorStore, filters: Any) -> None:
    plain = SimpleVectorStore()
    plain.add(nodes_of(range(200)))
    for more in ({}, {"node_ids": [f"node-{n}" for n in range(0, 200, 7)]}):
        query = VectorStoreQuery(VECTORS[9].tolist(), 6, filters=filters, **more)
        found, wanted = store.query(query), plain.query(query)
        assert found.ids == wanted.ids and found.nodes is not None
        np.testing.assert_allclose(found.similarities, wanted.similarities, atol=1e-6)
        for node, id in zip(found.nodes, wanted.ids, strict=True):
            (original,) = nodes_of([int(id.split("-")[1])])
            original.embedding = None
            assert node == original
    found = store.query(VectorStoreQuery(VECTORS[9].tolist(), 50, doc_ids=["doc-3"]))
    assert sorted(found.ids) == [f"node-{n}" for n in range(30, 40)]


def test_changes(store: EncryptedVectorStore) -> None:
    store.delete("doc-3")
    store.delete_nodes(["node-1", "none"])
    store.delete_nodes(filters=FILTERS[2])
    left = [n for n in range(200) if n // 10 != 3 and n not in (1, 3, 4) and n < 180]
    assert [node.node_id for node in store.get_nodes()] == [f"node-{n}" for n in left]
    assert [n.metadata["number"] for n in store.get_nodes(["node-7", "node-1"])] == [7]
    (new,) = nodes_of([7])
    new.text = "another"
    store.add([new])
    assert store.get_nodes(["node-7"])[0].get_content() == "another"
    assert len(store.client) == len(left)
    store.clear()
    assert store.query(VectorStoreQuery(VECTORS[0].tolist(), 3)).ids == [] == store.add([])


def test_a_file(store: EncryptedVectorStore, key: Key, tmp_path: Path) -> None:
    query = VectorStoreQuery(VECTORS[5].tolist(), 4)
    pin = store.client.save(tmp_path / "file")
    assert b"secret" not in (tmp_path / "file").read_bytes()
    with EncryptedIndex.load(tmp_path / "file", key=key, expect=pin) as index:
        assert EncryptedVectorStore(index).query(query) == store.query(query)


def test_what_it_does_not_have(store: EncryptedVectorStore) -> None:
    with pytest.raises(errors.ArgumentError, match="'mmr'"):
        store.query(VectorStoreQuery(VECTORS[0].tolist(), mode=VectorStoreQueryMode.MMR))
    with pytest.raises(errors.ArgumentError, match="no embedding"):
        store.query(VectorStoreQuery(query_str="a"))
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedVectorStore({})  # type: ignore[arg-type]
