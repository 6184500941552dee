# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo.child DESCRIPTOR`: holds the model and does what the parent asks.

The first message says which file of weights to load and how to encrypt them; each later one
is a list of passages to embed, and is answered with their vectors, the seconds it took and the
most plaintext bytes that pyccmem has handed out at once so far.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .. import errors
from ..binding import wiped
from ..files.safetensors_header import open_file, read_header
from ..keys import Key
from ..safetensors import dtype_of, load_file
from .model import Encoder
from .worker import Job


def load_plain(path: str) -> dict[str, Any]:
    """The weights as ordinary arrays, as any program without encryption holds them."""
    weights: dict[str, Any] = {}
    with open_file(path) as file:
        for entry in read_header(file):
            array = np.fromfile(file, dtype_of(entry), entry.nbytes // dtype_of(entry).itemsize)
            weights[entry.name] = array.reshape(entry.shape)
    return weights


def _encoder(job: Job) -> Encoder:
    if job.cipher is None:
        return Encoder(job.config, load_plain(job.weights))
    with Key.generate() as key:
        weights = load_file(job.weights, key=key, cipher=job.cipher, progress=job.progress)
    return Encoder(job.config, weights)


def main() -> int:
    # Ctrl-C reaches the whole group of processes; the parent ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        job: Job = channel.recv()
        begin = time.perf_counter()
        try:
            encoder = _encoder(job)
        except (errors.PyccmemError, OSError, MemoryError) as error:
            channel.send(str(error))
            return 1
        channel.send(time.perf_counter() - begin)
        while True:
            passages = channel.recv()
            begin = time.perf_counter()
            vectors = encoder.embed(passages)
            seconds = time.perf_counter() - begin
            gc.collect()
            channel.send((vectors, seconds, wiped.stats()["plain_peak"]))
    except (EOFError, BrokenPipeError):  # the parent has closed its end
        return 0


if __name__ == "__main__":
    sys.exit(main())
