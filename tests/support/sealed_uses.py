# SPDX-License-Identifier: Apache-2.0
"""A sealed file of one matrix, and every way to use its tensor: for tests of files that cannot be
read any more."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import support

import pyccmem
from pyccmem import EncryptedTensor, safetensors

ROWS, WIDTH = 512, 1024
ROW = 4 * WIDTH  # one page


def plain() -> np.ndarray:
    return np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) / 1000


def opened(path: Path, key: pyccmem.Key) -> EncryptedTensor:
    safetensors.save_file({"weight": plain()}, path, key=key)
    return safetensors.load_file(path, key=key)["weight"]


def cut(path: Path, row: int) -> bytes:
    """Ends the file with the page before that row's; returns what it held."""
    whole = path.read_bytes()
    with safetensors.safe_open(path, key=support_key()) as file:
        start = file._placed["weight"][1].start
    os.truncate(path, start + row * ROW)
    return whole


def support_key() -> pyccmem.Key:
    return pyccmem.Key.from_bytes(support.KEY_BYTES)


VECTOR = np.ones(WIDTH, np.float32)

USES = {
    "read_into": lambda t: t._buffer.read_into(bytearray(ROWS * ROW)),
    "read": lambda t: t._buffer.read(400 * ROW, 100),
    "a row": lambda t: t[400],
    "rows": lambda t: t[[1, 400, 2, 411]],
    "a column": lambda t: t[:, 7],
    "numpy": lambda t: t.numpy() if hasattr(t, "numpy") else t[...],
    "verify": lambda t: t._buffer.verify(),
    "vector": lambda t: pyccmem.linear(VECTOR, t),
    "matrix": lambda t: pyccmem.linear(np.ones((40, WIDTH), np.float32), t),
    "@": lambda t: t @ VECTOR,
    "copy": lambda t: t.copy(key=support_key()),
    "open": lambda t: t.open("r").__enter__(),
    "prefault": lambda t: t.map(window="16KiB").prefault(slice(400, 404)),
    "pin": lambda t: t.map(window="64KiB").pin(slice(400, 404)).__enter__(),
}
