# SPDX-License-Identifier: Apache-2.0
"""What the tests of mappings share: mechanisms, small blocks, a watchdog, children."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, errors
from pyccmem.binding import FAULTS, lib
from pyccmem.mapping import Mapping

#: The fewest blocks that a window may hold, unless it holds them all.
LEAST = int(lib.CCMEM_WINDOW_BLOCKS)
#: Of a block, in most tests: small, so that everything is evicted all the time.
BLOCK = 4096


def _usable(name: str) -> bool:
    with pyccmem.Key.generate() as key, EncryptedBuffer(1, key=key) as buffer:
        try:
            mapping_of(buffer, name).close()
        except errors.FaultMechanismError:
            return False
        return True


def mapping_of(
    source: EncryptedBuffer | EncryptedTensor,
    fault: str = "auto",
    mode: str = "r",
    *,
    frames: int = LEAST,
    block: int | None = None,
    read_ahead: bool = True,
) -> Mapping:
    """A mapping of a whole buffer or tensor with a window of so many blocks of the least size."""
    if isinstance(source, EncryptedBuffer):
        buffer, offset, shape, dtype = source, 0, (source.nbytes,), np.dtype(np.uint8)
    else:
        buffer, offset = source._buffer, source._offset
        shape, dtype = source.shape, source.dtype
    size = block or max(buffer.page_size, BLOCK)
    return Mapping(
        buffer,
        offset,
        shape,
        dtype,
        frames * size,
        mode,
        _block=size,
        _fault=FAULTS[fault],
        _read_ahead=read_ahead,
    )


MECHANISMS = [name for name in FAULTS if name != "auto" and _usable(name)]
SIGNALS = [name for name in MECHANISMS if name in ("uffd-signal", "sigsegv")]
every_mechanism = pytest.mark.parametrize("fault", MECHANISMS)


def random_bytes(n: int, seed: int = 0) -> np.ndarray:
    """Reproducible bytes."""
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


@contextlib.contextmanager
def watchdog(seconds: float = 60) -> Iterator[None]:
    """Ends the process, with the stack of every thread, when the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def copies(needle: bytes) -> int:
    """How often it is found in this process's memory."""
    found, piece = 0, bytearray(BLOCK)
    with open("/proc/self/maps") as lines, open("/proc/self/mem", "rb", 0) as memory:
        spans = [line.split()[:2] for line in lines if "[v" not in line]
        for span, access in spans:
            begin, end = (int(part, 16) for part in span.split("-"))
            for at in range(begin, end if access[0] == "r" else begin, BLOCK):
                memory.seek(at)
                with contextlib.suppress(OSError):
                    found += memory.readinto(piece) == BLOCK and piece.count(needle)
                piece[:] = bytes(BLOCK)
    return found


#: The beginning of every script that runs in a child: a key, and how to map.
PRELUDE = """
import os, signal, sys, ctypes, threading, time
import numpy as np
import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, errors
import support
from mapping_support import LEAST, mapping_of, random_bytes
key = pyccmem.Key.generate()
fault = sys.argv[1]
"""


def run(script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """PRELUDE and `script` in a fresh interpreter, which leaves no core file."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    return support.run_python(
        limit + PRELUDE + textwrap.dedent(script), *arguments, timeout=timeout
    )


def check(script: str, *arguments: str, timeout: float = 60) -> str:
    """The same, and it must succeed."""
    done = run(script, *arguments, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def assert_died(done: subprocess.CompletedProcess[str], number: signal.Signals) -> None:
    """By that signal, after it printed that it was about to, and nothing afterwards. A sanitizer
    takes the signal, and exits."""
    ended = done.returncode == -number or (support.SANITIZED and done.returncode > 0)
    assert ended, (done.returncode, done.stdout, done.stderr)
    assert done.stdout.splitlines()[-1:] == ["before"], done.stdout
