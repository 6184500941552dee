# SPDX-License-Identifier: Apache-2.0
"""An embedding service: sentences in, vectors out, by a sealed model.

    pip install 'pyccmem[sentence-transformers,examples]'
    pyccmem keygen model.key
    pyccmem encrypt MODEL SEALED --key-file model.key
    PYCCMEM_KEY_FILE=model.key MODEL=SEALED \\
        pyccmem run -- uvicorn embedding_service:app --app-dir examples --workers 2

    curl http://127.0.0.1:8000/embeddings -H 'content-type: application/json' \\
        -d '{"texts": ["A sentence.", "Another one."]}'

Weights are ciphertext in memory, which all workers share. Under `pyccmem run` what a request
leaves behind is overwritten. REQUIRE names what `pyccmem posture` must find, or the service does
not start: `minimal` unless set, `inputs` for a server that handles other people's texts.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sentence_transformers import SentenceTransformer

import pyccmem.transformers

#: The model, once the service has started.
loaded: dict[str, SentenceTransformer] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Opens the model, and looks whether the process is protected as it should be. The key is the
    one that PYCCMEM_KEY or PYCCMEM_KEY_FILE names."""
    loaded["model"] = SentenceTransformer(os.environ["MODEL"], device="cpu")
    pyccmem.posture(require=os.environ.get("REQUIRE", "minimal").split(","))
    yield
    loaded.clear()


# No pages of FastAPI's own, which load scripts from elsewhere.
app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)


class Texts(BaseModel):
    """What is asked."""

    texts: list[Annotated[str, Field(max_length=4000)]] = Field(min_length=1, max_length=64)


class Vectors(BaseModel):
    """What is answered: a vector of length 1 for each text."""

    vectors: list[list[float]]


@app.post("/embeddings")
def embeddings(asked: Texts) -> Vectors:
    """A function that is not async: FastAPI calls it in a thread, so that others are answered
    meanwhile."""
    with torch.inference_mode():
        made = loaded["model"].encode(asked.texts, normalize_embeddings=True)
    return Vectors(vectors=made.tolist())


@app.get("/health")
def health() -> dict[str, str]:
    """Answers once the model is there."""
    return {"status": "ok"}
