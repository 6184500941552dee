# SPDX-License-Identifier: Apache-2.0
"""AEGIS with keys of 128 and of 256 bits, of one lane and of two: published vectors on
every tier, then what must be refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from guarded import Guarded
from support import OK, Arena, ffi, lib

from pyccmem import errors, hazmat

#: By name: the number of lanes, and bytes of a key and of a nonce.
VARIANTS = {
    "AEGIS-128L": (1, 16),
    "AEGIS-128X2": (2, 16),
    "AEGIS-256": (1, 32),
    "AEGIS-256X2": (2, 32),
}
ALGORITHMS = tuple(VARIANTS)
REFUSED = lib.CCMEM_ERR_INTEGRITY
PORTABLE = lib.CCMEM_TIER_PORTABLE
PLACES = ("in place", "out of place")
MISALIGNMENTS = (0, 1, 7, 13)

ENCRYPT = {
    "AEGIS-128L": hazmat.aegis128l_encrypt,
    "AEGIS-128X2": hazmat.aegis128x2_encrypt,
    "AEGIS-256": hazmat.aegis256_encrypt,
    "AEGIS-256X2": hazmat.aegis256x2_encrypt,
}
DECRYPT = {
    "AEGIS-128L": hazmat.aegis128l_decrypt,
    "AEGIS-128X2": hazmat.aegis128x2_decrypt,
    "AEGIS-256": hazmat.aegis256_decrypt,
    "AEGIS-256X2": hazmat.aegis256x2_decrypt,
}
SEAL = {16: lib.ccmem_aegis_encrypt, 32: lib.ccmem_aegis256_encrypt}  # by bytes of the key
OPEN = {16: lib.ccmem_aegis_decrypt, 32: lib.ccmem_aegis256_decrypt}

#: (cases, invalid ones among them) of each file of tests/vectors.
KNOWN_COUNTS = {"aegis.jsonl.gz": (662, 160), "aegis-generated.jsonl.gz": (124, 0)}

both_variants = pytest.mark.parametrize("variant", ALGORITHMS)
both_tags = pytest.mark.parametrize("tag_len", [16, 32])

SOURCE, OUT = Arena(65536 + 128), Arena(65536 + 128)
KEY, NONCE, AD, TAG = Arena(64), Arena(64), Arena(8192), Arena(64)


class Message:
    """One message with all that belongs to it."""

    def __init__(self, variant: str, key: bytes, nonce: bytes, ad: bytes, text: bytes) -> None:
        self.variant, self.lanes = variant, VARIANTS[variant][0]
        self.key, self.nonce, self.ad, self.text = key, nonce, ad, text


def random_message(seed: random.Random, variant: str, n: int, ad_len: int) -> Message:
    size = VARIANTS[variant][1]
    parts = [seed.randbytes(length) for length in (size, size, ad_len, n)]
    return Message(variant, *parts)


def encrypt(
    tier: int, m: Message, tag_len: int, place: str = PLACES[1], misalign: int = 0
) -> tuple[int, bytes, bytes]:
    """The status, the ciphertext and the tag, with everything around them checked."""
    n = len(m.text)
    source, out, out_at, arena = _place(m.text, place, misalign)
    tag = TAG.place(bytes(tag_len), misalign)
    status = SEAL[len(m.key)](
        tier,
        m.lanes,
        KEY.place(m.key, misalign),
        NONCE.place(m.nonce, misalign),
        AD.place(m.ad, misalign),
        len(m.ad),
        source,
        out,
        n,
        tag,
        tag_len,
    )
    _check_surroundings(m, place, source, arena, out_at, misalign)
    assert TAG.intact(misalign, tag_len), "bytes around the tag changed"
    return status, bytes(ffi.buffer(out, n)), bytes(ffi.buffer(tag, tag_len))


def decrypt(
    tier: int, m: Message, tag: bytes, place: str = PLACES[1], misalign: int = 0
) -> tuple[int, bytes]:
    """The status and the output for m.text as ciphertext, with everything around it checked."""
    n = len(m.text)
    source, out, out_at, arena = _place(m.text, place, misalign)
    tag_at = TAG.place(tag, misalign)
    status = OPEN[len(m.key)](
        tier,
        m.lanes,
        KEY.place(m.key, misalign),
        NONCE.place(m.nonce, misalign),
        AD.place(m.ad, misalign),
        len(m.ad),
        source,
        out,
        n,
        tag_at,
        len(tag),
    )
    _check_surroundings(m, place, source, arena, out_at, misalign)
    assert bytes(ffi.buffer(tag_at, len(tag))) == tag, "the tag changed"
    return status, bytes(ffi.buffer(out, n))


def _place(text: bytes, place: str, misalign: int) -> tuple[object, object, int, Arena]:
    """(source, destination, its misalignment, its arena); the destination holds no zeros yet."""
    source = SOURCE.place(text, misalign)
    if place == "in place":
        return source, source, misalign, SOURCE
    out_at = (13 - misalign) % 16
    return source, OUT.place(b"\x5a" * len(text), out_at), out_at, OUT


def _check_surroundings(
    m: Message, place: str, source: object, arena: Arena, out_at: int, misalign: int
) -> None:
    assert arena.intact(out_at, len(m.text)), "bytes outside the destination changed"
    if place != "in place":
        assert bytes(ffi.buffer(source, len(m.text))) == m.text, "the source changed"
    assert bytes(ffi.buffer(AD.base + AD.FENCE + misalign, len(m.ad))) == m.ad


def sealed(tier: int, m: Message, tag_len: int = 16) -> tuple[bytes, bytes]:
    """encrypt() that must succeed: the ciphertext and the tag."""
    status, ciphertext, tag = encrypt(tier, m, tag_len)
    assert status == OK, f"{support.tier_name(tier)}: status {status}"
    return ciphertext, tag


def with_text(m: Message, text: bytes) -> Message:
    return Message(m.variant, m.key, m.nonce, m.ad, text)


def assert_refused(tier: int, m: Message, tag: bytes, why: object = None) -> None:
    """Refused in and out of place, with an output of zeros alone."""
    for place in PLACES:
        status, got = decrypt(tier, m, tag, place, 3)
        assert status == REFUSED, (why, place)
        assert got == bytes(len(m.text)), (why, place, "unverified bytes were released")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- published vectors ----------------------------------------------------------------------


def check_invalid(tier: int, case: dict, m: Message, ct: bytes, tag: bytes) -> str | None:
    """The reason when something of an invalid case was accepted, else None."""
    for place in PLACES:
        for misalign in MISALIGNMENTS:
            status, got = decrypt(tier, with_text(m, ct), tag, place, misalign)
            if status != REFUSED:
                return f"{case['id']} {place} at {misalign}: status {status}"
            if got != bytes(len(ct)):
                return f"{case['id']} {place} at {misalign}: unverified bytes were released"
    if "pt" in case and encrypt(tier, m, len(tag))[1:] == (ct, tag):
        return f"{case['id']}: made by encryption"
    try:
        DECRYPT[m.variant](m.key, m.nonce, ct, tag, m.ad, tier=support.tier_name(tier))
    except errors.IntegrityError:
        return None
    return f"{case['id']}: accepted by hazmat"


def check_valid(tier: int, case: dict, m: Message, ct: bytes, tag: bytes) -> str | None:
    """The reason when a valid case came out otherwise in some way, else None."""
    for place in PLACES:
        for misalign in MISALIGNMENTS:
            how = f"{case['id']} {place} at {misalign}"
            if encrypt(tier, m, len(tag), place, misalign) != (OK, ct, tag):
                return f"{how}: wrong ciphertext or tag"
            if decrypt(tier, with_text(m, ct), tag, place, misalign) != (OK, m.text):
                return f"{how}: wrong plaintext"
    name = support.tier_name(tier)
    made = ENCRYPT[m.variant](m.key, m.nonce, m.text, m.ad, tag_len=len(tag), tier=name)
    if made != (ct, tag) or DECRYPT[m.variant](m.key, m.nonce, ct, tag, m.ad, tier=name) != m.text:
        return f"{case['id']}: hazmat disagrees"
    return None


@pytest.mark.parametrize("path", support.vector_files(), ids=lambda path: path.name)
def test_published_vectors(tier: int, path: Path) -> None:
    """Every case, both directions, in and out of place, at four misalignments, and by hazmat; the
    invalid ones are refused and leave zeros."""
    ran, invalid, wrong = 0, 0, []
    for case in support.read_vectors(path, ALGORITHMS):
        key, nonce, ad, pt, ct, tag = (
            bytes.fromhex(case.get(name, "")) for name in ("key", "iv", "aad", "pt", "ct", "tag")
        )
        ran += 1
        invalid += case["result"] == "invalid"
        check = check_invalid if case["result"] == "invalid" else check_valid
        reason = check(tier, case, Message(case["alg"], key, nonce, ad, pt), ct, tag)
        if reason:
            wrong.append(reason)
    assert not wrong, f"{len(wrong)} of {ran} cases: {wrong[:5]}"
    assert ran == support.count_lines(path, ALGORITHMS)
    if path.parent == support.VECTOR_DIR:
        assert (ran, invalid) == KNOWN_COUNTS.get(path.name, (0, 0))


def test_vector_files_are_all_there() -> None:
    names = {path.name for path in support.VECTOR_DIR.glob("aegis*.jsonl.gz")}
    assert names == set(KNOWN_COUNTS)


# ---- every tier against portable ------------------------------------------------------------


@both_variants
def test_every_length_agrees_with_portable(tier: int, variant: str) -> None:
    """All lengths from 0 to 300, with associated data of other lengths, both tags, in place."""
    seed = random.Random(variant)
    for n in range(301):
        m = random_message(seed, variant, n, seed.choice((0, n, seed.randrange(400))))
        for tag_len in (16, 32):
            ciphertext, tag = sealed(PORTABLE, m, tag_len)
            assert encrypt(tier, m, tag_len, "in place", n % 16) == (OK, ciphertext, tag), n
            back = decrypt(tier, with_text(m, ciphertext), tag, "in place", (n + 5) % 16)
            assert back == (OK, m.text), n


@both_variants
def test_long_messages_agree_with_portable(tier: int, variant: str) -> None:
    seed = random.Random(f"long {variant}")
    for n in (4095, 4096, 4097, 8192, 16384 + 33, 65536, 65536 + 63):
        m = random_message(seed, variant, n, seed.randrange(8000))
        ciphertext, tag = sealed(PORTABLE, m, 32)
        assert sealed(tier, m, 32) == (ciphertext, tag), n
        assert decrypt(tier, with_text(m, ciphertext), tag) == (OK, m.text), n


def test_the_variants_are_different_ciphers(tier: int) -> None:
    """Neither opens what the other sealed, though they take the same arguments."""
    seed = random.Random(5)
    for n in (0, 5, 64, 1000):
        for variant in ALGORITHMS:
            m = random_message(seed, variant, n, 20)
            ciphertext, tag = sealed(tier, m)
            twin = variant[:-2] if variant.endswith("X2") else variant.rstrip("L") + "X2"
            other = Message(
                "AEGIS-128L" if twin == "AEGIS-128" else twin, m.key, m.nonce, m.ad, ciphertext
            )
            assert decrypt(tier, with_text(m, ciphertext), tag) == (OK, m.text)
            assert_refused(tier, other, tag, n)


@both_variants
def test_the_short_tag_is_no_part_of_the_long_one(tier: int, variant: str) -> None:
    """RFC 10032: the 16-byte tag is the two halves of the 32-byte one xored; with AEGIS-128 (3.9)
    but for S7, with AEGIS-256 (4.9) as they are."""
    m = random_message(random.Random(6), variant, 100, 10)
    ciphertext, short = sealed(tier, m, 16)
    same, long = sealed(tier, m, 32)
    assert same == ciphertext
    m = with_text(m, ciphertext)
    halves = bytes(a ^ b for a, b in zip(long[:16], long[16:], strict=True))
    assert (halves == short) == variant.startswith("AEGIS-256")
    for cut in (long[:16], long[16:], *([halves] if halves != short else [])):
        assert cut != short
        assert_refused(tier, m, cut)
    for stretched in (short + short, short + bytes(16), long[:16] + short):
        assert_refused(tier, m, stretched)


@both_variants
def test_nothing_outside_is_touched(tier: int, variant: str) -> None:
    """Every argument lies flush against memory that faults, before or behind it (the control is
    test_guard_pages.test_the_guard_pages_fault)."""
    seed = random.Random(8)
    lanes, long = VARIANTS[variant]
    areas = [Guarded(8192) for _ in range(6)]
    try:
        for n in (0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 8192):
            m = random_message(seed, variant, n, (n + 1) % 200)
            ciphertext, tag = sealed(PORTABLE, m, 32)
            for side in (Guarded.at_start, Guarded.at_end):
                key, nonce, ad, source, out, tag_at = (
                    side(area, size)
                    for area, size in zip(areas, (long, long, len(m.ad), n, n, 32), strict=True)
                )
                for pointer, data in ((key, m.key), (nonce, m.nonce), (ad, m.ad), (source, m.text)):
                    ffi.memmove(pointer, data, len(data))
                fixed = (tier, lanes, key, nonce, ad, len(m.ad))
                assert SEAL[long](*fixed, source, out, n, tag_at, 32) == OK
                assert bytes(ffi.buffer(out, n)) == ciphertext
                assert bytes(ffi.buffer(tag_at, 32)) == tag
                ffi.memmove(source, ciphertext, n)
                assert OPEN[long](*fixed, source, out, n, tag_at, 32) == OK
                assert bytes(ffi.buffer(out, n)) == m.text
                tag_at[31] ^= 1
                assert OPEN[long](*fixed, source, source, n, tag_at, 32) == REFUSED
                assert bytes(ffi.buffer(source, n)) == bytes(n)
    finally:
        for area in areas:
            area.close()


# ---- what must be refused -------------------------------------------------------------------


@both_tags
@both_variants
def test_every_flipped_bit_is_refused(tier: int, variant: str, tag_len: int) -> None:
    """Of the tag, the ciphertext, the associated data, the nonce and the key, one at a time."""
    m = random_message(random.Random(f"{variant} {tag_len}"), variant, 75, 21)
    ciphertext, tag = sealed(tier, m, tag_len)
    m = with_text(m, ciphertext)
    for bit in range(8 * tag_len):
        assert_refused(tier, m, flipped(tag, bit), ("tag", bit))
    for name in ("text", "ad", "nonce", "key"):
        original = getattr(m, name)
        for bit in range(8 * len(original)):
            setattr(m, name, flipped(original, bit))
            assert_refused(tier, m, tag, (name, bit))
        setattr(m, name, original)
    assert decrypt(tier, m, tag)[0] == OK, "the control: unchanged, it is accepted"


@both_variants
def test_other_lengths_are_refused(tier: int, variant: str) -> None:
    """Zeros added or removed at the end of the text or the associated data, which the padding alone
    would not show, and bytes moved from one to the other."""
    seed = random.Random(7)
    for n, ad_len in ((1, 1), (31, 40), (32, 32), (64, 64), (100, 3)):
        m = random_message(seed, variant, n, ad_len - 1)
        m.text, m.ad = bytes(n), m.ad + b"\0"
        ciphertext, tag = sealed(tier, m)
        assert decrypt(tier, with_text(m, ciphertext), tag) == (OK, m.text)
        for text, ad in (
            (ciphertext[:-1], m.ad),
            (ciphertext + b"\0", m.ad),
            (ciphertext, m.ad[:-1]),
            (ciphertext, m.ad + b"\0"),
            (ciphertext, b""),
            (b"", m.ad),
            (m.ad[-1:] + ciphertext, m.ad[:-1]),
            (ciphertext[1:], m.ad + ciphertext[:1]),
        ):
            assert_refused(tier, Message(variant, m.key, m.nonce, ad, text), tag, (n, ad_len))
        # The keystream's next byte would decrypt to the zero that the padding has there anyway.
        longer, _ = sealed(tier, with_text(m, m.text + b"\0"))
        assert_refused(tier, with_text(m, longer), tag, n)


@both_variants
def test_random_messages(tier: int, variant: str) -> None:
    """hypothesis: any message comes back, and with any one bit changed nothing does."""
    hypothesis = pytest.importorskip("hypothesis", reason="needs the [test] extra's hypothesis")
    st = hypothesis.strategies
    size = VARIANTS[variant][1]

    @hypothesis.settings(max_examples=60)
    @hypothesis.given(
        st.binary(min_size=size, max_size=size),
        st.binary(min_size=size, max_size=size),
        st.binary(max_size=200),
        st.binary(max_size=400),
        st.sampled_from((16, 32)),
        st.integers(0, 15),
        st.data(),
    )
    def check(
        key: bytes,
        nonce: bytes,
        ad: bytes,
        text: bytes,
        tag_len: int,
        misalign: int,
        data: object,
    ) -> None:
        m = Message(variant, key, nonce, ad, text)
        want = sealed(PORTABLE, m, tag_len)
        for place in PLACES:
            assert encrypt(tier, m, tag_len, place, misalign) == (OK, *want)
            back = decrypt(tier, with_text(m, want[0]), want[1], place, misalign)
            assert back == (OK, text)
        bit = data.draw(st.integers(0, 8 * (len(text) + tag_len) - 1))  # type: ignore[attr-defined]
        changed = flipped(want[0] + want[1], bit)
        assert_refused(tier, with_text(m, changed[: len(text)]), changed[len(text) :])

    check()


# ---- arguments of the native functions ------------------------------------------------------


def native_calls() -> list[Callable[..., int]]:
    """The native functions as call(**changes), where `changes` replace good arguments. Each call
    makes sure that on a refusal neither the output nor the tag has changed."""

    def make(function: Callable[..., int], text: bytes, tag: bytes) -> Callable[..., int]:
        def call(**changes: object) -> int:
            out, tag_out = ffi.new("uint8_t[64]", b"\x5a" * 64), ffi.new("uint8_t[64]", tag)
            arguments = {
                "tier": PORTABLE,
                "lanes": 2,
                "key": bytes(32),
                "nonce": bytes(32),
                "ad": b"",
                "ad_len": 0,
                "in_": text,
                "out": out,
                "n": 64,
                "tag": tag_out,
                "tag_len": 16,
                **changes,
            }
            status = function(*arguments.values())
            if status != OK:
                assert bytes(ffi.buffer(out)) == b"\x5a" * 64
                assert bytes(ffi.buffer(tag_out)) == tag
            return status

        return call

    calls = []
    for variant in ("AEGIS-128X2", "AEGIS-256X2"):
        size = VARIANTS[variant][1]
        ciphertext, tag = sealed(
            PORTABLE, Message(variant, bytes(size), bytes(size), b"", bytes(64))
        )
        calls.append(make(SEAL[size], bytes(64), bytes(64)))
        calls.append(make(OPEN[size], ciphertext, tag + bytes(48)))
    return calls


def test_wrong_arguments_are_refused() -> None:
    for call in native_calls():
        assert call() == OK, "the control"
        for tag_len in (0, 1, 15, 17, 24, 31, 33, 64):
            assert call(tag_len=tag_len) == lib.CCMEM_ERR_ARGUMENT, tag_len
        for lanes in (0, 3, 4, 2**32 - 1):
            assert call(lanes=lanes) == lib.CCMEM_ERR_ARGUMENT, lanes
        for name in ("key", "nonce", "in_", "out", "tag"):
            assert call(**{name: ffi.NULL}) == lib.CCMEM_ERR_ARGUMENT, name
        assert call(ad=ffi.NULL, ad_len=1) == lib.CCMEM_ERR_ARGUMENT
        for length in (2**61, 2**64 - 1):
            assert call(n=length) == lib.CCMEM_ERR_ARGUMENT
            assert call(ad_len=length) == lib.CCMEM_ERR_ARGUMENT


def test_unusable_tiers_are_refused() -> None:
    unusable = [t for t in range(lib.CCMEM_TIER_COUNT) if t not in support.TIERS]
    for call in native_calls():
        for number in unusable:
            assert call(tier=number) == lib.CCMEM_ERR_TIER
        # Outside the enumeration: cffi passes the number on as it is.
        assert call(tier=lib.CCMEM_TIER_COUNT) == lib.CCMEM_ERR_TIER
    for name in ("bogus", "", "PORTABLE ", *map(support.tier_name, unusable)):
        for variant, (_, size) in VARIANTS.items():
            with pytest.raises(errors.TierError):
                ENCRYPT[variant](bytes(size), bytes(size), b"", tier=name)
            with pytest.raises(errors.TierError):
                DECRYPT[variant](bytes(size), bytes(size), b"", bytes(16), tier=name)


@both_variants
def test_nothing_may_be_null(tier: int, variant: str) -> None:
    """No text and no associated data need no pointers, and the result is that of empty ones."""
    lanes, size = VARIANTS[variant]
    m = Message(variant, b"k" * size, b"n" * size, b"", b"")
    _, want = sealed(tier, m)
    tag, null = ffi.new("uint8_t[16]"), ffi.NULL
    status = SEAL[size](tier, lanes, m.key, m.nonce, null, 0, null, null, 0, tag, 16)
    assert (status, bytes(ffi.buffer(tag))) == (OK, want)
    for good, expected in ((want, OK), (flipped(want, 77), REFUSED)):
        status = OPEN[size](tier, lanes, m.key, m.nonce, null, 0, null, null, 0, good, 16)
        assert status == expected


# ---- hazmat ---------------------------------------------------------------------------------


@both_tags
@both_variants
def test_hazmat_refuses_what_was_changed(tier: int, variant: str, tag_len: int) -> None:
    name, size, text, ad = support.tier_name(tier), VARIANTS[variant][1], b"text", b"ad"
    key, nonce = b"k" * size, b"n" * size
    ciphertext, tag = ENCRYPT[variant](key, nonce, text, ad, tag_len=tag_len, tier=name)
    assert (type(ciphertext), len(ciphertext), type(tag), len(tag)) == (bytes, 4, bytes, tag_len)
    assert DECRYPT[variant](key, nonce, ciphertext, tag, ad, tier=name) == text
    for arguments in (
        (flipped(key, 0), nonce, ciphertext, tag, ad),
        (key, flipped(nonce, 127), ciphertext, tag, ad),
        (key, nonce, flipped(ciphertext, 31), tag, ad),
        (key, nonce, ciphertext, flipped(tag, 8 * tag_len - 1), ad),
        (key, nonce, ciphertext, tag, b"aD"),
        (key, nonce, ciphertext, tag),
        (key, nonce, b"", tag, ad),
    ):
        with pytest.raises(errors.IntegrityError) as caught:
            DECRYPT[variant](*arguments, tier=name)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, errors.PyccmemError)


@both_variants
@pytest.mark.parametrize("size", [0, 1, 15, 17, 48])
def test_hazmat_refuses_wrong_sizes(variant: str, size: int) -> None:
    needed = VARIANTS[variant][1]
    good, wrong = bytes(needed), bytes(size)
    for crypt, rest in ((ENCRYPT[variant], (b"text",)), (DECRYPT[variant], (b"text", bytes(16)))):
        with pytest.raises(errors.InvalidKeyError, match=f"key has {size} bytes.* {needed}"):
            crypt(wrong, good, *rest)
        with pytest.raises(errors.ArgumentError, match=f"nonce has {size} bytes.* {needed}"):
            crypt(good, wrong, *rest)
    with pytest.raises(errors.ArgumentError, match=f"tag has {size} bytes.* 16 or 32"):
        DECRYPT[variant](good, good, b"text", wrong)
    with pytest.raises(errors.ArgumentError, match=f"tag_len is {size}.* 16 or 32"):
        ENCRYPT[variant](good, good, b"text", tag_len=size)


@both_variants
def test_hazmat_refuses_wrong_types(variant: str) -> None:
    size = VARIANTS[variant][1]
    for bad in (None, 16, "sixteen letters!", [0] * 16, object()):
        for crypt, count in ((ENCRYPT[variant], 4), (DECRYPT[variant], 5)):
            for position in range(count):
                arguments: list[object] = [bytes(size)] * count
                arguments[position] = bad
                with pytest.raises(errors.BufferTypeError):
                    crypt(*arguments)
    for tag_len in (None, 16.0, "16", True):
        with pytest.raises(errors.ArgumentTypeError, match="tag_len"):
            ENCRYPT[variant](bytes(size), bytes(size), b"", tag_len=tag_len)
    with pytest.raises(errors.ArgumentError, match="tag_len"):
        ENCRYPT[variant](bytes(size), bytes(size), b"", tag_len=2**200)


@both_variants
def test_hazmat_takes_any_bytes_like(variant: str) -> None:
    size, text, ad = VARIANTS[variant][1], bytes(range(100)), b"header"
    key, nonce = bytes(range(size)), bytes(range(16, 16 + size))
    ciphertext, tag = ENCRYPT[variant](key, nonce, text, ad)
    for kind in (bytearray, memoryview, lambda data: memoryview(bytearray(data))):
        made = ENCRYPT[variant](kind(key), kind(nonce), kind(text), kind(ad))
        assert made == (ciphertext, tag)
        back = DECRYPT[variant](kind(key), kind(nonce), kind(ciphertext), kind(tag), kind(ad))
        assert back == text
    assert ENCRYPT[variant](key, nonce, text, ad=ad, tag_len=16) == (ciphertext, tag)
    assert DECRYPT[variant](key, nonce, ciphertext, tag, ad=ad) == text
