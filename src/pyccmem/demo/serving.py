# SPDX-License-Identifier: Apache-2.0
"""The child's side of a demo: makes what the first message says, and answers later ones."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from .. import errors
from ..process import stats

__all__ = ["embed", "serve", "timed"]

Made = TypeVar("Made")

#: Makes what a job says, and returns it with the seconds that took.
Make = Callable[[Any], tuple[Made, float]]

#: Turns passages into vectors.
Encode = Callable[[Any], Any]


def timed(make: Callable[[Any], Made]) -> Make[Made]:
    """Returns `make`, timed."""

    def made(job: Any) -> tuple[Made, float]:
        begin = time.perf_counter()
        return make(job), time.perf_counter() - begin

    return made


def serve(make: Make[Made], work: Callable[[Made, Connection], object]) -> int:
    """Serves the connection whose descriptor is the program's argument until its other end is
    closed. The first message is a job, answered by the seconds that making it took, or by text that
    says why there is nothing; then comes what `work` does with what was made. Returns the exit
    status."""
    # Ctrl-C reaches the whole group of processes; the parent ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        job = channel.recv()
        try:
            made, seconds = make(job)
        except (errors.PyccmemError, ImportError, OSError, MemoryError) as error:
            channel.send(str(error))
            return 1
        channel.send(seconds)
        work(made, channel)
    except (EOFError, BrokenPipeError):  # the parent has closed its end
        pass
    return 0


def embed(load: Make[Encode]) -> int:
    """serve() for a model that embeds: answers each message, a list of passages, with their
    vectors, the seconds that took, and the most plaintext bytes that pyccmem has returned at once
    so far."""

    def work(encode: Encode, channel: Connection) -> None:
        while True:
            passages = channel.recv()
            begin = time.perf_counter()
            vectors = encode(passages)
            seconds = time.perf_counter() - begin
            gc.collect()
            channel.send((vectors, seconds, stats()["plain_peak"]))

    return serve(load, work)
