# SPDX-License-Identifier: Apache-2.0
"""Ray Serve: a sealed embedding model in several replicas.

    from ray import serve
    from pyccmem.ray.serve import ask, embedding_app

    handle = serve.run(embedding_app(SealedModel("/models/minilm"), replicas=4))
    vectors = ask(handle.embed, ["a text", "another"])

Each replica opens the sealed directory of its node. To roll a new model out, run the application
with another SealedModel, of another path or pin: Serve replaces replica after replica.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray.exceptions

from .. import errors
from .models import SealedModel
from .sealed import Sealed, seal

try:
    from ray import serve
    from ray.serve.exceptions import RayServeException
except ImportError as error:
    raise errors.MissingPackageError(
        f"pyccmem.ray.serve needs Ray Serve ({error}); pip install 'ray[serve]'."
    ) from None

__all__ = ["SealedEmbedder", "ask", "embedding_app"]

#: Texts that a request over HTTP may have.
_MOST_TEXTS = 1024


class SealedEmbedder:
    """A replica: a model of sentence-transformers, whose weights stay ciphertext."""

    def __init__(self, model: SealedModel, sealed_answers: bool = False) -> None:
        """Raises what SealedModel.load() raises: the replica then does not start."""
        from sentence_transformers import SentenceTransformer

        self._model: Any = model.load(SentenceTransformer, device="cpu")
        self._sealed_answers = sealed_answers

    def embed(self, texts: list[str]) -> Any:
        """Returns a vector for each text, float32: an array of shape (texts, dimensions); with
        `sealed_answers` sealed, so that they are not in the clear on their way. `texts` may come
        sealed. Raises IntegrityError for weights that were changed: the request fails, the replica
        stays."""
        vectors = self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        found = np.asarray(vectors, np.float32)
        return seal(found) if self._sealed_answers else found

    async def __call__(self, request: Any) -> Any:
        """Answers a POST of {"texts": [...]} with {"embeddings": [[...], ...]}, anything else with
        status 400."""
        from starlette.responses import JSONResponse

        try:
            texts = (await request.json())["texts"]
        except (ValueError, KeyError, TypeError):
            texts = None
        if (
            not isinstance(texts, list)
            or not 0 < len(texts) <= _MOST_TEXTS
            or not all(isinstance(text, str) for text in texts)
        ):
            told = f'Post {{"texts": [...]}}, 1 to {_MOST_TEXTS} texts.'
            return JSONResponse({"error": told}, status_code=400)
        found = self.embed(texts)
        vectors = found.open() if isinstance(found, Sealed) else found
        return {"embeddings": vectors.tolist()}


def embedding_app(
    model: SealedModel, *, replicas: int = 2, sealed_answers: bool = False, **options: Any
) -> serve.Application:
    """Returns an application for serve.run(). `options` are those of serve.deployment():
    ray_actor_options, max_ongoing_requests, ... Raises ArgumentTypeError for no SealedModel."""
    if not isinstance(model, SealedModel):
        raise errors.ArgumentTypeError(
            f"model must be a pyccmem.ray.SealedModel, not {type(model).__name__}."
        )
    deployment = serve.deployment(SealedEmbedder).options(num_replicas=replicas, **options)
    return deployment.bind(model, sealed_answers)


def ask(method: Any, *arguments: Any, attempts: int = 20, pause: float = 0.25) -> Any:
    """Returns method.remote(*arguments).result(), for a method of a handle. Asks again, after
    `pause` seconds, when the replica or its node ended before it answered; so the method may run
    more than once. Raises what the method raises, and after so many attempts the last of Ray's
    errors."""
    for left in reversed(range(attempts)):
        try:
            return method.remote(*arguments).result()
        except ray.exceptions.RayTaskError:
            raise
        except (ray.exceptions.RayError, RayServeException):
            if not left:
                raise
            time.sleep(pause)
    raise errors.ArgumentError(f"attempts is {attempts}; it must be at least 1.")
