# SPDX-License-Identifier: Apache-2.0
"""What a native function leaves on its stack: the Python side of residue.c.

A function is called on a stack of zeros, twice, at the same addresses and with other secrets.
Whatever then differs on the stack was made of the secrets. What a call hands out to everybody,
ciphertext and tags, may lie there."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyccmem.binding import ffi, lib

SOURCE = Path(__file__).with_name("residue.c")
STACK = 512 << 10
WORD = 8

Bytes = npt.NDArray[np.uint8]


def build(directory: Path) -> ctypes.CDLL:
    """Compiles and loads the library; skips the test where there is no C compiler."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs a C compiler for the stack that can be looked at")
    library = directory / "libresidue.so"
    command = [*compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, "-o", str(library), str(SOURCE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def address(value: Any) -> int:
    """A native argument as a number: integers as they are, memory by where it lies."""
    if isinstance(value, int):
        return value
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    return int(ffi.cast("uintptr_t", value))


class Stack:
    """A stack for calls, zeros before each."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._call = library.residue_call
        self._call.restype = ctypes.c_uint64
        self._room = np.zeros(STACK + 4096, np.uint8)
        start = -self._room.ctypes.data % 4096
        self._stack = self._room[start : start + STACK]

    def call(self, name: str, *arguments: Any) -> tuple[int, Bytes]:
        """What the function of the native module returns, and what it leaves."""
        return self.call_at(address(ffi.cast("uintptr_t", ffi.addressof(lib, name))), *arguments)

    def call_at(self, function: int, *arguments: Any) -> tuple[int, Bytes]:
        """The same of any function, by its address."""
        words = np.zeros(16, np.uint64)
        words[: len(arguments)] = [address(value) % 2**64 for value in arguments]
        self._stack.fill(0)
        result = self._call(
            ctypes.c_void_p(function),
            ctypes.c_void_p(words.ctypes.data),
            ctypes.c_void_p(self._stack.ctypes.data),
            ctypes.c_uint64(STACK),
        )
        return result & 0xFFFFFFFF, self._stack.copy()


def made_of_secrets(runs: Iterable[tuple[Bytes, Bytes]]) -> list[int]:
    """Offsets of the words that differ between two runs, in more bytes than a counter or a time
    would: each run is the stack and what everybody may know."""
    (first, known), (second, also_known) = runs
    a, b = first.view(np.uint64), second.view(np.uint64)
    differ = (first != second).reshape(-1, WORD).sum(axis=1) > WORD // 2
    differ &= (a != 0) & (b != 0)
    public = known.tobytes(), also_known.tobytes()
    return [
        WORD * at
        for at in np.flatnonzero(differ).tolist()
        if not (a[at].tobytes() in public[0] and b[at].tobytes() in public[1])
    ]


def leaks(run: Callable[[int], tuple[Bytes, Bytes]]) -> list[int]:
    """made_of_secrets() of run(1) and run(2), which take the secrets that the number stands for,
    and return what was left and what may be known. The first call of all is for what happens only
    once."""
    run(3)
    return made_of_secrets((run(1), run(2)))
