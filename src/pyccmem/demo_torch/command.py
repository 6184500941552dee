# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem demo-torch`, and the run."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from .. import directories
from ..demo import command as demo
from ..demo import files, proof, report
from ..demo.trial import Trial, conclude
from ..demo.worker import Worker
from ..keys import Key
from .job import BATCH, IN_PLACE, PLAIN, SEALED, Job

#: The packages that the children need besides the model.
PACKAGES = ("torch", "transformers", "sentence_transformers")

#: How many weights are in use at once: rows of the three tables that BERT adds, or a matrix and its
#: bias.
_IN_USE = 3

#: Keeps the libraries from asking a network for anything, and from starting threads of their own.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class TorchWorker(Worker):
    """A child that holds the model in sentence-transformers."""

    module = "pyccmem.demo_torch.child"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem demo-torch`."""
    parser.description = (
        "Runs all-MiniLM-L6-v2 by sentence-transformers, plain, encrypted in place and from a "
        "sealed directory, each time in a process of its own. Shows that all give the same "
        "answers, what the encryption costs, and what another process finds of the weights in the "
        "memory of each."
    )
    parser.epilog = (
        "Exit status: 0 shown; 1 the answers differ, weights were found in an encrypted process, "
        "or none in the plain one; 2 wrong usage or another error; 130 interrupted."
    )
    demo.add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo and prints what it shows. Returns the exit status."""
    demo.require(PACKAGES, "demo-torch")
    model = files.find_model(arguments.model)
    texts = demo.read_texts(arguments)
    queries = arguments.query or list(demo.QUERIES)
    tokenizer = files.Tokenizer(model, demo.MOST_TOKENS)
    sizes = [len(tokens) for tokens in tokenizer([text for _, text in texts])]
    words = [text for _, text in texts]
    weights = model / files.WEIGHTS

    say = report.narrator(arguments.json)
    with ExitStack() as stack:
        say("sealing the model's directory")
        sealed, key_file = stack.enter_context(sealed_copy(model))
        samples = proof.samples(weights)
        say("loading the model three times")

        def start(way: str) -> Worker:
            directory = sealed if way == SEALED else model
            environment = dict(_ENVIRONMENT)
            if way == SEALED:
                environment["PYCCMEM_KEY_FILE"] = str(key_file)
            job = Job(str(directory), way, arguments.threads, demo.MOST_TOKENS)
            return stack.enter_context(TorchWorker(job, environment))

        plain = start(PLAIN)
        encrypted = {way: start(way) for way in (IN_PLACE, SEALED)}
        trial = Trial(plain, encrypted, samples, _IN_USE, say=say)
        vectors = trial.embed(words)
        found, _ = encrypted[SEALED].embed(queries)
        answers = demo.nearest(queries, found, texts, vectors[SEALED])
        order = sorted(range(len(words)), key=sizes.__getitem__)
        typical = order[len(order) // 2]
        places = demo.spread(list(range(len(words))), BATCH)
        batch = [words[i] for i in places]
        trial.time([words[typical]], 3 * arguments.rounds, sizes[typical])
        trial.time(batch, arguments.rounds, sum(sizes[i] for i in places))
        trial.watch(batch, arguments.looks)
        outcome = trial.outcome(
            passages=len(words),
            tokens=sum(sizes),
            threads=arguments.threads,
            nbytes=weights.stat().st_size,
            answers=answers,
        )
    return conclude(
        outcome, arguments, f"by sentence-transformers, {PLAIN}, {IN_PLACE} and from a {SEALED}"
    )


@contextmanager
def sealed_copy(model: Path) -> Iterator[tuple[Path, Path]]:
    """Makes a sealed copy of the model's directory, and a file with its key, which exist as long as
    the `with` block."""
    with tempfile.TemporaryDirectory(prefix="pyccmem-demo-") as scratch:
        key_file = Path(scratch, "key")
        secret = bytearray(os.urandom(32))
        try:
            with open(key_file, "xb", buffering=0, opener=partial(os.open, mode=0o600)) as file:
                file.write(secret)
        finally:
            secret[:] = bytes(len(secret))
        sealed = Path(scratch, "model")
        with Key.from_file(key_file) as key:
            directories.encrypt_directory(model, sealed, key=key, progress=False)
        yield sealed, key_file
