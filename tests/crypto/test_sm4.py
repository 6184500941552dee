# SPDX-License-Identifier: Apache-2.0
"""SM4, SM4-XTS by both standards and SM3: published vectors on every tier, then pyca/cryptography,
whose SM4 the oracle makes XTS of."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from support import OK, Arena, ffi, lib

from pyccmem import errors, hazmat

BLOCK_MODES = ("SM4-ECB", "SM4-CBC", "SM4-CTR")
XTS_MODES = {"SM4-XTS-GB": "gb", "SM4-XTS-IEEE": "ieee"}
#: How many cases each file holds: of blocks, of XTS.
KNOWN_COUNTS = {"sm4.jsonl.gz": (12, 3), "sm4-generated.jsonl.gz": (0, 60)}
FILES = sorted(support.VECTOR_DIR.glob("sm4*.jsonl.gz"))
MISALIGNMENTS = (0, 1, 7, 13)
SOURCE, OUT = Arena(65536 + 64), Arena(65536 + 64)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=False))


def blocks_of(text: bytes) -> list[bytes]:
    return [text[i : i + 16] for i in range(0, len(text), 16)]


def sealed_by_mode(case: dict, tier: str) -> bytes:
    """The ciphertext of a case of blocks, its mode made of single ones."""
    key, text = bytes.fromhex(case["key"]), bytes.fromhex(case["pt"])
    if case["alg"] == "SM4-ECB":
        return hazmat.sm4_encrypt(key, text, tier=tier)
    iv = bytes.fromhex(case["iv"])
    if case["alg"] == "SM4-CTR":
        first = int.from_bytes(iv, "big")
        counters = b"".join(
            ((first + i) % 2**128).to_bytes(16, "big") for i in range(-(-len(text) // 16))
        )
        return xor(text, hazmat.sm4_encrypt(key, counters, tier=tier))
    out = [iv]
    for block in blocks_of(text):
        out.append(hazmat.sm4_encrypt(key, xor(block, out[-1]), tier=tier))
    return b"".join(out[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_published_blocks(tier: int, path: Path) -> None:
    ran = 0
    for case in support.read_vectors(path, BLOCK_MODES):
        ran += 1
        name = support.tier_name(tier)
        want = bytes.fromhex(case["ct"])
        assert case["result"] == "valid" and sealed_by_mode(case, name) == want, case["id"]
        if case["alg"] == "SM4-ECB":
            key = bytes.fromhex(case["key"])
            assert hazmat.sm4_decrypt(key, want, tier=name).hex() == case["pt"], case["id"]
    assert ran == KNOWN_COUNTS[path.name][0]


def crypt(
    tier: int, encrypt: bool, standard: str, case: dict, text: bytes, misalign: int, in_place: bool
) -> bytes:
    """One data unit with everything around source and destination checked."""
    n, out_at = len(text), (13 - misalign) % 16
    source = SOURCE.place(text, misalign)
    out, arena = (source, SOURCE) if in_place else (OUT.place(bytes(n), out_at), OUT)
    key, tweak = (bytes.fromhex(case[name]) for name in ("key", "tweak"))
    ieee = int(standard == "ieee")
    assert lib.ccmem_sm4_xts(tier, int(encrypt), ieee, key, tweak, source, out, n) == OK
    assert arena.intact(misalign if in_place else out_at, n), "bytes outside were changed"
    return bytes(ffi.buffer(out, n))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_published_data_units(tier: int, path: Path) -> None:
    """Every case, both directions, in and out of place, at four misalignments."""
    ran, wrong = 0, []
    for case in support.read_vectors(path, tuple(XTS_MODES)):
        ran += 1
        assert case["result"] == "valid" and case.get("dataUnitLen") == case.get("ptBits")
        pt, ct = bytes.fromhex(case["pt"]), bytes.fromhex(case["ct"])
        standard = XTS_MODES[case["alg"]]
        for misalign in MISALIGNMENTS:
            for in_place in (True, False):
                for encrypt, text, want in ((True, pt, ct), (False, ct, pt)):
                    got = crypt(tier, encrypt, standard, case, text, misalign, in_place)
                    if got != want:
                        wrong.append(f"{case['id']} encrypt={encrypt} at {misalign}")
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"
    assert ran == KNOWN_COUNTS[path.name][1]


def test_the_two_standards_differ_from_the_second_block_on(tier: int) -> None:
    """The control of the tests above: one doubling in the place of the other is noticed."""
    name, seed = support.tier_name(tier), random.Random(16)
    key, tweak, text = seed.randbytes(32), seed.randbytes(16), seed.randbytes(4096)
    gb = hazmat.sm4_xts_encrypt(key, tweak, text, tier=name)
    ieee = hazmat.sm4_xts_encrypt(key, tweak, text, standard="ieee", tier=name)
    same = [a == b for a, b in zip(blocks_of(gb), blocks_of(ieee), strict=True)]
    assert same[0] and not any(same[1:])


@pytest.mark.parametrize("standard", ["gb", "ieee"])
def test_data_units_agree_with_the_oracle(tier: int, standard: str) -> None:
    """Lengths around groups of blocks; beyond 16 blocks, where an implementation that makes tweaks
    in groups goes wrong first; with stolen bytes."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    name, seed = support.tier_name(tier), random.Random(17964)
    lengths = [16, 17, 31, 32, 63, 64, 65, 128, 255, 256, 257, 271, 272, 273, 320, 511, 512, 513]
    for n in [*lengths, 529, 1023, 1024, 1025, 2047, 4096, 4100, 65536]:
        key, tweak, text = seed.randbytes(32), seed.randbytes(16), seed.randbytes(n)
        sealed = hazmat.sm4_xts_encrypt(key, tweak, text, standard=standard, tier=name)
        assert sealed == oracle.sm4_xts(key, tweak, text, standard=standard), n
        assert hazmat.sm4_xts_decrypt(key, tweak, sealed, standard=standard, tier=name) == text, n
    assert oracle.sm4_xts(key, tweak, sealed[:40], standard=standard, decrypt=True) == (
        hazmat.sm4_xts_decrypt(key, tweak, sealed[:40], standard=standard, tier=name)
    )


def test_blocks_agree_with_cryptography(tier: int) -> None:
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    name, seed = support.tier_name(tier), random.Random(32907)
    for count in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200]:
        key, text = seed.randbytes(16), seed.randbytes(16 * count)
        sealed = hazmat.sm4_encrypt(key, text, tier=name)
        assert sealed == oracle.sm4(key, text), count
        assert hazmat.sm4_decrypt(key, sealed, tier=name) == text, count


def test_sm3_and_what_is_made_of_it() -> None:
    """GB/T 32905-2016, A.1; then every length around a block, and keys of every length."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    abc = "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert hazmat.sm3(b"abc").hex() == abc
    seed = random.Random(32905)
    for n in (*range(140), 1000):
        message = seed.randbytes(n)
        digest = oracle.hashes.Hash(oracle.hashes.SM3())
        digest.update(message)
        assert hazmat.sm3(message) == digest.finalize(), n
        key = seed.randbytes(1 + n % 64)
        assert hazmat.hmac_sm3(key, message) == oracle.hmac_sm3(key, message), n
    for n in (1, 16, 31, 32, 33, 64, 65, 500):
        key, label, context = seed.randbytes(32), seed.randbytes(n % 65), seed.randbytes(n % 33)
        derived = hazmat.kdf_counter_sm3(key, label, context, n)
        assert derived == oracle.kdf_counter_sm3(key, label, context, n), n


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: hazmat.sm4_encrypt(bytes(15), b""), errors.InvalidKeyError),
        (lambda: hazmat.sm4_decrypt(bytes(16), bytes(17)), errors.ArgumentError),
        (lambda: hazmat.sm4_xts_encrypt(bytes(31), bytes(16), bytes(16)), errors.InvalidKeyError),
        (lambda: hazmat.sm4_xts_encrypt(bytes(32), bytes(16), bytes(16)), errors.PyccmemError),
        (lambda: hazmat.sm4_xts_encrypt(KEY, bytes(15), bytes(16)), errors.ArgumentError),
        (lambda: hazmat.sm4_xts_decrypt(KEY, bytes(16), bytes(15)), errors.ArgumentError),
        (
            lambda: hazmat.sm4_xts_decrypt(KEY, bytes(16), bytes(16), standard="nist"),
            errors.ArgumentError,
        ),
        (lambda: hazmat.hmac_sm3(b"", b""), errors.InvalidKeyError),
        (lambda: hazmat.hmac_sm3(bytes(65), b""), errors.InvalidKeyError),
        (lambda: hazmat.kdf_counter_sm3(bytes(16), b"", b"", 1), errors.InvalidKeyError),
        (lambda: hazmat.kdf_counter_sm3(KEY, bytes(65), b"", 1), errors.ArgumentError),
        (lambda: hazmat.kdf_counter_sm3(KEY, b"", b"", 0), errors.ArgumentError),
        (lambda: hazmat.sm4_encrypt(KEY[:16], "text"), errors.BufferTypeError),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], bytes], error: type) -> None:
    with pytest.raises(error):
        call()


KEY = bytes(range(32))
