# SPDX-License-Identifier: Apache-2.0
"""Claim 10: guard() and `pyccmem run`, which overwrite what is freed, cost little.

The same work in three processes at once, which take turns: as it is, after guard(), and started by
`pyccmem run` (guard_child.py). Tokens and prompts of a Llama, whole requests, MiniLM, pipelines of
NumPy with large and with many small arrays. All must give the same results, and the processes must
be what their names say: the first overwrites nothing, the last all sizes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from .linear import THREAD_VARIABLES
from .rounds import CheckError, Figure, Plan, Summary, Target, interleave
from .threads import cores

GROUP = "guard"

PLAIN, CALL, RUN = "plain", "guard()", "pyccmem run"

#: The most time as a multiple of the plain process's.
TARGETS = {"decode": 1.03, "request": 1.05, "prompt": 1.05, "sentence": 1.05, "batch": 1.05}

LABELS = {
    "decode": "Llama float32, tokens",
    "prompt": "Llama float32, prompt of 256",
    "request": "Llama float32, generate()",
    "sentence": "MiniLM, one sentence",
    "batch": "MiniLM, batch of 32",
    "numpy-large": "NumPy, arrays of 2 MiB",
    "numpy-small": "NumPy, arrays of 192 bytes",
}

#: What is overwritten in each process, and what not, so that the figures are of what they say.
OVERWRITTEN = {
    PLAIN: (frozenset[str](), {"freed-memory", "small-blocks", "python-objects", "numpy-memory"}),
    CALL: ({"freed-memory", "numpy-memory"}, {"small-blocks", "python-objects"}),
    RUN: ({"freed-memory", "small-blocks", "python-objects", "numpy-memory"}, frozenset[str]()),
}


class _Process:
    """A process of guard_child.py, which works when it is told to."""

    def __init__(self, way: str, threads: int, quick: bool) -> None:
        child = [sys.executable, "-m", "pyccmem.bench.guard_child"]
        child += [str(int(quick)), str(int(way == CALL))]
        before = [sys.executable, "-m", "pyccmem", "run", "--"] if way == RUN else []
        self.way = way
        self.process = subprocess.Popen(
            [*before, *child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, str(threads)),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            },
        )

    def answer(self) -> Any:
        """Returns the next line, which is JSON. Raises CheckError if there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CheckError(f"{GROUP}: the process {self.way!r} has ended.")
        return json.loads(line)

    def seconds(self, work: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return float(self.answer())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def figures(plan: Plan) -> Iterator[Figure]:
    for threads in (1, 2)[: cores()]:
        yield from _figures(plan, threads)


def _figures(plan: Plan, threads: int) -> Iterator[Figure]:
    group = f"{GROUP}, {'one thread' if threads == 1 else f'{threads} threads'}"
    plan.progress(f"{group}: starting")
    with ExitStack() as stack:
        processes = []
        for way in (PLAIN, CALL, RUN):
            processes.append(_Process(way, threads, plan.quick))
            stack.callback(processes[-1].end)
        works = check({one.way: one.answer() for one in processes})
        for work in works:
            samples = interleave(
                {one.way: partial(one.seconds, work) for one in processes},
                plan.rounds,
                tries=2,
                progress=plan.progress,
                title=f"{group}: {work}",
            )
            for way in (CALL, RUN):
                limit = TARGETS.get(work)
                yield Figure(
                    id=f"guard/{threads}/{work}/{'call' if way == CALL else 'run'}",
                    group=group,
                    label=f"{LABELS[work]}, {way}: time over plain",
                    value=Summary.of(samples[way] * 1e3),
                    unit="ms",
                    reference=Summary.of(samples[PLAIN]).median * 1e3,
                    reference_label="plain",
                    ratio=Summary.of(samples[way] / samples[PLAIN]),
                    target=None if limit is None else Target(limit, at_least=False),
                )


def check(told: dict[str, Any]) -> list[str]:
    """Returns the names of the works. Raises CheckError unless all processes have the same results,
    and overwrite what they should."""
    results: dict[str, str] = told[PLAIN]["results"]
    for way, one in told.items():
        if one["results"] != results:
            raise CheckError(f"{GROUP}, {way}: a result is wrong, so its speed means nothing.")
        must, must_not = OVERWRITTEN[way]
        active = {*one["parts"]}
        if not must <= active or must_not & active:
            raise CheckError(
                f"{GROUP}, {way}: it overwrites {', '.join(sorted(active)) or 'nothing'}, "
                f"which is not what is to be measured."
            )
    return list(results)
