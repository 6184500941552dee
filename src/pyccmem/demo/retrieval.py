# SPDX-License-Identifier: Apache-2.0
"""`pyccmem demo --search`: passages and their vectors in a store, plain and encrypted, each in a
process of its own; both find the same, and another process looks for them in the memory of both.

The parent makes the stores, as a service does when it takes documents in, and the two processes
load them: an array and a list of texts, or a sealed index. Samples that lie in a process before it
has its store do not count: Python's own modules hold their docstrings. Nor do passages that were
answered, which the process has in the clear to answer with them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import audit, errors
from ..keys import Key
from ..vectors import EncryptedIndex
from . import files, report
from .layers import Array
from .retrieval_job import Embed, Find, Open, RetrievalJob, Search
from .trial import EXIT_FAILED
from .worker import Job, Worker

__all__ = ["Found", "Outcome", "run_search"]

#: Passages that a query is answered with.
K = 3

#: Bytes of rows that a thread may have in the clear while it searches: a tile.
_TILE = 64 << 10

#: Vectors, and passages, that are looked for, at most.
_SAMPLES = 4096

#: How far two scores of one passage may be apart: the model's own rounding.
_NEAR = 1e-5

#: Increased when a field of the JSON document changes its meaning.
SCHEMA = 1


class _Process(Worker):
    """A process with a store."""

    module = "pyccmem.demo.retrieval_child"

    def call(self, message: Any) -> tuple[Any, float]:
        """Returns the answer to a message, and the seconds that it took."""
        self.ask(message)
        return self.answer()


@dataclass(frozen=True)
class Found:
    """What one search of one process's memory found, of how many."""

    moment: str
    vectors: int
    passages: int
    vector_samples: int
    passage_samples: int
    bytes_scanned: int


@dataclass(frozen=True)
class Outcome:
    """All results."""

    passages: int
    threads: int
    cipher: str
    answers: list[report.Answer]
    same: bool  # both found the same passages
    difference: float  # the largest of two scores
    plain_seconds: float  # a search, without embedding the queries
    encrypted_seconds: float
    control: Found
    looks: list[Found]  # the first and the last at rest
    tile: int  # vectors that may lie in the clear at work

    def failures(self) -> list[str]:
        """Returns what the run should have shown and did not."""
        found = []
        if not self.same or self.difference > _NEAR:
            found.append("the encrypted store does not find what the plain one finds.")
        control = self.control
        wanted = control.vector_samples + control.passage_samples
        if control.vectors + control.passages < 0.9 * wanted:
            found.append(
                f"only {control.vectors + control.passages} of {wanted} samples were found in the "
                f"plain process, so the search proves nothing."
            )
        for at, look in enumerate(self.looks):
            most = self.tile if 0 < at < len(self.looks) - 1 else 0
            if look.passages or look.vectors > most:
                found.append(
                    f"{look.moment}: {look.vectors} vectors and {look.passages} passages lie in "
                    f"the clear."
                )
        return found

    def document(self) -> dict[str, Any]:
        """Returns the results for JSON, in seconds and bytes."""
        return {"schema": SCHEMA, "passed": not self.failures(), **asdict(self)}


def run_search(
    arguments: argparse.Namespace,
    jobs: tuple[Job, Job],
    tokenizer: files.Tokenizer,
    texts: Sequence[tuple[str, str]],
    queries: Sequence[str],
) -> int:
    """Runs it, plain and encrypted, and prints what it shows. Returns the exit status."""
    say = report.narrator(arguments.json)
    tokens = tokenizer([text for _, text in texts])
    asked = Find(tokenizer(list(queries)), min(K, len(texts)))
    plain_job, encrypted_job = jobs
    with tempfile.TemporaryDirectory(prefix="pyccmem-demo-") as folder:
        say("loading the model, plain")
        with _Process(RetrievalJob(plain_job, folder)) as plain:
            say(f"embedding {len(tokens)} passages, and making a store of them")
            vectors, _ = plain.call(Embed(tokens))
            _make_stores(Path(folder), vectors, texts)
            say(f"loading the model under {encrypted_job.cipher}")
            with _Process(RetrievalJob(encrypted_job, folder)) as encrypted:
                outcome = _compared(plain, encrypted, vectors, texts, queries, asked, arguments)
    outcome = replace(outcome, cipher=encrypted_job.cipher or "")
    if arguments.json:
        print(json.dumps(outcome.document(), indent=2))
    else:
        _show(outcome)
    for failure in outcome.failures():
        print(f"pyccmem: {failure}", file=sys.stderr)
    return EXIT_FAILED if outcome.failures() else 0


def _make_stores(folder: Path, vectors: Array, texts: Sequence[tuple[str, str]]) -> None:
    """Writes both stores, and the key of one."""
    bodies = [text.encode() for _, text in texts]
    np.save(folder / "vectors.npy", vectors)
    (folder / "passages").write_bytes(b"\n".join(bodies))
    (folder / "key").touch(0o600)
    (folder / "key").write_bytes(os.urandom(32))
    with (
        Key.from_file(folder / "key") as key,
        EncryptedIndex(vectors.shape[1], key=key, metric="cosine") as index,
    ):
        index.add(vectors, payloads=bodies)
        index.save(folder / "index.sealed")


class _Looker:
    """Looks for vectors and passages in the memory of processes."""

    def __init__(self, vectors: Array, texts: Sequence[tuple[str, str]]) -> None:
        chosen = range(0, len(texts), -(-len(texts) // _SAMPLES))
        parts = {f"vector {at}": vectors[at].tobytes() for at in chosen}
        bodies = {f"passage {at}": texts[at][1].encode() for at in chosen}
        self._samples = audit.samples_from_parts(parts | bodies, "a store")
        self._names = set(parts | bodies) - set(self._samples.without_samples())
        #: What does not count.
        self.left_out: set[str] = set()

    def names(self, process: Worker) -> tuple[set[str], int]:
        """Returns the samples that lie in a process's memory, and how many bytes that has."""
        with process.halted():
            found = audit.scan(process.pid, self._samples)
        return set(found.tensors), found.bytes_scanned

    def look(self, process: Worker, moment: str) -> Found:
        """Searches a process's memory."""
        found, scanned = self.names(process)
        counted = self._names - self.left_out

        def number(kind: str, names: set[str]) -> int:
            return sum(name.startswith(kind) for name in names)

        return Found(
            moment,
            vectors=number("vector", found & counted),
            passages=number("passage", found & counted),
            vector_samples=number("vector", counted),
            passage_samples=number("passage", counted),
            bytes_scanned=scanned,
        )


def _compared(
    plain: _Process,
    encrypted: _Process,
    vectors: Array,
    texts: Sequence[tuple[str, str]],
    queries: Sequence[str],
    asked: Find,
    arguments: argparse.Namespace,
) -> Outcome:
    say = report.narrator(arguments.json)
    looker = _Looker(vectors, texts)
    say("searching the encrypted process's memory, before it has its store and with it")
    looker.left_out, _ = looker.names(encrypted)
    for process in (plain, encrypted):
        process.call(Open())
    looks = [looker.look(encrypted, "encrypted, loaded")]
    say("asking both")
    wanted, _ = plain.call(asked)
    found, _ = encrypted.call(asked)
    places = {text: at for at, (_, text) in enumerate(texts)}
    looker.left_out |= {f"passage {places[text]}" for hits in found for _, text in hits}
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(3 * arguments.rounds):
        for process, mine in zip((plain, encrypted), seconds, strict=True):
            mine.append(process.call(asked)[1] / len(queries))
    say("searching the memory of both, at work and at rest")
    for number in range(arguments.looks):
        encrypted.ask(Search(0.5, asked.k))
        time.sleep(0.4 * (number + 0.5) / arguments.looks)
        if encrypted.answered(0):
            raise errors.DemoError("The search was over before it could be looked at.")
        looks.append(looker.look(encrypted, f"encrypted, at work, look {number + 1}"))
        encrypted.answer()
    looks.append(looker.look(encrypted, "encrypted, at rest after work"))
    pairs = [
        pair
        for mine, theirs in zip(found, wanted, strict=True)
        for pair in zip(mine, theirs, strict=True)
    ]
    return Outcome(
        passages=len(texts),
        threads=arguments.threads,
        cipher="",
        answers=[
            report.Answer(query, [(score, texts[places[text]][0], text) for score, text in hits])
            for query, hits in zip(queries, found, strict=True)
        ],
        same=all(mine[1] == theirs[1] for mine, theirs in pairs),
        difference=max(abs(mine[0] - theirs[0]) for mine, theirs in pairs),
        plain_seconds=float(np.median(seconds[0])),
        encrypted_seconds=float(np.median(seconds[1])),
        control=looker.look(plain, "plain"),
        looks=looks,
        tile=arguments.threads * (_TILE // vectors[0].nbytes + 2),
    )


def _show(outcome: Outcome) -> None:
    print(
        f"{outcome.passages} passages and their vectors in a store, plain and encrypted, "
        f"the model plain and under {outcome.cipher}"
    )
    report.show_answers(outcome.answers)
    report.table(
        "Vectors and passages that another process found in memory",
        ("process", "vectors", "passages"),
        [
            (
                one.moment,
                f"{one.vectors} of {one.vector_samples}",
                f"{one.passages} of {one.passage_samples}",
            )
            for one in (outcome.control, *outcome.looks)
        ],
    )
    print(
        f"Both found the same passages: {'yes' if outcome.same else 'no'}. A search took "
        f"{outcome.plain_seconds * 1e3:.2f} ms with numpy over plain vectors, "
        f"{outcome.encrypted_seconds * 1e3:.2f} ms over the sealed index, with opening what it "
        f"answers."
    )
