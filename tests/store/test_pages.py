# SPDX-License-Identifier: Apache-2.0
"""The page format: tweaks and nonces from page number and version, fresh ciphertext on every write.

The stored bytes are checked against an independent implementation by running a buffer whose
store id is known: a small library, preloaded into a child, answers the system's random generator
with constant bytes, and the child prints its ciphertext.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import support
from support import lib

import pyccmem
from pyccmem import EncryptedBuffer, errors, hazmat

LAST_VERSION = 2**63 - 1

#: What the stand-in for the system's random generator makes of every store id.
STORE_ID = b"\x37" * 16


@pytest.mark.parametrize("key_size", [32, 64])
def test_tiers_agree_on_pages(tier: int, key_size: int, page_size: int) -> None:
    """Whole pages at page numbers and versions around the ends of their ranges."""
    seed = random.Random(page_size + key_size)
    key = seed.randbytes(key_size)
    for page in (0, 1, 2**32 - 1, 2**52):
        for version in (1, 2**32, LAST_VERSION):
            text = seed.randbytes(page_size)
            tweak = support.page_tweak(page, version)
            sealed = support.xts(tier, True, key, tweak, text)
            assert sealed == support.xts(lib.CCMEM_TIER_PORTABLE, True, key, tweak, text)
            assert support.xts(tier, False, key, tweak, sealed) == text


@pytest.mark.parametrize("key_size", [32, 64])
def test_pages_agree_with_cryptography(tier: int, key_size: int, page_size: int) -> None:
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    seed = random.Random(page_size - key_size)
    for _ in range(8):
        key, text = seed.randbytes(key_size), seed.randbytes(page_size)
        tweak = support.page_tweak(seed.getrandbits(52), seed.randint(1, LAST_VERSION))
        assert support.xts(tier, True, key, tweak, text) == oracle.xts_encrypt(key, tweak, text)


# ---- what a buffer stores -------------------------------------------------------------------

WRITER = (
    support.TAGS_OF
    + """
import json, random, sys
import pyccmem
cipher, page_size = sys.argv[1], int(sys.argv[2])
seed = random.Random(page_size)
with pyccmem.Key.from_bytes(bytes(range(32))) as key:
    with pyccmem.EncryptedBuffer(5 * page_size, key=key, cipher=cipher, page_size=page_size) as b:
        model = bytearray(5 * page_size)
        for offset, n in ((0, 4 * page_size), (page_size - 3, 6), (3 * page_size + 17, 1), (0, 16)):
            data = seed.randbytes(n)
            b.write(data, offset)
            model[offset : offset + n] = data
        stored = bytes(b.ciphertext).hex(), tags_of(b).hex()
        print(json.dumps([*stored, b.versions.tolist(), model.hex()]))
"""
)


def test_stored_pages_have_the_documented_format(
    fixed_random: dict[str, str], cipher: str, page_size: int
) -> None:
    """Subkeys by SP 800-108; data units with tweak p + v * 2^64, checked with cryptography, or
    messages with nonce p || v and a tag of 16 bytes, checked with pyaegis.

    Root key known, store id known (16 x 0x37): label = cipher name, context = store id || page
    size (32-bit big-endian), so the ciphertext is a function of the documented format alone.
    """
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    printed = support.check_python(WRITER, cipher, str(page_size), environment=fixed_random)
    *texts, versions, plaintext_hex = json.loads(printed)
    ciphertext, tags, plaintext = (bytes.fromhex(text) for text in (*texts, plaintext_hex))
    assert versions == [3, 2, 1, 2, 0]
    subkey = oracle.subkey(cipher, STORE_ID, page_size)
    for page, version in enumerate(versions):
        cut = slice(page * page_size, (page + 1) * page_size)
        tag = tags[16 * page : 16 * page + 16]
        if version:
            opened = oracle.open_page(cipher, subkey, page, version, ciphertext[cut], tag)
            assert opened == plaintext[cut], page
        else:
            assert tag == bytes(16), "a page never written has no tag"


def test_an_unwritten_buffer_reads_zeros_at_version_0(
    key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    with EncryptedBuffer(3 * page_size + 5, key=key, cipher=cipher, page_size=page_size) as buffer:
        assert buffer.versions.tolist() == [0, 0, 0, 0]
        assert buffer.read() == bytes(3 * page_size + 5)
        assert buffer.read(page_size - 1, 2) == b"\0\0"
        assert buffer.versions.tolist() == [0, 0, 0, 0]


def test_unwritten_pages_read_as_zeros_between_written_ones(
    key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    """The output is full of other bytes before, and runs of both kinds of pages alternate."""
    pages = 9
    model = bytearray(pages * page_size)
    with EncryptedBuffer(len(model), key=key, cipher=cipher, page_size=page_size) as buffer:
        for page in (1, 4, 5, 8):
            data = random.Random(page).randbytes(page_size)
            buffer.write(data, page * page_size)
            model[page * page_size : (page + 1) * page_size] = data
        for first in range(pages):
            out = bytearray(b"\xff" * (len(model) - first * page_size))
            buffer.read_into(out, first * page_size)
            assert out == model[first * page_size :]


def test_a_partial_first_write_leaves_zeros_around_it(
    key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    with EncryptedBuffer(2 * page_size, key=key, cipher=cipher, page_size=page_size) as buffer:
        buffer.write(b"xyz", page_size - 1)
        want = bytes(page_size - 1) + b"xyz" + bytes(page_size - 2)
        assert buffer.read() == want
        assert buffer.versions.tolist() == [1, 1]


def test_equal_plaintext_never_gives_equal_ciphertext(
    key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    """Across pages, versions and stores, whole pages and 16-byte blocks alike."""
    seen: set[bytes] = set()
    text = bytes(2 * page_size)
    blocks = 0
    for _ in range(2):
        with EncryptedBuffer(len(text), key=key, cipher=cipher, page_size=page_size) as buffer:
            for _ in range(3):
                buffer.write(text)
                stored = bytes(buffer.ciphertext)
                parts = [stored[at : at + 16] for at in range(0, len(stored), 16)]
                seen.update(parts)
                blocks += len(parts)
    assert len(seen) == blocks


def test_versions_count_the_writes_of_each_page(
    key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    seed = random.Random(page_size)
    pages = 6
    want = np.zeros(pages, np.uint64)
    with EncryptedBuffer(pages * page_size, key=key, cipher=cipher, page_size=page_size) as buffer:
        for _ in range(60):
            offset = seed.randrange(pages * page_size)
            n = seed.randint(0, min(3 * page_size, pages * page_size - offset))
            before = bytes(buffer.ciphertext)
            buffer.write(seed.randbytes(n), offset)
            after = bytes(buffer.ciphertext)
            touched = set()
            if n:
                touched = set(range(offset // page_size, (offset + n - 1) // page_size + 1))
            for page in range(pages):
                cut = slice(page * page_size, (page + 1) * page_size)
                assert (before[cut] != after[cut]) == (page in touched), page
                want[page] += page in touched
            assert buffer.versions.tolist() == want.tolist()


def test_ciphertext_shows_nothing_of_the_plaintext(key: pyccmem.Key, cipher: str) -> None:
    """Neither the text nor, whatever the size of the cipher's blocks, any repetition of it."""
    text = b"attack at dawn! " * 1024
    with EncryptedBuffer(len(text), key=key, cipher=cipher) as buffer:
        buffer.write(text)
        stored = bytes(buffer.ciphertext)
        assert b"attack" not in stored and b"dawn" not in stored
        counts = np.bincount(np.frombuffer(stored, np.uint8), minlength=256)
        expected = len(stored) / 256
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert 140 < chi_squared < 430  # 255 degrees of freedom: outside by chance below 1e-9
        assert buffer.read() == text


def test_ciphertext_is_bound_to_page_and_version() -> None:
    """Equal subkeys, another page number or version: the same bytes open to something else under
    XTS, and not at all under AEGIS."""
    text = bytes(range(256)) * 16
    others = ((4, 9), (6, 9), (5, 8), (5, 10), (9, 5))
    subkeys = hazmat.kdf_counter_cmac(support.KEY_BYTES, b"aes-128-xts", bytes(20), 32)
    sealed = hazmat.xts_encrypt(subkeys, support.page_tweak(5, 9), text)
    assert hazmat.xts_decrypt(subkeys, support.page_tweak(5, 9), sealed) == text
    for place in others:
        assert hazmat.xts_decrypt(subkeys, support.page_tweak(*place), sealed) != text
    subkey = hazmat.kdf_counter_cmac(support.KEY_BYTES, b"aegis-128x2", bytes(20), 16)
    sealed, tag = hazmat.aegis128x2_encrypt(subkey, support.page_tweak(5, 9), text)
    assert hazmat.aegis128x2_decrypt(subkey, support.page_tweak(5, 9), sealed, tag) == text
    for place in others:
        with pytest.raises(errors.IntegrityError):
            hazmat.aegis128x2_decrypt(subkey, support.page_tweak(*place), sealed, tag)


# ---- the kernels for many pages, which only a buffer reaches -------------------------------------

#: Reads to and writes from memory at every misalignment that a kernel may treat in its own way,
#: with and without the non-temporal stores of large calls. Prints the final ciphertext.
BULK = (
    support.TAGS_OF
    + """
import random, sys
import numpy as np
import pyccmem
cipher, page_size = sys.argv[1], int(sys.argv[2])
seed = random.Random(page_size)
space = np.zeros((6 << 20) + 4096, np.uint8)
aligned = -space.ctypes.data % 4096
def at(misalign, n):
    part = space[aligned + misalign : aligned + misalign + n]
    assert part.ctypes.data % 64 == misalign % 64
    return part
def fenced_read(b, model, misalign, offset, n):
    around = at(misalign, n + 128)
    around[:] = 0xEE
    b.read_into(around[64 : 64 + n], offset)
    assert around[64 : 64 + n].tobytes() == model[offset : offset + n], (misalign, offset, n)
    assert (around[:64] == 0xEE).all() and (around[64 + n :] == 0xEE).all(), (misalign, offset, n)
key = pyccmem.Key.from_bytes(bytes(range(32)))
many = (5 << 20) // page_size + 3
for threads, pages, steps in ((1, 9, range(0, 65)), (2, many, (0, 1, 16, 48))):
    pyccmem.set_num_threads(threads)
    n = pages * page_size
    b = pyccmem.EncryptedBuffer(n, key=key, cipher=cipher, page_size=page_size)
    model = bytearray(n)
    for misalign in steps:
        if not (misalign < 3 or misalign % 8 == 0 or misalign in (15, 17, 33, 47, 63)):
            continue
        first, count = seed.randrange(2), seed.randint(1, pages - 1)
        if misalign % 16 == 0 or pages > 100:
            first, count = 0, pages
        offset, size = first * page_size, count * page_size
        data = at(misalign, size)
        data[:] = np.frombuffer(seed.randbytes(page_size + 13) * count, np.uint8)[:size]
        b.write(data, offset)
        model[offset : offset + size] = data.tobytes()
        for o, m in ((0, n), (page_size, n - page_size), (page_size, page_size),
                     (0, 2 * page_size), (7, n - 20), (page_size - 16, n - page_size)):
            fenced_read(b, model, misalign, o, m)
    sys.stdout.buffer.write(bytes(b.ciphertext[: 9 * page_size]))
    sys.stdout.buffer.write(tags_of(b)[: 9 * 16])
    sys.stdout.buffer.write(b.versions[:9].tobytes() + model[: 9 * page_size])
"""
)


@pytest.mark.parametrize("name", support.TIER_NAMES)
@pytest.mark.parametrize("page_size", [4096, pytest.param(8192, marks=pytest.mark.full), 65536])
def test_bulk_reads_and_writes_at_every_misalignment(
    fixed_random: dict[str, str], cipher: str, page_size: int, name: str
) -> None:
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    done = subprocess.run(
        [sys.executable, "-c", BULK, cipher, str(page_size)],
        env=fixed_random | {"PYCCMEM_TIER": name},
        cwd="/",
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    subkey = oracle.subkey(cipher, STORE_ID, page_size)
    printed = memoryview(done.stdout)
    assert len(printed) == 2 * 9 * (page_size + 16 + 8 + page_size)
    while printed:
        stored, printed = printed[: 9 * page_size], printed[9 * page_size :]
        tags, printed = printed[: 9 * 16], printed[9 * 16 :]
        versions, printed = np.frombuffer(printed, "<u8", 9), printed[9 * 8 :]
        model, printed = printed[: 9 * page_size], printed[9 * page_size :]
        assert versions.min() > 0
        for page, version in enumerate(versions.tolist()):
            cut = slice(page * page_size, (page + 1) * page_size)
            sealed, tag = oracle.seal_page(cipher, subkey, page, version, bytes(model[cut]))
            assert sealed == stored[cut] and tag == tags[16 * page : 16 * page + 16], page
