# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem demo-chat`, and the run."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from .. import errors
from ..demo import command as demo
from ..demo.report import narrator
from ..demo.trial import EXIT_FAILED
from . import proof, report, trial
from .job import ENCRYPTED, PLAIN, Job, Sizes
from .worker import ChatWorker

#: The packages that the children need.
PACKAGES = ("torch", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem demo-chat`."""
    parser.description = (
        "Lets a Llama with random weights hold a conversation, plain, and with weights and "
        "key-value cache encrypted, each in a process of its own. Shows what another process finds "
        "of the conversation's keys and values in the memory of each while it talks and after, "
        "and what the encryption costs."
    )
    parser.epilog = (
        "Exit status: 0 shown; 1 keys and values were found in the encrypted process outside of "
        "what was open, or not all in the plain one, or the two compute differently; 2 wrong usage "
        "or another error; 130 interrupted."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    demo.add_counts(
        parser.add_argument,
        (
            ("--samples", 4200, 42, 100_000, "samples of each part of the conversation"),
            ("--looks", 4, 1, 1000, "looks while it talks"),
            ("--rounds", 3, 1, 1000, "timed conversations of each"),
            ("--threads", 1, 1, 64, "threads of each process"),
            ("--turns", 3, 1, 100, "questions, and answers"),
            (
                "--prompt",
                512,
                16,
                100_000,
                "tokens of the first question; later ones have a quarter",
            ),
            ("--answer", 32, 4, 100_000, "tokens of each answer"),
            ("--layers", 8, 2, 200, "layers of the model"),
            ("--width", 1024, 64, 16384, "size of its hidden states"),
            ("--heads", 8, 1, 128, "heads of keys and values; of queries there are twice as many"),
            ("--head-size", 64, 32, 256, "elements of a head"),
        ),
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of weights and cache (float32, which processors without AMX or AVX-512 do best)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo and prints what it shows. Returns the exit status."""
    demo.require(PACKAGES, "transformers")
    if arguments.head_size % 2:
        raise errors.ArgumentError(
            f"--head-size is {arguments.head_size}; half of it is rotated with the other half, so "
            f"it must be even."
        )
    names = ("layers", "width", "heads", "head_size", "dtype", "turns", "prompt", "answer")
    sizes = Sizes(**{name: getattr(arguments, name) for name in names})
    outcome = _outcome(sizes, arguments)
    if arguments.json:
        print(json.dumps(outcome.document(), indent=2))
    else:
        report.show(outcome)
    for failure in outcome.failures():
        print(f"pyccmem: {failure}", file=sys.stderr)
    return EXIT_FAILED if outcome.failures() else 0


def _outcome(sizes: Sizes, arguments: argparse.Namespace) -> report.Outcome:
    say = narrator(arguments.json)
    with ExitStack() as stack:

        def start(way: str, rows: int = 0) -> ChatWorker:
            job = Job(sizes, way, arguments.threads, rows)
            return stack.enter_context(ChatWorker(job, wait=False))

        say("making the model three times")
        first = start(PLAIN, arguments.samples)
        workers = {way: start(way) for way in (PLAIN, ENCRYPTED)}
        first.wait_loaded()
        say("rehearsing the conversation, plain and encrypted")
        found = trial.rehearsed(first)
        first.close()
        for worker in workers.values():
            worker.wait_loaded()
        findings = {}
        for way, worker in workers.items():
            rehearsal = found[way]
            wanted = proof.samples(rehearsal.rows, sizes.prompt)
            findings[way] = trial.watched(worker, way, wanted, rehearsal.talk, arguments.looks, say)
        say(f"timing the conversation, {arguments.rounds} rounds in turn")
        speeds = trial.timed(workers, arguments.rounds)
    return report.Outcome(sizes, arguments.threads, trial.agreement(found, sizes), speeds, findings)
