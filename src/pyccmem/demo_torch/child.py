# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo_torch.child DESCRIPTOR`: holds the model and does what the parent asks,
in the words of pyccmem.demo.child."""

from __future__ import annotations

import gc
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from .. import errors
from ..binding import wiped
from ..keys import Key
from .job import BATCH, IN_PLACE, Job


def load(job: Job) -> tuple[Any, float]:
    """The model, and the seconds that took, without the import of torch and the rest."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    import pyccmem.torch
    import pyccmem.transformers

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(job.threads)
    begin = time.perf_counter()
    # Plain or sealed, it is the same call; the key comes from PYCCMEM_KEY_FILE.
    model = SentenceTransformer(job.directory, device="cpu", local_files_only=True)
    model.max_seq_length = job.most_tokens
    if job.way == IN_PLACE:
        with Key.generate() as key:
            pyccmem.torch.encrypt_module(model, key=key)
        gc.collect()
    return model, time.perf_counter() - begin


def main() -> int:
    # Ctrl-C reaches the whole group of processes; the parent ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        job: Job = channel.recv()
        try:
            model, seconds = load(job)
        except (errors.PyccmemError, ImportError, OSError, MemoryError) as error:
            channel.send(str(error))
            return 1
        channel.send(seconds)
        while True:
            passages = channel.recv()
            begin = time.perf_counter()
            vectors = model.encode(list(passages), batch_size=BATCH, show_progress_bar=False)
            seconds = time.perf_counter() - begin
            gc.collect()
            channel.send((vectors, seconds, wiped.stats()["plain_peak"]))
    except (EOFError, BrokenPipeError):  # the parent has closed its end
        return 0


if __name__ == "__main__":
    sys.exit(main())
