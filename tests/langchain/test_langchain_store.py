# SPDX-License-Identifier: Apache-2.0
"""EncryptedVectorStore passes LangChain's own tests, finds what a plain store finds, and keeps
texts, metadata and ids as ciphertext."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="needs the [langchain] extra")
suite = pytest.importorskip(
    "langchain_tests.integration_tests.vectorstores", reason="needs langchain-tests"
)
pytest.importorskip("pytest_asyncio", reason="langchain-tests brings it")

from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import DeterministicFakeEmbedding  # noqa: E402
from langchain_core.vectorstores import InMemoryVectorStore  # noqa: E402

from pyccmem import Key, errors  # noqa: E402
from pyccmem.langchain import EncryptedVectorStore  # noqa: E402
from pyccmem.vectors import EncryptedIndex, EncryptedIVF  # noqa: E402

EMBEDDING = DeterministicFakeEmbedding(size=24)
TEXTS = [f"passage {number} of a secret" for number in range(300)]
METADATA = [{"number": number, "even": number % 2 == 0} for number in range(300)]
IDS = [f"id-{number}" for number in range(300)]

# Their coroutines are run in any mode of pytest-asyncio.
for _name, _test in inspect.getmembers(suite.VectorStoreIntegrationTests, inspect.isfunction):
    if inspect.iscoroutinefunction(_test):
        pytest.mark.asyncio(_test)


@pytest.fixture(scope="module")
def key() -> Any:
    with Key.generate() as made:
        yield made


class TestConformance(suite.VectorStoreIntegrationTests):
    """LangChain's own suite."""

    @pytest.fixture(params=["flat", "ivf"])
    def vectorstore(self, key: Key, request: pytest.FixtureRequest) -> Iterator[Any]:  # type: ignore[override]
        embedding = self.get_embeddings()
        index: EncryptedIndex
        if request.param == "flat":
            index = EncryptedIndex(6, key=key, metric="cosine")
        else:
            index = EncryptedIVF(6, 2, key=key, metric="cosine", probes=2)
            index.train(np.asarray(embedding.embed_documents(TEXTS[:16]), np.float32))
        with EncryptedVectorStore(embedding, index) as store:
            yield store


def test_the_suite_has_what_it_should() -> None:
    """The control: the coroutines are there, and a store that forgets does not pass."""
    marked = [
        name
        for name, test in inspect.getmembers(TestConformance, inspect.isfunction)
        if name.endswith("_async") and any(m.name == "asyncio" for m in test.pytestmark)
    ]
    assert len(marked) >= 11

    class Forgetful(EncryptedVectorStore):
        def add_texts(self, texts: Any, *args: Any, **kwargs: Any) -> list[str]:
            return super().add_texts([], ids=[]) or [str(n) for n, _ in enumerate(texts)]

    with Key.generate() as key:
        store = Forgetful(EMBEDDING, EncryptedIndex(24, key=key))
        with pytest.raises(AssertionError):
            TestConformance().test_add_documents(store)
        store.close()


@pytest.fixture
def store(key: Key) -> Iterator[EncryptedVectorStore]:
    with EncryptedVectorStore.from_texts(TEXTS, EMBEDDING, METADATA, ids=IDS, key=key) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(TEXTS, EMBEDDING, METADATA, ids=IDS)


def test_a_plain_store_finds_the_same(
    store: EncryptedVectorStore, plain: InMemoryVectorStore
) -> None:
    for query in ("a", "passage 7 of a secret", TEXTS[42]):
        found = store.similarity_search_with_score(query, 7)
        wanted = plain.similarity_search_with_score(query, 7)
        assert [document for document, _ in found] == [document for document, _ in wanted]
        np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], atol=1e-6)
        vector = EMBEDDING.embed_query(query)
        assert store.similarity_search_by_vector(vector, 7) == [d for d, _ in wanted]
        relevant = store.similarity_search_with_relevance_scores(query, 7)
        assert relevant == [(document, min(score, 1.0)) for document, score in found]
        assert asyncio.run(store.asimilarity_search(query, 7)) == [d for d, _ in wanted]
        mmr: Any = {"k": 4, "fetch_k": 30, "lambda_mult": 0.2}
        ours = store.max_marginal_relevance_search(query, **mmr)
        theirs = plain.max_marginal_relevance_search(query, **mmr)
        assert [d.page_content for d in ours] == [d.page_content for d in theirs]
        assert ours != store.similarity_search(query, 4)


def test_filters(store: EncryptedVectorStore, plain: InMemoryVectorStore) -> None:
    rare = plain.similarity_search("a", 5, filter=lambda d: d.metadata["number"] % 60 == 1)
    assert len(rare) == 5
    assert store.similarity_search("a", 5, filter=lambda d: d.metadata["number"] % 60 == 1) == rare
    even = plain.similarity_search("a", 9, filter=lambda d: d.metadata["even"])
    assert store.similarity_search("a", 9, filter={"even": True}) == even
    retriever = store.as_retriever(search_kwargs={"k": 9, "filter": {"even": True}})
    assert retriever.invoke("a") == even
    assert [d.id for d in store.similarity_search("a", 9, filter={"number": 299})] == ["id-299"]
    assert store.similarity_search("a", 9, filter={"other": None}) == []
    found = store.max_marginal_relevance_search("a", 9, filter={"even": False})
    assert len(found) == 9 and not any(document.metadata["even"] for document in found)
    with pytest.raises(errors.ArgumentTypeError):
        store.similarity_search("a", filter=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_relevance(key: Key, metric: str) -> None:
    """It is the cosine, for vectors of length 1."""

    class Unit(DeterministicFakeEmbedding):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            rows = np.asarray(super().embed_documents(texts))
            return (rows / np.linalg.norm(rows, axis=1)[:, None]).tolist()

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    unit = Unit(size=24)
    with EncryptedVectorStore.from_texts(TEXTS, unit, key=key, metric=metric) as store:
        found = store.similarity_search_with_relevance_scores(TEXTS[9], 3, score_threshold=0.2)
    assert found[0][0].page_content == TEXTS[9]
    wanted = [
        np.dot(unit.embed_query(TEXTS[9]), unit.embed_query(d.page_content)) for d, _ in found
    ]
    np.testing.assert_allclose([score for _, score in found], wanted, atol=1e-5)


def test_changes(store: EncryptedVectorStore) -> None:
    given = store.add_texts(["new", "other"], [{"a": 1}, {}], ids=["id-3", None])
    assert given[0] == "id-3" and len(given[1]) == 36 and len(store.index) == 301
    (found,) = store.get_by_ids(["id-3"])
    assert found == Document(id="id-3", page_content="new", metadata={"a": 1})
    assert store.similarity_search("new", 1) == [found]
    assert TEXTS[3] not in [d.page_content for d in store.similarity_search(TEXTS[3], 300)]
    store.add_texts(["first", "last"], ids=["same", "same"])
    assert [d.page_content for d in store.get_by_ids(["same"])] == ["last"]
    assert store.get_by_ids(["same", "none", "same"]) == store.get_by_ids(["same"]) * 2
    assert store.delete(["same", "none"]) and len(store.index) == 301
    assert store.delete() and store.similarity_search("a") == []
    assert store.add_texts([]) == []


def test_odd_texts_come_back(store: EncryptedVectorStore) -> None:
    odd = ["", "\0", "汉字 ünd", '"quotes"\\\n']
    store.add_texts(odd, [{"\ud800": text, "n": [1, {"x": None}]} for text in odd], ids=odd)
    found = store.get_by_ids(odd)
    assert [d.page_content for d in found] == odd == [d.metadata["\ud800"] for d in found]
    assert found[0].metadata["n"] == [1, {"x": None}]


def test_bad_arguments_change_nothing(key: Key, store: EncryptedVectorStore) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="JSON"):
        store.add_texts(["a"], [{"a": object()}])
    with pytest.raises(errors.ArgumentError, match="metadatas has 1"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(errors.ArgumentError, match="ids has 1"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(errors.ArgumentTypeError, match="A text"):
        store.add_texts([b"a"])  # type: ignore[list-item]
    with pytest.raises(errors.ArgumentTypeError, match="An id"):
        store.add_texts(["a"], ids=[7])  # type: ignore[list-item]
    with pytest.raises(errors.ArgumentError, match="k is 0"):
        store.similarity_search("a", 0)
    with pytest.raises(errors.ArgumentError, match="needs a key"):
        EncryptedVectorStore.from_texts(["a"], EMBEDDING)
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedVectorStore(EMBEDDING, [])  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedVectorStore(len, store.index)  # type: ignore[arg-type]
    assert len(store.index) == 300
    with EncryptedIndex(24, key=key) as index:
        index.add(np.ones((1, 24)), payloads=[b"no record"])
        with pytest.raises(errors.ArgumentError, match="is no record"):
            EncryptedVectorStore(EMBEDDING, index).similarity_search("a")


def test_a_file(key: Key, store: EncryptedVectorStore, tmp_path: Path) -> None:
    pin = store.save(tmp_path / "file")
    assert b"secret" not in (tmp_path / "file").read_bytes()
    wanted = store.similarity_search_with_score("a", 5)
    with EncryptedVectorStore.load(tmp_path / "file", EMBEDDING, key=key, expect=pin) as loaded:
        assert loaded.similarity_search_with_score("a", 5) == wanted
        assert loaded.get_by_ids(["id-7"]) == store.get_by_ids(["id-7"])
        loaded.add_texts(["anew"], ids=["id-7"])
        assert len(loaded.index) == 300 and loaded.get_by_ids(["id-7"])[0].page_content == "anew"
    with pytest.raises(errors.ClosedError):
        loaded.similarity_search("a")


def test_payloads_are_ciphertext(store: EncryptedVectorStore) -> None:
    """Texts, names of metadata and ids are in what the index gives back, and not in its memory."""
    body = b"".join(store.index.payloads(store.index.ids()))
    memory = b"".join(bytes(chunk.buffer.ciphertext) for chunk in store.index._state.chunks)
    assert len(memory) >= len(body)
    for word in (b"of a secret", b"even", b"id-299"):
        assert word in body and word not in memory


def test_a_changed_payload_is_refused(store: EncryptedVectorStore) -> None:
    (chunk,) = store.index._state.chunks
    memory = np.frombuffer(chunk.buffer.ciphertext, np.uint8)
    assert store.get_by_ids(["id-0"])
    ctypes.c_uint8.from_address(memory.ctypes.data + 10).value ^= 1
    with pytest.raises(errors.IntegrityError):
        store.get_by_ids(["id-0"])
    with pytest.raises(errors.IntegrityError):
        store.similarity_search("a", 300)
    assert store.get_by_ids(["id-299"])


def test_without_langchain_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from pyccmem import errors\n"
        "try: import pyccmem.langchain\n"
        "except errors.MissingPackageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'pyccmem[langchain]'" in done.stdout


def test_searches_beside_a_writer(store: EncryptedVectorStore) -> None:
    """They find documents that were there, and raise nothing."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(60):
                store.add_texts([TEXTS[number]], ids=[f"more-{number}"])
                store.delete([f"id-{number}", f"more-{number - 1}"])
        except BaseException as error:
            failed.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    count = 0
    while not stop.is_set() or not count:
        found = store.similarity_search("a", 50)
        assert len(found) > 40 and {d.page_content for d in found} <= set(TEXTS)
        count += 1
    thread.join()
    assert not failed and len(store.index) == 241
