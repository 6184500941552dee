# SPDX-License-Identifier: Apache-2.0
"""Runs plain and encrypted workers side by side: what they answer, how long they take, and what is
found of the weights in their memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence

from . import measure, proof, report
from .layers import Array
from .worker import Passage, Worker

__all__ = ["EXIT_FAILED", "Trial", "conclude"]

EXIT_FAILED = 1


class Trial:
    """One plain worker, and an encrypted one for each way of encrypting, by its name. Searches each
    encrypted worker at once, when it has loaded the weights but not worked yet. `in_use` is how
    many of the weights may be in the clear at a time."""

    def __init__(
        self,
        plain: Worker,
        encrypted: Mapping[str, Worker],
        samples: proof.Samples,
        in_use: int = proof.IN_USE,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        say("searching the memory of the encrypted processes, loaded")
        self._plain, self._encrypted = plain, encrypted
        self._samples, self._in_use = samples, in_use
        self._findings = {
            way: [proof.look(worker, samples, f"{way}, loaded", in_use)]
            for way, worker in encrypted.items()
        }
        self._control: proof.Finding | None = None
        self._timings: list[measure.Timing] = []

    def embed(self, passages: Sequence[Passage]) -> dict[str, Array]:
        """Returns the vectors of every encrypted worker, and keeps the plain worker's to compare
        them with."""
        self._say(f"embedding {len(passages)} passages, plain")
        self._plain_vectors, self._plain_seconds = self._plain.embed(passages)
        self._embedded: dict[str, tuple[Array, float]] = {}
        for way, worker in self._encrypted.items():
            self._say(f"embedding {len(passages)} passages, {way}")
            self._embedded[way] = worker.embed(passages)
        return {way: vectors for way, (vectors, _) in self._embedded.items()}

    def time(self, passages: Sequence[Passage], rounds: int, tokens: int | None = None) -> None:
        """Times a batch. `tokens` is their number in it, if the passages are text."""
        batch = "one passage" if len(passages) == 1 else f"a batch of {len(passages)} passages"
        self._say(f"timing {batch}, {rounds} rounds in turn")
        self._timings.append(measure.timing(self._plain, self._encrypted, passages, rounds, tokens))

    def watch(self, passages: Sequence[Passage], looks: int) -> None:
        """Searches the plain worker, and every encrypted one during and after its work."""
        self._say("searching the plain process's memory")
        self._control = proof.look(self._plain, self._samples, "plain, at rest")
        for way, worker in self._encrypted.items():
            self._say(f"searching the memory of {way}, at work and at rest")
            found = self._findings[way]
            found += proof.watch(worker, self._samples, passages, looks, way, self._in_use)
            found.append(
                proof.look(worker, self._samples, f"{way}, at rest after work", self._in_use)
            )

    def outcome(
        self, passages: int, tokens: int, threads: int, nbytes: int, answers: list[report.Answer]
    ) -> report.Outcome:
        """Returns the outcome, after everything was embedded, timed and watched. `nbytes` is the
        size of the weights."""
        assert self._control is not None, "it was watched"
        plain = self._plain
        return report.Outcome(
            passages=passages,
            tokens=tokens,
            threads=threads,
            weight_bytes=nbytes,
            answers=answers,
            timings=self._timings,
            plain=report.Plain(
                plain.load_seconds, self._plain_seconds, plain.peak_memory(), self._control
            ),
            encrypted=[
                report.Encrypted(
                    cipher=way,
                    load_seconds=worker.load_seconds,
                    all_seconds=self._embedded[way][1],
                    peak_bytes=worker.peak_memory(),
                    peak_plaintext=worker.peak_plaintext,
                    agreement=measure.agreement(self._plain_vectors, self._embedded[way][0]),
                    findings=self._findings[way],
                )
                for way, worker in self._encrypted.items()
            ],
        )


def conclude(outcome: report.Outcome, arguments: argparse.Namespace, how: str | None = None) -> int:
    """Prints the outcome, and what should have been shown and was not. Returns the exit status."""
    if arguments.json:
        print(json.dumps(outcome.document(), indent=2))
    else:
        report.show(outcome, how)
    for failure in outcome.failures():
        print(f"pyccmem: {failure}", file=sys.stderr)
    return EXIT_FAILED if outcome.failures() else 0
