# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo.child DESCRIPTOR`: holds the model, by the protocol of
demo/serving.py."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from ..keys import Key
from ..safetensors import dtype_of, load_file, open_file, read_header
from .model import Encoder
from .serving import embed
from .worker import Job


def load_plain(path: str) -> dict[str, Any]:
    """Returns the weights as ordinary arrays, as a program without encryption holds them."""
    weights: dict[str, Any] = {}
    with open_file(path) as file:
        for entry in read_header(file):
            array = np.fromfile(file, dtype_of(entry), entry.nbytes // dtype_of(entry).itemsize)
            weights[entry.name] = array.reshape(entry.shape)
    return weights


def load(job: Job) -> tuple[Any, float]:
    """Returns the function that embeds passages, and the seconds that loading the weights took."""
    begin = time.perf_counter()
    if job.cipher is None:
        encoder = Encoder(job.config, load_plain(job.weights))
    else:
        with Key.generate() as key:
            weights = load_file(job.weights, key=key, cipher=job.cipher, progress=job.progress)
        encoder = Encoder(job.config, weights)
    return encoder.embed, time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(embed(load))
