# SPDX-License-Identifier: Apache-2.0
"""What a buffer costs beside its bytes: at most 1 % of metadata, and 16 MiB while it is made."""

from __future__ import annotations

import os

import pytest
import support
from support import linux_only, not_sanitized

import pyccmem
from pyccmem import EncryptedBuffer

BUILD = """
import sys
import numpy as np
import pyccmem
nbytes, threads, how, cipher = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
pyccmem.set_num_threads(threads)
def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
key = pyccmem.Key.generate()
with pyccmem.EncryptedBuffer(1 << 20, key=key, cipher=cipher) as small:  # start-up costs
    small.write(np.ones(1 << 20, np.uint8)); small.read_into(np.empty(1 << 20, np.uint8))
base = peak()
source = np.full(nbytes, 7, np.uint8)
if how == "from_data":
    b = pyccmem.EncryptedBuffer.from_data(source, key=key, cipher=cipher)
else:
    b = pyccmem.EncryptedBuffer(nbytes, key=key, cipher=cipher)
    b.write(source)
built = peak()
b.read_into(source)
assert source.min() == source.max() == 7
print(base, built, peak(), b.stats()["overhead_bytes"], int(b.versions.sum()))
"""


@linux_only
@not_sanitized
@pytest.mark.parametrize(
    ("how", "threads", "cipher"),
    [
        ("write", 1, "aes-128-xts"),
        ("from_data", 2, "aes-128-xts"),
        ("write", 2, "aegis-128x2"),
        ("from_data", 1, "aegis-128x2"),
    ],
)
def test_building_from_a_gibibyte(how: str, threads: int, cipher: str) -> None:
    """Peak memory: source + ciphertext + 16 MiB, and reading back in place takes no more."""
    nbytes = 1 << 30
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(
            int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")
        )
    if available < 3 * nbytes:
        pytest.skip(f"needs 3 GiB of free memory, {available >> 20} MiB are")
    if pyccmem.cpu_info()["tier"] == "portable":
        nbytes = 1 << 28  # the same claim at a size that this code encrypts in seconds
    printed = support.check_python(BUILD, str(nbytes), str(threads), how, cipher)
    base, built, read, overhead, versions = map(int, printed.split())
    assert built - base <= 2 * nbytes + (16 << 20), f"{(built - base - 2 * nbytes) >> 10} KiB"
    assert read - base <= 2 * nbytes + (16 << 20)
    assert overhead <= nbytes // 100
    assert versions == nbytes // 4096


@pytest.mark.parametrize("nbytes", [1 << 20, 10 << 20, 64 << 20, 256 << 20])
def test_metadata_is_at_most_one_percent(
    key: pyccmem.Key, cipher: str, page_size: int, nbytes: int
) -> None:
    """From 64 MiB on; in smaller buffers the tweak cache, which has a fixed size, weighs more.
    Each page has a version of 8 bytes, a copy of it and, where the cipher has tags, one of 16."""
    with EncryptedBuffer(nbytes, key=key, cipher=cipher, page_size=page_size) as buffer:
        overhead = buffer.stats()["overhead_bytes"]
        records = (32 if buffer.authenticated else 16) * (nbytes // page_size)
        assert records <= overhead <= nbytes // (100 if nbytes >= 64 << 20 else 50)


@linux_only
@not_sanitized
def test_reported_overhead_is_the_real_one(key: pyccmem.Key) -> None:
    """Address space taken by a buffer: its pages, what it reports, and rounding to pages."""
    nbytes = 512 << 20
    page = os.sysconf("SC_PAGESIZE")
    EncryptedBuffer(nbytes, key=key).close()
    before = support.status_field("VmSize")
    with EncryptedBuffer(nbytes, key=key) as buffer:
        taken = support.status_field("VmSize") - before
        reported = buffer.stats()["overhead_bytes"]
    assert taken <= nbytes + reported + 16 * page + (4 << 20), (taken - nbytes, reported)
