# SPDX-License-Identifier: Apache-2.0
"""AES-CMAC (SP 800-38B) and SP 800-108 counter-mode key derivation over it, on every tier."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import support
from support import OK, ffi, lib

from pyccmem import errors, hazmat

ALGORITHMS = ("AES-CMAC",)

#: How many cases a file of tests/vectors holds; of those that are not named, none.
KNOWN_COUNTS = {"aes-cmac.jsonl.gz": 222}


def run_case(tier: int, case: dict) -> str | None:
    """The reason when a case is wrong, else None."""
    key, message, tag = (bytes.fromhex(case[name]) for name in ("key", "msg", "tag"))
    out = ffi.new("uint8_t[16]")
    status = lib.ccmem_cmac(tier, key, len(key), message, len(message), out)
    good_key = len(key) in (16, 24, 32)
    if (status == OK) != good_key:
        return f"{case['id']}: status {status} for a key of {len(key)} bytes"
    matches = status == OK and bytes(ffi.buffer(out)) == tag
    if matches != (case["result"] == "valid"):
        return f"{case['id']}: {case['result']}, but the tag {'is' if matches else 'is not'} ours"
    return None


@pytest.mark.parametrize("path", support.vector_files(), ids=lambda path: path.name)
def test_published_cmac_vectors(tier: int, path: Path) -> None:
    """Valid tags are computed, modified ones are not, other key sizes are refused."""
    cases = list(support.read_vectors(path, ALGORITHMS))
    wrong = [reason for reason in (run_case(tier, case) for case in cases) if reason]
    assert not wrong, f"{len(wrong)} of {len(cases)} cases: {wrong[:5]}"
    assert len(cases) == support.count_lines(path, ALGORITHMS)
    if path.parent == support.VECTOR_DIR:
        assert len(cases) == KNOWN_COUNTS.get(path.name, 0)


def test_vector_files_are_all_there() -> None:
    names = {path.name for path in support.VECTOR_DIR.glob("aes-cmac*.jsonl.gz")}
    assert names == set(KNOWN_COUNTS)


@pytest.mark.parametrize("key_size", [0, 1, 8, 15, 17, 23, 31, 33, 64])
def test_cmac_refuses_wrong_key_sizes(tier: int, key_size: int) -> None:
    with pytest.raises(errors.PyccmemError, match=r"16|24|32"):
        hazmat.aes_cmac(bytes(key_size), b"message", tier=support.tier_name(tier))


@pytest.mark.parametrize("key_size", [16, 24, 32])
def test_cmac_agrees_with_cryptography(tier: int, key_size: int) -> None:
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    seed = random.Random(38 + key_size)
    for n in [*range(0, 70), *(seed.randint(70, 5000) for _ in range(40))]:
        key, message = seed.randbytes(key_size), seed.randbytes(n)
        tag = hazmat.aes_cmac(key, message, tier=support.tier_name(tier))
        assert tag == oracle.aes_cmac(key, message), n


@pytest.mark.parametrize("key_size", [16, 32])
def test_kdf_agrees_with_cryptography(tier: int, key_size: int) -> None:
    """Labels and contexts of 0 to 64 bytes, outputs around block boundaries and long ones."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    seed = random.Random(108 + key_size)
    lengths = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 8160]
    for n in lengths + [seed.randint(1, 300) for _ in range(60)]:
        key = seed.randbytes(key_size)
        label, context = seed.randbytes(seed.randint(0, 64)), seed.randbytes(seed.randint(0, 64))
        got = hazmat.kdf_counter_cmac(key, label, context, n, tier=support.tier_name(tier))
        assert got == oracle.kdf_counter_cmac(key, label, context, n), (n, label, context)


@pytest.mark.parametrize("key_size", [16, 32])
def test_kdf_is_cmac_over_the_counter_input(tier: int, key_size: int) -> None:
    """The definition of SP 800-108r1, 4.1, written out; needs no other library."""
    name = support.tier_name(tier)
    key, label, context, n = bytes(range(key_size)), b"label", b"\x00context", 70
    blocks = b"".join(
        hazmat.aes_cmac(
            key,
            i.to_bytes(4, "big") + label + b"\x00" + context + (8 * n).to_bytes(4, "big"),
            tier=name,
        )
        for i in range(1, 6)
    )
    assert hazmat.kdf_counter_cmac(key, label, context, n, tier=name) == blocks[:n]


@pytest.mark.parametrize(
    ("key_size", "label_size", "context_size", "nbytes"),
    [
        (0, 1, 1, 16),
        (24, 1, 1, 16),
        (33, 1, 1, 16),
        (32, 1, 1, 0),
        (32, 1, 1, -1),
        (32, 1, 1, 2**32),
        (32, 1, 1, 2**70),
        (32, 65536, 1, 16),
        (32, 1, 65536, 16),
    ],
)
def test_kdf_refuses(key_size: int, label_size: int, context_size: int, nbytes: int) -> None:
    with pytest.raises(errors.PyccmemError):
        hazmat.kdf_counter_cmac(bytes(key_size), bytes(label_size), bytes(context_size), nbytes)


def test_equal_compares_every_byte() -> None:
    for n in (1, 15, 16, 17, 64, 100):
        a = bytes(range(n))
        assert lib.ccmem_equal(a, a, n) == 1
        for position in range(n):
            for flip in (1, 0x80):
                b = bytearray(a)
                b[position] ^= flip
                assert lib.ccmem_equal(a, bytes(b), n) == 0
    assert lib.ccmem_equal(b"a", b"b", 0) == 1


def test_wipe_zeros_exactly_the_range() -> None:
    for start in range(0, 9):
        for n in (0, 1, 7, 8, 63, 64, 65):
            memory = ffi.new("uint8_t[96]", b"\xee" * 96)
            lib.ccmem_wipe(memory + start, n)
            want = b"\xee" * start + bytes(n) + b"\xee" * (96 - start - n)
            assert bytes(ffi.buffer(memory)) == want
