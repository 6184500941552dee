# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo.retrieval_child DESCRIPTOR`: holds the model, and a store of passages, by
the protocol of demo/serving.py.

Messages are answered by (answer, seconds, most plaintext bytes that pyccmem handed out at once):
`Embed` by vectors, `Open`, which loads the store, by how many passages that has, `Find` by the
passages that are nearest to each query, `Search`, which repeats the last search for some seconds,
by how often.
"""

from __future__ import annotations

import gc
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..keys import Key
from ..process import stats
from ..vectors import EncryptedIndex
from .child import load as load_model
from .layers import Array
from .retrieval_job import Embed, Find, Open, RetrievalJob, Search
from .serving import serve

Hits = list[tuple[float, str]]


class Store(Protocol):
    """What holds vectors and passages."""

    def __len__(self) -> int: ...

    def search(self, queries: Array, k: int) -> list[Hits]:
        """Returns the passages that are nearest to each query, and their cosines."""


class PlainStore:
    """An array of vectors and a list of passages, as a program without encryption holds them."""

    def __init__(self, store: Path) -> None:
        self._vectors = np.load(store / "vectors.npy")
        self._passages = (store / "passages").read_bytes().split(b"\n")

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: Array, k: int) -> list[Hits]:
        answers = []
        for scores in queries @ self._vectors.T:
            best = np.argsort(-scores, kind="stable")[:k]
            answers.append([(float(scores[i]), self._passages[i].decode()) for i in best])
        return answers


class EncryptedStore:
    """A sealed index, mapped, whose payloads are the passages."""

    def __init__(self, store: Path) -> None:
        with Key.from_file(store / "key") as key:
            self._index = EncryptedIndex.load(store / "index.sealed", key=key)

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Array, k: int) -> list[Hits]:
        scores, ids = self._index.search(queries, k)
        answers: list[Hits] = []
        for mine, names in zip(scores, ids, strict=True):
            found = self._index.payloads(names)
            answers.append([(float(s), text.decode()) for s, text in zip(mine, found, strict=True)])
        return answers


def warm_up() -> None:
    """Has all that a search needs imported, so that whatever texts lie in memory afterwards are not
    those of Python's own modules."""
    with Key.generate() as key, EncryptedIndex(4, key=key, metric="cosine") as index:
        index.add(np.eye(4), payloads=[b"passage"] * 4)
        index.payloads(index.search(np.ones((1, 4)), 2)[1])


def load(job: RetrievalJob) -> tuple[Any, float]:
    """Returns the function that embeds, and what opens the store, and the seconds that loading the
    weights took."""
    embed, seconds = load_model(job.model)
    warm_up()
    kind = PlainStore if job.model.cipher is None else EncryptedStore
    return (embed, lambda: kind(Path(job.store))), seconds


def work(made: Any, channel: Connection) -> None:
    """Answers messages."""
    embed, opened = made
    store: Store | None = None
    queries: Array = np.empty((0, 0), np.float32)
    while True:
        message = channel.recv()
        begin = time.perf_counter()
        answer: Any = None
        if isinstance(message, Embed):
            answer = embed(message.passages)
        elif isinstance(message, Open):
            store = opened()
            answer = len(store)
        elif isinstance(message, Find):
            assert store is not None, "it was opened"
            queries = embed(message.queries)
            begin = time.perf_counter()
            answer = store.search(queries, message.k)
        elif isinstance(message, Search):
            assert store is not None, "it was opened"
            answer = 0
            while time.perf_counter() - begin < message.seconds:
                store.search(queries, message.k)
                answer += 1
        seconds = time.perf_counter() - begin
        gc.collect()
        channel.send((answer, seconds, stats()["plain_peak"]))


if __name__ == "__main__":
    sys.exit(serve(load, work))
