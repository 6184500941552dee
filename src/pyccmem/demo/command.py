# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem demo`, and the run."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np

from .. import errors
from ..console.command import EXIT_ERROR, carry_out, complain
from ..console.numbers import whole
from ..measure import SUITES
from . import files, passages, proof, report
from .layers import Array
from .retrieval import run_search
from .trial import Trial, conclude
from .worker import Job, Worker

Item = TypeVar("Item")

QUERIES = (
    "How do I compress a file?",
    "parse the options of a command line",
)

#: The ciphers shown by default: one with tags and one without.
CIPHERS = ("aegis-128x2", "aes-128-xts")

#: The most tokens of a passage; the rest is cut off.
MOST_TOKENS = 128
_BATCH = 32


def count(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` to `most`."""
    return whole("a count", least, most)


def add_counts(add: Callable[..., Any], table: Sequence[tuple[str, int, int, int, str]]) -> None:
    """Adds an option for each row, of name, default, least, most, what it counts, by the
    add_argument() of a parser or of a group."""
    for name, default, least, most, what in table:
        add(
            name,
            metavar="N",
            type=count(least, most),
            default=default,
            help=f"{what} ({default})",
        )


def require_proc(what: str) -> None:
    """Raises DemoError where there is no /proc."""
    if not sys.platform.startswith("linux"):
        raise errors.DemoError(f"{what} /proc, which only Linux has.")


def require(packages: Sequence[str], extra: str) -> None:
    """Raises DemoError where there is no /proc, MissingPackageError when one of the packages is not
    installed that `extra` brings."""
    require_proc("The demo looks into")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.MissingPackageError(
            f"The demo needs {', '.join(missing).replace('_', '-')}, which is not installed; "
            f"pip install 'pyccmem[{extra}]'."
        )


def main(
    name: str,
    add: Callable[[argparse.ArgumentParser], None],
    work: Callable[[argparse.Namespace], int],
) -> int:
    """Does the work of `python -m pyccmem.NAME`, as the command `pyccmem` does it. Returns the exit
    status."""
    parser = argparse.ArgumentParser(prog=f"pyccmem {name}")
    add(parser)

    def run() -> int:
        try:
            return work(parser.parse_args())
        except errors.PyccmemError as error:
            complain(str(error))
            return EXIT_ERROR

    return carry_out(run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem demo`."""
    parser.description = (
        "Runs all-MiniLM-L6-v2, a sentence-embedding model, with plain weights and with every "
        "weight encrypted in RAM, by each of two ciphers, each time in a process of its own. Shows "
        "that all give the same answers, what the encryption costs, and what another process finds "
        "of the weights in the memory of each."
    )
    parser.epilog = (
        "Exit status: 0 shown; 1 the answers differ, weights were found in an encrypted process, "
        "or none in the plain one; 2 wrong usage or another error; 130 interrupted."
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--cipher",
        choices=list(SUITES),
        action="append",
        help=f"only this one; repeatable ({', '.join(CIPHERS)})",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="keep passages and vectors in a store, plain and encrypted, and search the memory of "
        "both for them instead of for the weights",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `pyccmem demo-torch` has as well."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--query", metavar="TEXT", action="append", help="find the nearest passages; repeatable"
    )
    parser.add_argument(
        "--text", metavar="FILE", help="passages to embed, one a line (default: docstrings)"
    )
    parser.add_argument(
        "--passages",
        metavar="N",
        type=count(4, 100_000),
        default=320,
        help="embed at most so many (320)",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=count(1, 1000), default=7, help="timed rounds (7)"
    )
    parser.add_argument(
        "--looks", metavar="N", type=count(1, 1000), default=6, help="looks at work (6)"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=count(1, 64),
        default=1,
        help="threads of each process (1: a BLAS that waits for cores others use measures those)",
    )
    parser.add_argument("--model", metavar="DIR", help="files of another BERT sentence model")


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo and prints what it shows. Returns the exit status."""
    require((), "demo")
    model = files.find_model(arguments.model)
    config = files.read_config(model)
    tokenizer = files.Tokenizer(model, MOST_TOKENS)
    texts = read_texts(arguments)
    queries = arguments.query or list(QUERIES)
    tokens = tokenizer([text for _, text in texts])
    weights = model / files.WEIGHTS
    files.check_weights(weights, config)

    ciphers = list(dict.fromkeys(arguments.cipher or CIPHERS))

    if arguments.search:
        jobs = [
            Job(str(weights), config, cipher, False, arguments.threads)
            for cipher in (None, ciphers[0])
        ]
        return run_search(arguments, (jobs[0], jobs[1]), tokenizer, texts, queries)

    say = report.narrator(arguments.json)
    say(f"loading the model {1 + len(ciphers)} times: plain, and under {' and '.join(ciphers)}")

    def start(cipher: str | None) -> Worker:
        progress = None if cipher is not None and not arguments.json else False
        return Worker(Job(str(weights), config, cipher, progress, arguments.threads))

    with ExitStack() as stack:
        samples = proof.samples(weights)
        plain = stack.enter_context(start(None))
        encrypted = {cipher: stack.enter_context(start(cipher)) for cipher in ciphers}
        trial = Trial(plain, encrypted, samples, say=say)
        vectors = trial.embed(tokens)
        first = ciphers[0]
        found, _ = encrypted[first].embed(tokenizer(queries))
        answers = nearest(queries, found, texts, vectors[first])
        typical = sorted(tokens, key=len)[len(tokens) // 2]
        batch = spread(tokens, _BATCH)
        trial.time([typical], 3 * arguments.rounds)
        trial.time(batch, arguments.rounds)
        trial.watch(batch, arguments.looks)
        outcome = trial.outcome(
            passages=len(tokens),
            tokens=sum(map(len, tokens)),
            threads=arguments.threads,
            nbytes=weights.stat().st_size,
            answers=answers,
        )
    return conclude(outcome, arguments)


def read_texts(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns (place, text) of the passages that the options ask for. Raises FileReadError,
    FileFormatError."""
    if arguments.text is None:
        return passages.from_standard_library(arguments.passages)
    return passages.from_file(arguments.text)[: arguments.passages]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Returns at most `count` of the items, from evenly spread places."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def nearest(
    queries: Sequence[str], found: Array, texts: Sequence[tuple[str, str]], vectors: Array
) -> list[report.Answer]:
    """Returns the three nearest passages of each query by cosine."""
    answers = []
    for query, scores in zip(queries, found @ vectors.T, strict=True):
        best = np.argsort(-scores, kind="stable")[:3]
        hits = [(float(scores[i]), *texts[i]) for i in best]
        answers.append(report.Answer(query, hits))
    return answers
