# SPDX-License-Identifier: Apache-2.0
"""The child's side of a demo. It loads what the first message says, and answers each later message,
a list of passages, with their vectors, the seconds that took, and the most plaintext bytes that
pyccmem has returned at once so far."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .. import errors
from ..process import stats

__all__ = ["serve"]

#: Turns passages into vectors.
Encode = Callable[[Any], Any]


def serve(load: Callable[[Any], tuple[Encode, float]]) -> int:
    """Serves the connection whose descriptor is the program's argument until its other end is
    closed. `load(job)` returns the function that embeds and the seconds that loading took. Returns
    the exit status."""
    # Ctrl-C reaches the whole group of processes; the parent ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        job = channel.recv()
        try:
            encode, seconds = load(job)
        except (errors.PyccmemError, ImportError, OSError, MemoryError) as error:
            channel.send(str(error))
            return 1
        channel.send(seconds)
        while True:
            passages = channel.recv()
            begin = time.perf_counter()
            vectors = encode(passages)
            seconds = time.perf_counter() - begin
            gc.collect()
            channel.send((vectors, seconds, stats()["plain_peak"]))
    except (EOFError, BrokenPipeError):  # the parent has closed its end
        return 0
