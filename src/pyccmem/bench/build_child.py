# SPDX-License-Identifier: Apache-2.0
"""Builds one buffer and prints the memory it took as JSON. build.py runs it in a new process.

Usage: python -m pyccmem.bench.build_child NBYTES CIPHER
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

import numpy as np

from ..buffer import EncryptedBuffer
from ..keys import Key
from .common import PAGE, must_equal
from .rounds import random_bytes


def _kib(field: str) -> int | None:
    """Returns a field of /proc/self/status in bytes; None if there is no such file."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _forget_peak() -> bool:
    """Sets VmHWM, the peak of resident memory, to what is resident now (proc(5), clear_refs)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
            clear.write("5")
    except OSError:
        return False
    return True


def main(nbytes: int, cipher: str) -> dict[str, float]:
    key = Key.generate()
    # Whatever a first use sets up must count as the interpreter's and the library's own size.
    EncryptedBuffer.from_data(bytes(PAGE), key=key, cipher=cipher).close()
    source = random_bytes(nbytes)
    resettable = _forget_peak()
    before = _kib("VmRSS")
    start = perf_counter()
    buffer = EncryptedBuffer.from_data(source, key=key, cipher=cipher)
    seconds = perf_counter() - start
    peak = _kib("VmHWM")
    stored = len(buffer.ciphertext)

    out = np.empty(1 << 20, dtype=np.uint8)
    for offset in range(0, nbytes, out.size):
        part = out[: min(out.size, nbytes - offset)]
        buffer.read_into(part, offset)
        must_equal(part, source[offset : offset + part.size], "a built buffer read back")

    result = {
        "seconds": seconds,
        "source": float(nbytes),
        "ciphertext": float(stored),
        "overhead": float(buffer.stats()["overhead_bytes"]),
    }
    if resettable and before is not None and peak is not None:
        # What was resident before, except the source, is the interpreter.
        result["peak"] = float(peak - (before - nbytes))
    return result


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2])))
