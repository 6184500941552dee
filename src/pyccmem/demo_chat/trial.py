# SPDX-License-Identifier: Apache-2.0
"""Both conversations: rehearsed, searched while they run, and timed in turn."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from .. import errors
from . import proof
from .job import (
    ENCRYPTED,
    FORGET,
    OPEN,
    PLAIN,
    QUIET,
    REHEARSE,
    SHUT,
    TALK,
    Rows,
    Sizes,
    Step,
    Talk,
)
from .proof import Finding, Samples
from .report import Agreement, Speed
from .worker import ChatWorker

__all__ = ["agreement", "rehearsed", "timed", "watched"]

Say = Callable[[str], None]


def rehearsed(worker: ChatWorker) -> dict[str, Rows]:
    """The rows of the conversation, and what was said, by the way of it: computed by a child of
    its own, so that those that are searched have never had them."""
    worker.begin(REHEARSE)
    plain, encrypted = worker.heard(), worker.heard()
    assert isinstance(plain, Rows) and isinstance(encrypted, Rows)
    return {PLAIN: plain, ENCRYPTED: encrypted}


def agreement(found: dict[str, Rows], sizes: Sizes) -> Agreement:
    """How far the rows of the first question, and the words, are the same in both ways."""
    plain, encrypted = found[PLAIN], found[ENCRYPTED]
    names = [name for name in plain.rows if int(name.rpartition(".")[2]) < sizes.prompt]
    a, b = (
        np.stack([_numbers(rows.rows[name], sizes.dtype) for name in names])
        for rows in (plain, encrypted)
    )
    cosines = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    words = list(zip(plain.talk.tokens, encrypted.talk.tokens, strict=True))
    return Agreement(float(cosines.min()), sum(x == y for x, y in words), len(words))


def _numbers(row: bytes, dtype: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if dtype == "float32":
        return np.frombuffer(row, "<f4").astype(np.float64)
    # bfloat16 is the upper half of a float32.
    bits = np.frombuffer(row, "<u2").astype(np.uint32) << np.uint32(16)
    numbers: np.ndarray[tuple[int], np.dtype[np.float32]] = bits.view(np.float32)
    return numbers.astype(np.float64)


def watched(
    worker: ChatWorker, way: str, wanted: Samples, rehearsal: Talk, looks: int, say: Say
) -> list[Finding]:
    """Searches the child before, during and after a conversation: at rest, with its cache opened
    on purpose and shut again if it is encrypted, and when it has forgotten it."""
    say(f"searching the memory of {way}, before and while it talks")
    findings = [proof.look(worker, wanted, "before the chat", 0)]
    talk, working = _while_talking(worker, wanted, rehearsal, looks)
    if talk.tokens != rehearsal.tokens:
        raise errors.DemoError(
            f"The {way} model said something else than when it rehearsed, so its memory was "
            f"searched for rows that it never had. Is the machine's memory sound?"
        )
    findings += working
    cached = len(talk.tokens) - 1
    say(f"searching the memory of {way} after its last answer")
    findings.append(proof.look(worker, wanted, "after the chat", cached))
    if way == ENCRYPTED:
        for wish, moment in ((OPEN, "opened on purpose"), (SHUT, "shut again")):
            worker.do(wish)
            findings.append(proof.look(worker, wanted, moment, cached))
    worker.do(FORGET)
    moment = "after erase()" if way == ENCRYPTED else "after the cache was freed"
    findings.append(proof.look(worker, wanted, moment, cached))
    return findings


def _while_talking(
    worker: ChatWorker, wanted: Samples, rehearsal: Talk, looks: int
) -> tuple[Talk, list[Finding]]:
    """The conversation, searched while the first question is read, and at `looks` tokens spread
    over the answers, each at some moment of the work on it."""
    findings: list[Finding] = []
    moments = random.Random(0)
    a_token = rehearsal.answer_seconds / max(1, rehearsal.answer_tokens)
    worker.begin(TALK)
    # The rehearsal may have shared the processor with others, and have been slower.
    heard = worker.heard(rehearsal.prompt_seconds / 3)
    cached = steps = 0
    if heard is None:
        with worker.halted():
            findings.append(proof.look(worker, wanted, "reading the question", 0))
        heard = worker.heard()
    while isinstance(heard, Step):
        cached, steps = heard.cached, steps + 1
        if len(findings) <= looks and steps >= rehearsal.answer_tokens * len(findings) / (
            looks + 1
        ):
            time.sleep(moments.random() * a_token)
            with worker.halted():
                # What it has said meanwhile is heard first.
                late = worker.heard(0)
                while isinstance(late, Step):
                    cached, steps = late.cached, steps + 1
                    late = worker.heard(0)
                if late is None:
                    findings.append(
                        proof.look(worker, wanted, f"talking, look {len(findings)}", cached)
                    )
            if late is not None:
                heard = late
                continue
        heard = worker.heard()
    assert isinstance(heard, Talk)
    return heard, findings


def timed(workers: dict[str, ChatWorker], rounds: int) -> list[Speed]:
    """Lets both hold the conversation in turn, beginning with another one in each round. The first
    round is not counted."""
    talks: dict[str, list[Talk]] = {way: [] for way in workers}
    ways = list(workers)
    for number in range(rounds + 1):
        for way in ways if number % 2 else ways[::-1]:
            talk = workers[way].do(QUIET)
            if number:
                talks[way].append(talk)
    return [
        _speed(name, talks, seconds)
        for name, seconds in (
            ("reading the first question", lambda talk: talk.prompt_seconds),
            ("a token of an answer", lambda talk: talk.answer_seconds / talk.answer_tokens),
        )
    ]


def _speed(name: str, talks: dict[str, list[Talk]], seconds: Callable[[Talk], float]) -> Speed:
    plain, encrypted = ([seconds(talk) for talk in talks[way]] for way in (PLAIN, ENCRYPTED))
    ratios = sorted(e / p for p, e in zip(plain, encrypted, strict=True))
    return Speed(
        name,
        statistics.median(plain),
        statistics.median(encrypted),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
    )
