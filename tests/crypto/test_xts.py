# SPDX-License-Identifier: Apache-2.0
"""AES-XTS of single data units: published vectors on every tier, then an independent oracle."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import support
from support import OK, Arena, ffi, lib

from pyccmem import errors, hazmat

ALGORITHMS = ("AES-128-XTS", "AES-256-XTS")
MISALIGNMENTS = (0, 1, 7, 13)
REFUSED = (lib.CCMEM_ERR_ARGUMENT, lib.CCMEM_ERR_EQUAL_HALVES)

#: How many cases a file of tests/vectors holds, so that a lost one is noticed; of those that
#: are not named, none.
KNOWN_COUNTS = {"aes-xts.jsonl.gz": 2202, "aes-xts-generated.jsonl.gz": 60}


def data_units(case: dict) -> list[tuple[bytes, bytes, bytes]]:
    """(tweak, plaintext, ciphertext) of each data unit of a case."""
    tweak, pt, ct = (bytes.fromhex(case[name]) for name in ("tweak", "pt", "ct"))
    unit = int(case.get("dataUnitLen", 8 * len(pt))) // 8
    if len(pt) != len(ct) or unit in (0, len(pt)):
        return [(tweak, pt, ct)]
    first = int.from_bytes(tweak, "little")
    return [
        (((first + i) % 2**128).to_bytes(16, "little"), pt[at : at + unit], ct[at : at + unit])
        for i, at in enumerate(range(0, len(pt), unit))
    ]


def crypt(
    tier: int, encrypt: bool, key: bytes, tweak: bytes, text: bytes, place: str, misalign: int
) -> tuple[int, bytes]:
    """The status and the output, with everything around source and destination checked."""
    n = len(text)
    source_at, out_at = misalign, (13 - misalign) % 16
    source = SOURCE.place(text, source_at)
    if place == "in place":
        out, out_at, arena = source, source_at, SOURCE
    else:
        out, arena = OUT.place(bytes(n), out_at), OUT
    key_at = KEY.place(key, misalign)
    tweak_at = TWEAK.place(tweak, misalign)
    status = lib.ccmem_xts(tier, int(encrypt), key_at, len(key), tweak_at, source, out, n)
    assert arena.intact(out_at, n), "bytes outside the destination changed"
    if place != "in place":
        assert bytes(ffi.buffer(source, n)) == text, "the source changed"
    return status, bytes(ffi.buffer(out, n))


SOURCE, OUT = Arena(65536 + 64), Arena(65536 + 64)
KEY, TWEAK = Arena(128), Arena(64)


def run_case(tier: int, case: dict) -> str | None:
    """Runs one case in every way; the reason when it is wrong, else None."""
    key = bytes.fromhex(case["key"])
    flags = case.get("flags", ())
    for place in ("in place", "out of place"):
        for misalign in MISALIGNMENTS:
            for encrypt in (True, False):
                for tweak, pt, ct in data_units(case):
                    text, want = (pt, ct) if encrypt else (ct, pt)
                    how = f"{case['id']} encrypt={encrypt} {place} at {misalign}"
                    if len(tweak) != 16:
                        return f"{how}: the tweak has {len(tweak)} bytes"
                    status, got = crypt(tier, encrypt, key, tweak, text, place, misalign)
                    if case["result"] == "invalid":
                        if status == OK and got == want:
                            return f"{how}: an invalid case was accepted"
                    elif status == OK:
                        if got != want:
                            return f"{how}: wrong bytes"
                    elif not ("EqualKeyHalves" in flags and status == lib.CCMEM_ERR_EQUAL_HALVES):
                        return f"{how}: status {status}"
    return None


@pytest.mark.parametrize("path", support.vector_files(), ids=lambda path: path.name)
def test_published_vectors(tier: int, path: Path) -> None:
    """Every case, both directions, in and out of place, at four misalignments."""
    ran, wrong = 0, []
    for case in support.read_vectors(path, ALGORITHMS):
        ran += 1
        reason = run_case(tier, case)
        if reason:
            wrong.append(reason)
    assert not wrong, f"{len(wrong)} of {ran} cases: {wrong[:5]}"
    assert ran == support.count_lines(path, ALGORITHMS)
    if path.parent == support.VECTOR_DIR:
        assert ran == KNOWN_COUNTS.get(path.name, 0)


def test_vector_files_are_all_there() -> None:
    names = {path.name for path in support.VECTOR_DIR.glob("aes-xts*.jsonl.gz")}
    assert names == set(KNOWN_COUNTS)


@pytest.mark.parametrize("key_size", [32, 64])
def test_equal_key_halves_are_refused(tier: int, key_size: int) -> None:
    """IEEE 1619-2018, 5.1: K1 and K2 must differ."""
    half = bytes(range(7, 7 + key_size // 2))
    out = ffi.new("uint8_t[16]")
    for encrypt in (0, 1):
        status = lib.ccmem_xts(tier, encrypt, half + half, key_size, bytes(16), bytes(16), out, 16)
        assert status == lib.CCMEM_ERR_EQUAL_HALVES
    for crypt_one in (hazmat.xts_encrypt, hazmat.xts_decrypt):
        with pytest.raises(errors.PyccmemError, match=r"(?i)hal(f|ves)|equal|differ"):
            crypt_one(half + half, bytes(16), bytes(16), tier=support.tier_name(tier))


@pytest.mark.parametrize("key_size", [32, 64])
def test_keys_that_differ_in_one_bit_are_accepted(tier: int, key_size: int) -> None:
    """The comparison of the halves looks at every byte of them."""
    half = key_size // 2
    for position in range(half):
        key = bytearray(key_size)
        key[position] ^= 0x80 >> (position % 8)
        support.xts(tier, True, bytes(key), bytes(16), bytes(16))


@pytest.mark.parametrize("n", [0, 1, 8, 15])
def test_too_short_a_unit_is_refused(tier: int, n: int) -> None:
    out = ffi.new("uint8_t[16]", b"\x5a" * 16)
    key = bytes(range(32))
    assert lib.ccmem_xts(tier, 1, key, 32, bytes(16), bytes(16), out, n) == lib.CCMEM_ERR_ARGUMENT
    assert bytes(ffi.buffer(out)) == b"\x5a" * 16
    for crypt_one in (hazmat.xts_encrypt, hazmat.xts_decrypt):
        with pytest.raises(errors.PyccmemError, match="16"):
            crypt_one(key, bytes(16), bytes(n), tier=support.tier_name(tier))


@pytest.mark.parametrize("key_size", [0, 1, 16, 24, 31, 33, 48, 63, 65, 128])
def test_wrong_key_sizes_are_refused(tier: int, key_size: int) -> None:
    key = bytes(i & 255 for i in range(key_size))
    out = ffi.new("uint8_t[16]")
    status = lib.ccmem_xts(tier, 1, key, key_size, bytes(16), bytes(16), out, 16)
    assert status == lib.CCMEM_ERR_ARGUMENT
    with pytest.raises(errors.PyccmemError, match=r"32|64"):
        hazmat.xts_encrypt(key, bytes(16), bytes(16), tier=support.tier_name(tier))


@pytest.mark.parametrize("tweak_size", [0, 1, 8, 15, 17, 32])
def test_wrong_tweak_sizes_are_refused(tweak_size: int) -> None:
    for crypt_one in (hazmat.xts_encrypt, hazmat.xts_decrypt):
        with pytest.raises(errors.PyccmemError, match="16"):
            crypt_one(bytes(range(32)), bytes(tweak_size), bytes(16))


def test_wrong_tiers_are_refused() -> None:
    out = ffi.new("uint8_t[16]")
    key = bytes(range(32))
    for number in (t for t in range(lib.CCMEM_TIER_COUNT) if t not in support.TIERS):
        status = lib.ccmem_xts(number, 1, key, 32, bytes(16), bytes(16), out, 16)
        assert status == lib.CCMEM_ERR_TIER
        with pytest.raises(errors.TierError):
            hazmat.xts_encrypt(key, bytes(16), bytes(16), tier=support.tier_name(number))
    for name in ("bogus", "", "PORTABLE ", 7):
        with pytest.raises(errors.PyccmemError):
            hazmat.xts_encrypt(key, bytes(16), bytes(16), tier=name)


@pytest.mark.parametrize("key_size", [32, 64])
def test_every_length_agrees_with_portable(tier: int, key_size: int) -> None:
    """All lengths from 16 to 1100 bytes: every remainder of every vector width, with stealing."""
    random_bytes = random.Random(key_size).randbytes
    for n in range(16, 1101):
        key, tweak, text = random_bytes(key_size), random_bytes(16), random_bytes(n)
        sealed = support.xts(tier, True, key, tweak, text)
        assert sealed == support.xts(lib.CCMEM_TIER_PORTABLE, True, key, tweak, text), n
        assert support.xts(tier, False, key, tweak, sealed) == text, n


def test_tweak_doublings_carry_through_every_position(tier: int) -> None:
    """Units long enough to walk alpha^j past 128 doublings, from tweaks that set each bit.

    The tweak is encrypted before it is doubled, so its value cannot be chosen; 64 KiB units make
    4096 doublings, which carry out of and into every bit.
    """
    seed = random.Random(3)
    key, text = seed.randbytes(64), seed.randbytes(65536)
    for bit in range(0, 128, 9):
        tweak = (1 << bit).to_bytes(16, "little")
        sealed = support.xts(tier, True, key, tweak, text)
        assert sealed == support.xts(lib.CCMEM_TIER_PORTABLE, True, key, tweak, text)
        assert support.xts(tier, False, key, tweak, sealed) == text


@pytest.mark.parametrize("key_size", [32, 64])
def test_hazmat_agrees_with_cryptography(tier: int, key_size: int) -> None:
    """Random keys, tweaks and lengths against OpenSSL's implementation."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    seed = random.Random(1619 + key_size)
    name = support.tier_name(tier)
    for _ in range(400):
        n = seed.choice((seed.randint(16, 300), seed.randint(16, 9000)))
        key, tweak, text = seed.randbytes(key_size), seed.randbytes(16), seed.randbytes(n)
        sealed = oracle.xts_encrypt(key, tweak, text)
        assert hazmat.xts_encrypt(key, tweak, text, tier=name) == sealed
        assert hazmat.xts_decrypt(key, tweak, sealed, tier=name) == text


def test_hazmat_takes_any_bytes_like() -> None:
    key, tweak, text = bytes(range(32)), bytes(range(16)), bytes(range(100))
    want = hazmat.xts_encrypt(key, tweak, text)
    assert isinstance(want, bytes) and len(want) == 100
    for kind in (bytearray, memoryview, lambda data: memoryview(bytearray(data))):
        assert hazmat.xts_encrypt(kind(key), kind(tweak), kind(text)) == want
        assert hazmat.xts_decrypt(kind(key), kind(tweak), kind(want)) == text
    np = pytest.importorskip("numpy")
    array = np.frombuffer(text, np.uint8)
    assert hazmat.xts_encrypt(np.frombuffer(key, np.uint8), tweak, array) == want
    assert hazmat.xts_encrypt(key, tweak, np.arange(4.0)) == hazmat.xts_encrypt(
        key, tweak, np.arange(4.0).tobytes()
    )


@pytest.mark.parametrize("bad", [None, 16, "sixteen letters!", [0] * 16, object()])
def test_hazmat_refuses_what_is_not_bytes(bad: object) -> None:
    good = (bytes(range(32)), bytes(16), bytes(16))
    for position in range(3):
        arguments = [bad if i == position else value for i, value in enumerate(good)]
        for crypt_one in (hazmat.xts_encrypt, hazmat.xts_decrypt):
            with pytest.raises(errors.PyccmemError):
                crypt_one(*arguments)
