# SPDX-License-Identifier: Apache-2.0
"""GCM: published vectors on every tier, what must be refused, and pages that are bound to their
whole place."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import support
from guarded import Guarded
from support import OK, Arena, ffi, lib

import pyccmem
from pyccmem import errors, hazmat

REFUSED, PORTABLE = lib.CCMEM_ERR_INTEGRITY, lib.CCMEM_TIER_PORTABLE
#: By the beginning of the names that vectors have for it: encryption, decryption, and the native
#: functions of both.
FAMILIES: dict[str, tuple[Any, Any, Any, Any]] = {
    "AES": (
        hazmat.aes_gcm_encrypt,
        hazmat.aes_gcm_decrypt,
        lib.ccmem_aes_gcm_encrypt,
        lib.ccmem_aes_gcm_decrypt,
    ),
    "SM4": (
        hazmat.sm4_gcm_encrypt,
        hazmat.sm4_gcm_decrypt,
        lib.ccmem_sm4_gcm_encrypt,
        lib.ccmem_sm4_gcm_decrypt,
    ),
}
KEY_SIZES = {"AES": (16, 24, 32), "SM4": (16,)}
ALGORITHMS = ("AES-128-GCM", "AES-192-GCM", "AES-256-GCM", "SM4-GCM")
#: Of pages.
SUITES = [name for name in support.CIPHERS if name.endswith("-gcm")]

all_families = pytest.mark.parametrize("family", FAMILIES)

#: (cases, invalid ones among them) of each file of tests/vectors.
KNOWN_COUNTS = {
    "aes-gcm.jsonl.gz": (3211, 841),
    "aes-gcm-generated.jsonl.gz": (62, 0),
    "sm4.jsonl.gz": (70, 20),
    "sm4-generated.jsonl.gz": (31, 0),
}

SOURCE, OUT, KEY = Arena(65536 + 128), Arena(65536 + 128), Arena(64)


def crypt(
    function: Any, tier: int, m: dict[str, bytes], text: bytes, tag: bytes, at: int, in_place: bool
) -> tuple[int, bytes, bytes]:
    """The status, the output and the tag; that nothing around the output changed is checked."""
    n, out_at = len(text), at if in_place else (13 - at) % 16
    source = SOURCE.place(text, at)
    out = source if in_place else OUT.place(b"\x5a" * n, out_at)
    held = ffi.new("uint8_t[]", tag)
    status = function(
        tier,
        KEY.place(m["key"], at),
        len(m["key"]),
        m["iv"],
        len(m["iv"]),
        m["aad"],
        len(m["aad"]),
        source,
        out,
        n,
        held,
        len(tag),
    )
    assert (SOURCE if in_place else OUT).intact(out_at, n), "bytes outside the output changed"
    return status, bytes(ffi.buffer(out, n)), bytes(ffi.buffer(held, len(tag)))


def check_case(tier: int, case: dict[str, Any]) -> str | None:
    """The reason when a case came out otherwise in some way, else None."""
    m = {name: bytes.fromhex(case.get(name, "")) for name in ("key", "iv", "aad", "pt", "ct")}
    tag, name = bytes.fromhex(case["tag"]), support.tier_name(tier)
    encrypt, decrypt, seal, open_ = FAMILIES[case["alg"].split("-")[0]]
    for at, in_place in ((0, False), (1, True), (7, False), (13, True)):
        how = f"{case['id']} at {at}{' in place' if in_place else ''}"
        got = crypt(open_, tier, m, m["ct"], tag, at, in_place)
        if case["result"] == "invalid":
            if got[0] not in (REFUSED, lib.CCMEM_ERR_ARGUMENT):
                return f"{how}: status {got[0]}"
            if got[0] == REFUSED and got[1] != bytes(len(m["ct"])):
                return f"{how}: unverified bytes were released"
        elif "pt" in case and got[:2] != (OK, m["pt"]):
            return f"{how}: wrong plaintext"
        elif crypt(seal, tier, m, got[1], bytes(len(tag)), at, in_place) != (OK, m["ct"], tag):
            return f"{how}: wrong ciphertext or tag"
    if case["result"] == "invalid":
        try:
            decrypt(m["key"], m["iv"], m["ct"], tag, m["aad"], tier=name)
        except (errors.IntegrityError, errors.ArgumentError):
            return None
        return f"{case['id']}: accepted by hazmat"
    plain = decrypt(m["key"], m["iv"], m["ct"], tag, m["aad"], tier=name)
    made = encrypt(m["key"], m["iv"], plain, m["aad"], tag_len=len(tag), tier=name)
    return None if made == (m["ct"], tag) else f"{case['id']}: hazmat disagrees"


@pytest.mark.parametrize("path", support.vector_files(), ids=lambda path: path.name)
def test_published_vectors(tier: int, path: Path) -> None:
    """Every case, both directions, in and out of place, at four misalignments, and by hazmat; the
    invalid ones are refused and leave zeros."""
    cases = list(support.read_vectors(path, ALGORITHMS))
    wrong = [reason for case in cases if (reason := check_case(tier, case))]
    assert not wrong, f"{len(wrong)} of {len(cases)} cases: {wrong[:5]}"
    assert len(cases) == support.count_lines(path, ALGORITHMS)
    if path.parent == support.VECTOR_DIR:
        invalid = sum(case["result"] == "invalid" for case in cases)
        assert (len(cases), invalid) == KNOWN_COUNTS.get(path.name, (0, 0))


def test_vector_files_are_all_there() -> None:
    files = support.VECTOR_DIR.glob("*.jsonl.gz")
    assert {f.name for f in files if support.count_lines(f, ALGORITHMS)} == set(KNOWN_COUNTS)


@all_families
def test_every_length_agrees_with_portable(tier: int, family: str) -> None:
    """All lengths from 0 to 300 and some more, with nonces and associated data of other lengths."""
    seed = random.Random(1)
    name = support.tier_name(tier)
    encrypt, decrypt, *_ = FAMILIES[family]
    for n in (*range(301), 1023, 4096, 4111, 8192 + 15):
        key, iv = (
            seed.randbytes(seed.choice(KEY_SIZES[family])),
            seed.randbytes(seed.choice((12, 1, n + 1))),
        )
        text, ad = seed.randbytes(n), seed.randbytes(seed.randrange(200))
        want = encrypt(key, iv, text, ad, tier="portable")
        assert encrypt(key, iv, text, ad, tier=name) == want, n
        assert decrypt(key, iv, *want, ad, tier=name) == text, n


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@all_families
def test_every_flipped_bit_is_refused(tier: int, family: str) -> None:
    """Of the tag, the ciphertext, the associated data, the nonce and the key, one at a time; and
    bytes moved from one part to another."""
    seed, name = random.Random(2), support.tier_name(tier)
    encrypt, decrypt, *_ = FAMILIES[family]
    m = [seed.randbytes(n) for n in (KEY_SIZES[family][-1], 12, 75, 21)]
    ciphertext, tag = encrypt(*m, tier=name)
    parts = [m[0], m[1], ciphertext, tag, m[3]]
    assert decrypt(*parts, tier=name) == m[2], "the control"
    changed = [
        [*parts[:i], flipped(part, bit), *parts[i + 1 :]]
        for i, part in enumerate(parts)
        for bit in range(8 * len(part))
    ]
    changed += [
        [*parts[:2], ciphertext[:-1], tag, m[3]],
        [*parts[:2], ciphertext + b"\0", tag, m[3]],
        [*parts[:2], ciphertext, tag, m[3] + b"\0"],
        [*parts[:2], m[3] + ciphertext, tag],
        [m[0], m[1] + b"\0", ciphertext, tag, m[3]],
    ]
    for arguments in changed:
        with pytest.raises(errors.IntegrityError):
            decrypt(*arguments, tier=name)


@all_families
def test_nothing_outside_is_touched(tier: int, family: str) -> None:
    """Every argument lies flush against memory that faults, before or behind it (the control is
    test_guard_pages.test_the_guard_pages_fault)."""
    seed, key_size = random.Random(8), KEY_SIZES[family][-1]
    encrypt, _, seal, open_ = FAMILIES[family]
    areas = [Guarded(8192) for _ in range(6)]
    try:
        for n in (0, 1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257, 1000, 8192):
            key, iv, ad, text = (seed.randbytes(k) for k in (key_size, 12, (n + 1) % 200, n))
            ciphertext, tag = encrypt(key, iv, text, ad, tier="portable")
            for side in (Guarded.at_start, Guarded.at_end):
                sizes = (key_size, 12, len(ad), n, n, 16)
                at = [side(a, k) for a, k in zip(areas, sizes, strict=True)]
                for pointer, data in zip(at, (key, iv, ad, text), strict=False):
                    ffi.memmove(pointer, data, len(data))
                fixed = (tier, at[0], key_size, at[1], 12, at[2], len(ad))
                assert seal(*fixed, at[3], at[4], n, at[5], 16) == OK
                assert bytes(ffi.buffer(at[4], n)) == ciphertext
                assert bytes(ffi.buffer(at[5], 16)) == tag
                ffi.memmove(at[3], ciphertext, n)
                assert open_(*fixed, at[3], at[4], n, at[5], 16) == OK
                assert bytes(ffi.buffer(at[4], n)) == text
                at[5][15] ^= 1
                assert open_(*fixed, at[3], at[3], n, at[5], 16) == REFUSED
                assert bytes(ffi.buffer(at[3], n)) == bytes(n)
    finally:
        for area in areas:
            area.close()


@all_families
def test_wrong_arguments_are_refused(family: str) -> None:
    encrypt, _, seal, open_ = FAMILIES[family]
    good = {
        "tier": PORTABLE,
        "key": bytes(32),
        "key_len": KEY_SIZES[family][-1],
        "iv": bytes(12),
        "iv_len": 12,
        "ad": b"",
        "ad_len": 0,
        "in_": bytes(64),
        "out": ffi.new("uint8_t[64]"),
        "n": 64,
        "tag": ffi.new("uint8_t[16]"),
        "tag_len": 16,
    }
    wrong: list[dict[str, Any]] = [
        *({"tag_len": n} for n in (0, 1, 5, 11, 17, 32)),
        *({"key_len": n} for n in (0, 15, 33, 64)),
        *({name: ffi.NULL} for name in ("key", "iv", "in_", "out", "tag")),
        {"iv_len": 0},
        {"iv_len": 2**61},
        {"ad": ffi.NULL, "ad_len": 1},
        {"ad_len": 2**61},
        {"n": 2**36 - 31},
    ]
    for function in (seal, open_):
        for changes in wrong:
            assert function(*{**good, **changes}.values()) == lib.CCMEM_ERR_ARGUMENT, changes
        assert function(*{**good, "tier": lib.CCMEM_TIER_COUNT}.values()) == lib.CCMEM_ERR_TIER
    assert seal(*good.values()) == OK, "the control"
    for bad in (5, "12", 11, 2**200):
        with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError), match="tag_len"):
            encrypt(bytes(16), bytes(12), b"", tag_len=bad)
    with pytest.raises(errors.ArgumentError, match="iv is empty"):
        encrypt(bytes(16), b"", b"")
    with pytest.raises(errors.InvalidKeyError, match="key has 17 bytes"):
        encrypt(bytes(17), bytes(12), b"")


# ---- pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_a_place_is_authenticated_as_a_whole(key: pyccmem.Key, suite: str) -> None:
    """A nonce has room for 48 bits of a version; a page with a bit above them changed is refused,
    and good again when it is back."""
    with pyccmem.EncryptedBuffer(4096, key=key, cipher=suite) as buffer:
        buffer.write(b"a page")
        versions, _ = support.records(buffer)
        for bit in range(48, 63):
            versions[0] ^= 1 << bit
            with pytest.raises(errors.IntegrityError):
                buffer.read(0, 6)
            versions[0] ^= 1 << bit
        assert buffer.read(0, 6) == b"a page"


@pytest.mark.parametrize("suite", SUITES)
def test_versions_end_before_a_nonce_comes_again(key: pyccmem.Key, suite: str) -> None:
    """Whatever limit is asked for, a page has fewer than 2^48 versions under one key."""
    for limit in (0, 2**62):
        with pyccmem.EncryptedBuffer(4096, key=key, cipher=suite, _version_limit=limit) as buffer:
            assert buffer.key_use().version_limit == 2**48 - 1
    with pyccmem.EncryptedBuffer(4096, key=key, cipher=suite, _version_limit=7) as buffer:
        assert buffer.key_use().version_limit == 7, "the control"
