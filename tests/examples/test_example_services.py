# SPDX-License-Identifier: Apache-2.0
"""The services of examples/, over HTTP: what they answer, what they refuse, and what is left of a
user who was forgotten."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_support import (
    SENTENCE_MODELS,
    asked,
    example,
    sealed_directory,
    sentence_model,
    served,
    tiny_chat,
)

from pyccmem import errors

for package in ("torch", "transformers", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[examples]'")


# ---- embeddings --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SENTENCE_MODELS)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model of sentences."""
    return sentence_model(request.param, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sealed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return sealed_directory(plain, tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def embeddings(sealed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MODEL", str(sealed[0]))
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(sealed[1]))
    return example("embedding_service")


def test_embeddings_of_a_sealed_model(embeddings: Any, plain: Path) -> None:
    texts = ["A cat sits on a mat.", "A pet is resting.", "Stocks fell sharply today."]
    with served(embeddings.app) as address:
        assert asked(f"{address}/health") == (200, b'{"status":"ok"}')
        status, body = asked(f"{address}/embeddings", {"texts": texts})
        assert status == 200
        vectors = np.asarray(json.loads(body)["vectors"])
        model = embeddings.loaded["model"]
        kinds = {type(weight).__module__ for weight in model.parameters()}
        assert all(kind.startswith("pyccmem.torch") for kind in kinds), kinds
        for wrong in ({"texts": []}, {"texts": ["x"] * 65}, {"texts": ["x" * 4001]}, {"text": "x"}):
            assert asked(f"{address}/embeddings", wrong)[0] == 422
        assert asked(f"{address}/docs")[0] == 404
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(plain), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_service_that_is_not_protected_does_not_start(
    embeddings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setenv("REQUIRE", "python-objects")  # of `pyccmem run` alone

    async def start() -> None:
        async with embeddings.lifespan(embeddings.app):
            raise AssertionError("it started")

    with pytest.raises(errors.PostureError, match="python-objects"):
        asyncio.run(start())


# ---- a chat ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("chat")
    return sealed_directory(tiny_chat(folder / "plain"), folder)


@pytest.fixture
def chat(chat_model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MODEL", str(chat_model[0]))
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(chat_model[1]))
    monkeypatch.setenv("TOKENS", "12")
    monkeypatch.setenv("USERS", "2")
    module = example("chat_service")
    with served(module.app) as address:
        module.address = f"{address}/messages"
        yield module


def test_a_conversation_goes_on(chat: Any) -> None:
    """The second answer is that of a model which has read all of it, in the clear."""
    import torch

    said = [("alice", "Hello there."), ("alice", "And then?")]
    answers = []
    for user, text in said:
        status, body = asked(chat.address, {"text": text}, x_user=user)
        assert status == 200 and len(body) > 0
        answers.append(body.decode())
    model = chat.loaded["chat"].model
    tokenizer = chat.loaded["chat"].tokenizer
    chat.pyccmem.transformers.unprotect_inputs(model)
    ids = torch.empty(1, 0, dtype=torch.long)
    for (_, text), answer in zip(said, answers, strict=True):
        ids = torch.cat((ids, tokenizer(text, return_tensors="pt").input_ids), 1)
        before = ids.shape[1]
        ids = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(ids[0, before:]) == answer


def test_users_are_apart_and_can_be_forgotten(chat: Any) -> None:
    first = asked(chat.address, {"text": "My name is Alice"}, x_user="alice")
    assert asked(chat.address, {"text": "My name is Alice"}, x_user="bob") == first
    again = asked(chat.address, {"text": "My name is Alice"}, x_user="alice")
    assert again != first, "the cache has what she said before"
    cache = chat.loaded["chat"].users["alice"].cache
    assert asked(chat.address, method="DELETE", x_user="alice")[0] == 204
    assert cache.erased
    assert asked(chat.address, {"text": "My name is Alice"}, x_user="alice") == first
    # Of more than USERS the one that was not used for longest goes.
    bob = chat.loaded["chat"].users["bob"].cache
    asked(chat.address, {"text": "x"}, x_user="carol")
    assert list(chat.loaded["chat"].users) == ["alice", "carol"] and bob.erased


def test_what_is_refused(chat: Any) -> None:
    assert asked(chat.address, {"text": "x"})[0] == 422, "nobody said who asks"
    assert asked(chat.address, {"text": ""}, x_user="alice")[0] == 422
    conversation = chat.loaded["chat"].conversation("alice")  # locked, as while it answers
    assert asked(chat.address, {"text": "x"}, x_user="alice")[0] == 409
    conversation.busy.release()
    assert asked(chat.address, {"text": "x"}, x_user="alice")[0] == 200


def test_an_answer_nobody_listens_to_ends(chat: Any) -> None:
    talk = chat.loaded["chat"].conversation("alice")
    pieces = chat.loaded["chat"].answer(talk, "Hello")
    next(pieces)  # it has begun
    next(pieces)
    pieces.close()
    assert talk.busy.acquire(blocking=False)
    talk.busy.release()
    assert not any("generate" in thread.name for thread in threading.enumerate())
    assert talk.cache.get_seq_length() < 5 + 12, "it did not go on to the end"
