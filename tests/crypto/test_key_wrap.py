# SPDX-License-Identifier: Apache-2.0
"""AES key wrap (RFC 3394, SP 800-38F KW) on every tier, and what a Key does for files: wrapping a
data key, its id, message authentication codes; none of these keys in ordinary memory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from key_wrap_vectors import PUBLISHED
from secret_search import (
    WITHOUT_MEMFD_SECRET,
    aegis_secrets,
    all_round_keys,
    child,
    find,
    secretmem_works,
)
from support import KEY_BYTES, OK, Arena, ffi, lib, linux_only, not_sanitized, tier_name

import pyccmem
from pyccmem import Key, errors, hazmat

DATA_KEY = bytes(range(100, 132))


# ---- the bare primitive -----------------------------------------------------------------------


@pytest.mark.parametrize("vector", PUBLISHED, ids=["4.1", "4.2", "4.3", "4.4", "4.5", "4.6"])
def test_published_vectors(tier: int, vector: tuple[str, str, str]) -> None:
    kek, key, wrapped = (bytes.fromhex(field) for field in vector)
    assert hazmat.aes_key_wrap(kek, key, tier=tier_name(tier)) == wrapped
    assert hazmat.aes_key_unwrap(kek, wrapped, tier=tier_name(tier)) == key


@pytest.mark.parametrize("kek_size", [16, 24, 32])
def test_agrees_with_cryptography(tier: int, kek_size: int) -> None:
    keywrap = pytest.importorskip(
        "cryptography.hazmat.primitives.keywrap", reason="needs the [test] extra's cryptography"
    )
    seed = random.Random(3394 + kek_size)
    for size in [*range(16, 88, 8), 128, 256, 1000, 4096]:
        kek, key = seed.randbytes(kek_size), seed.randbytes(size)
        wrapped = hazmat.aes_key_wrap(kek, key, tier=tier_name(tier))
        assert wrapped == keywrap.aes_key_wrap(kek, key), size
        assert hazmat.aes_key_unwrap(kek, wrapped, tier=tier_name(tier)) == key, size


def test_the_longest_keys(tier: int) -> None:
    """Step numbers of more than 16 bits."""
    keywrap = pytest.importorskip(
        "cryptography.hazmat.primitives.keywrap", reason="needs the [test] extra's cryptography"
    )
    key = random.Random(65536).randbytes(65536)
    wrapped = hazmat.aes_key_wrap(KEY_BYTES, key, tier=tier_name(tier))
    assert wrapped == keywrap.aes_key_wrap(KEY_BYTES, key)
    assert hazmat.aes_key_unwrap(KEY_BYTES, wrapped, tier=tier_name(tier)) == key
    for function, size in ((hazmat.aes_key_wrap, 65544), (hazmat.aes_key_unwrap, 65552)):
        with pytest.raises(errors.ArgumentError, match="multiple of 8"):
            function(KEY_BYTES, bytes(size), tier=tier_name(tier))


def wrapped_with(icv: bytes, kek: bytes, key: bytes) -> bytes:
    """RFC 3394, 2.2.1, with this initial value in place of 0xa6a6..., by cryptography's AES."""
    ciphers = pytest.importorskip(
        "cryptography.hazmat.primitives.ciphers", reason="needs the [test] extra's cryptography"
    )
    aes = ciphers.Cipher(ciphers.algorithms.AES(kek), ciphers.modes.ECB()).encryptor()
    parts = [key[at : at + 8] for at in range(0, len(key), 8)]
    for step in range(6 * len(parts)):
        block = aes.update(icv + parts[step % len(parts)])
        icv = (int.from_bytes(block[:8], "big") ^ step + 1).to_bytes(8, "big")
        parts[step % len(parts)] = block[8:]
    return icv + b"".join(parts)


def test_every_bit_of_the_check_value_counts(tier: int) -> None:
    """What somebody wrapped who had the key, and another initial value."""
    kek, key, wrapped = (bytes.fromhex(field) for field in PUBLISHED[-1])
    right = b"\xa6" * 8
    assert wrapped_with(right, kek, key) == wrapped
    for bit in range(64):
        wrong = (int.from_bytes(right, "big") ^ 1 << bit).to_bytes(8, "big")
        with pytest.raises(errors.IntegrityError):
            hazmat.aes_key_unwrap(kek, wrapped_with(wrong, kek, key), tier=tier_name(tier))


def test_every_changed_bit_is_noticed(tier: int) -> None:
    """And nothing is handed out: the memory for the key holds zeros then."""
    kek, key, wrapped = (bytes.fromhex(field) for field in PUBLISHED[-1])
    out = ffi.new("uint8_t[]", len(key))
    for bit in range(8 * len(wrapped)):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        ffi.memmove(out, b"\x77" * len(key), len(key))
        status = lib.ccmem_aes_kw(tier, 0, kek, len(kek), bytes(changed), len(changed), out)
        assert status == lib.CCMEM_ERR_INTEGRITY, bit
        assert bytes(ffi.buffer(out)) == bytes(len(key)), bit
    for bit in range(8 * len(kek)):
        other = bytearray(kek)
        other[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.IntegrityError, match="another"):
            hazmat.aes_key_unwrap(other, wrapped, tier=tier_name(tier))
    assert hazmat.aes_key_unwrap(kek, wrapped, tier=tier_name(tier)) == key


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 17, 20, 23, 31, 33])
def test_refuses_other_sizes(tier: int, size: int) -> None:
    with pytest.raises(errors.ArgumentError, match=f"{size} bytes"):
        hazmat.aes_key_wrap(KEY_BYTES, bytes(size), tier=tier_name(tier))
    with pytest.raises(errors.ArgumentError, match="from 24"):
        hazmat.aes_key_unwrap(KEY_BYTES, bytes(size), tier=tier_name(tier))
    if size != 16:
        with pytest.raises(errors.InvalidKeyError, match="16, 24 or 32"):
            hazmat.aes_key_wrap(bytes(size), bytes(16), tier=tier_name(tier))


def test_refuses_other_things() -> None:
    with pytest.raises(errors.BufferTypeError):
        hazmat.aes_key_wrap("k" * 16, bytes(16))
    with pytest.raises(errors.BufferTypeError):
        hazmat.aes_key_unwrap(bytes(16), 24)  # type: ignore[arg-type]
    with pytest.raises(errors.TierError):
        hazmat.aes_key_wrap(bytes(16), bytes(16), tier="none")


def test_touches_nothing_else(tier: int) -> None:
    """At every misalignment, neither the bytes around the output nor the input change."""
    kek, key, wrapped = (bytes.fromhex(field) for field in PUBLISHED[-1])
    source, target = Arena(64), Arena(64)
    for misalign in range(16):
        for wrap, given, wanted in ((1, key, wrapped), (0, wrapped, key)):
            in_ = source.place(given, misalign)
            out = target.place(bytes(len(wanted)), 15 - misalign)
            assert lib.ccmem_aes_kw(tier, wrap, kek, len(kek), in_, len(given), out) == OK
            assert bytes(ffi.buffer(out, len(wanted))) == wanted
            assert target.intact(15 - misalign, len(wanted))
            assert bytes(ffi.buffer(in_, len(given))) == given


# ---- keys of files ----------------------------------------------------------------------------


def bytes_of(key: Key) -> bytes:
    out = bytearray(32)
    key._copy_into(memoryview(out))
    return bytes(out)


def test_a_wrapped_key_is_key_wrap_under_a_derived_key(key: Key) -> None:
    """SP 800-108 with the label "key-wrap", then RFC 3394, both by another implementation."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    from cryptography.hazmat.primitives import keywrap

    kek = oracle.kdf_counter_cmac(KEY_BYTES, b"key-wrap", b"", 32)
    with Key.from_bytes(DATA_KEY) as data_key:
        wrapped = key._wrap(data_key)
    assert wrapped == keywrap.aes_key_wrap(kek, DATA_KEY)
    with key._unwrap(keywrap.aes_key_wrap(kek, DATA_KEY[::-1])) as unwrapped:
        assert bytes_of(unwrapped) == DATA_KEY[::-1]


def test_the_id_and_the_mac_are_derived_with_labels_of_their_own(key: Key) -> None:
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    assert key.id == oracle.kdf_counter_cmac(KEY_BYTES, b"key-id", b"", 16).hex()
    seed = random.Random(38)
    for n in (0, 1, 15, 16, 17, 32, 4096, 100_001):
        context, data = seed.randbytes(16), seed.randbytes(n)
        mac_key = oracle.kdf_counter_cmac(KEY_BYTES, b"key-mac", context, 32)
        assert key._mac("aegis-128x2", context, data) == oracle.aes_cmac(mac_key, data), n


def test_macs_under_sm4_are_half_of_hmac_over_sm3(key: Key) -> None:
    hashes, hmac = (
        pytest.importorskip(f"cryptography.hazmat.primitives.{name}", reason="needs cryptography")
        for name in ("hashes", "hmac")
    )
    seed = random.Random(39)
    for n in (0, 1, 63, 64, 65, 4096):
        context, data = seed.randbytes(16), seed.randbytes(n)
        mac_key = hazmat.kdf_counter_sm3(KEY_BYTES, b"key-mac", context, 32)
        whole = hmac.HMAC(mac_key, hashes.SM3())
        whole.update(data)
        tag = key._mac("sm4-gcm", context, data)
        assert tag == whole.finalize()[:16] != key._mac("aegis-128x2", context, data), n


def test_a_mac_depends_on_key_context_and_every_bit(key: Key) -> None:
    data = bytearray(random.Random(4).randbytes(100))
    tag = key._mac("aegis-128x2", bytes(16), data)
    with Key.from_bytes(DATA_KEY) as other:
        assert other._mac("aegis-128x2", bytes(16), data) != tag
    assert key._mac("aegis-128x2", bytes(15) + b"\x01", data) != tag
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert key._mac("aegis-128x2", bytes(16), data) != tag, bit
        data[bit // 8] ^= 1 << bit % 8
    assert key._mac("aegis-128x2", bytes(16), data) == tag


def test_unwrapped_keys_are_keys(key: Key) -> None:
    """A random key survives, lies in secret memory, and lives on without the root key."""
    with Key.generate() as data_key:
        wrapped, raw, name = key._wrap(data_key), bytes_of(data_key), data_key.id
    with Key.from_bytes(KEY_BYTES) as root:
        again = root._unwrap(wrapped)
    with again:
        assert again.id == name != key.id
        assert bytes_of(again) == raw
        assert again.level == LEVEL
        with pyccmem.EncryptedBuffer.from_data(b"data", key=again) as buffer:
            assert buffer.read() == b"data"
    with Key.generate() as one, Key.generate() as two:
        assert len({one.id, two.id, key.id}) == 3


LEVEL = "secretmem" if secretmem_works() else "mlock"


def test_unwrapping_honours_require(key: Key) -> None:
    with Key.generate() as data_key:
        wrapped = key._wrap(data_key)
    with key._unwrap(wrapped, require="mlock") as unwrapped:
        assert unwrapped.level == LEVEL
    if LEVEL == "secretmem":
        with key._unwrap(wrapped, require="secretmem") as unwrapped:
            assert unwrapped.level == "secretmem"
    else:
        with pytest.raises(errors.SecretMemoryError):
            key._unwrap(wrapped, require="secretmem")
    with pytest.raises(errors.ArgumentError, match="require"):
        key._unwrap(wrapped, require="best")


def test_every_changed_bit_of_a_wrapped_key_is_noticed(key: Key) -> None:
    with Key.generate() as data_key:
        wrapped = bytearray(key._wrap(data_key))
    for bit in range(8 * len(wrapped)):
        wrapped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.IntegrityError, match="wrapped") as caught:
            key._unwrap(wrapped)
        assert caught.value.page is None
        wrapped[bit // 8] ^= 1 << bit % 8
    with Key.generate() as other, pytest.raises(errors.IntegrityError, match="another"):
        other._unwrap(wrapped)
    key._unwrap(wrapped).close()


@pytest.mark.parametrize("size", [0, 16, 32, 39, 41, 48])
def test_refuses_wrapped_keys_of_other_sizes(key: Key, size: int) -> None:
    with pytest.raises(errors.ArgumentError, match="40"):
        key._unwrap(bytes(size))


def test_refuses_wrong_arguments(key: Key) -> None:
    with pytest.raises(errors.ArgumentError, match="context"):
        key._mac("aegis-128x2", bytes(15), b"")
    with pytest.raises(errors.BufferTypeError):
        key._mac("aegis-128x2", bytes(16), "text")
    for out, error in (
        (bytearray(31), errors.ArgumentError),
        (bytearray(33), errors.ArgumentError),
        (bytes(32), errors.ReadOnlyOutputError),
        (None, errors.BufferTypeError),
    ):
        with pytest.raises(error, match="out"):
            key._copy_into(out)


USES: dict[str, Callable[[Key], Any]] = {
    "id": lambda k: k.id,
    "wrap": lambda k: k._wrap(k),
    "unwrap": lambda k: k._unwrap(bytes(40)),
    "mac": lambda k: k._mac("aegis-128x2", bytes(16), b""),
    "copy": lambda k: k._copy_into(bytearray(32)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_closed_keys_and_forked_children_are_refused(key: Key, use: Callable[[Key], Any]) -> None:
    def in_child() -> None:
        with pytest.raises(errors.ForkError):
            use(key)

    support.in_forked_child(in_child)
    closed = Key.generate()
    closed.close()
    with pytest.raises(errors.ClosedError):
        use(closed)


def test_wrapping_a_closed_key_is_refused(key: Key) -> None:
    closed = Key.generate()
    closed.close()
    with pytest.raises(errors.ClosedError):
        key._wrap(closed)


#: Unwraps a data key, then uses it as a file's reader and writer do.
HOLDER = """
import sys, tempfile
import numpy as np
from pyccmem import EncryptedBuffer, Key
from pyccmem.safetensors._sealer import Sealer
path, wrapped, control, action = sys.argv[1], *map(bytes.fromhex, sys.argv[2:4]), sys.argv[4]
root = Key.from_file(path)
data = root._unwrap(wrapped)
try:
    root._unwrap(wrapped[::-1])
    raise SystemExit("a wrong key was unwrapped")
except ValueError:
    pass
assert root._wrap(data) == wrapped
names, macs = {root.id, data.id}, data._mac("aegis-128x2", bytes(16), bytes(10000))
sealer = Sealer(data, bytes(16), 4096)
pages = bytearray(64 * 4096)
tags = sealer.seal(0, bytes(len(pages) - 5), pages)
with tempfile.TemporaryFile() as file:
    file.write(pages)
    file.flush()
    buffer = EncryptedBuffer._mapped(
        file.fileno(), 0, len(pages) - 5, key=data, cipher="aegis-128x2", store_id=bytes(16),
        page_size=4096, versions=np.ones(64, np.uint64), tags=tags, name="file")
assert not any(buffer.read())
if action == "close":
    for thing in (buffer, sealer, data, root): thing.close()
kept = bytearray(control)
del control
print("ready", flush=True)
input()
assert action == "close" or buffer.read(0, 4) is not None
"""


@linux_only
@not_sanitized
@pytest.mark.parametrize("action", ["hold", "close"])
@pytest.mark.parametrize(("name", "memory"), support.TIERS_IN_SECRET_MEMORY)
def test_keys_of_files_are_in_secret_memory_only(
    tmp_path: Path, name: str, action: str, memory: str
) -> None:
    """Neither the data key nor the keys that wrap it, authenticate and seal with it, nor any of
    their round keys; while in use, and after close()."""
    if memory == "secretmem" and LEVEL != "secretmem":
        pytest.skip("this kernel gives no memfd_secret memory")
    raw, data, control = os.urandom(32), os.urandom(32), os.urandom(32)
    path = tmp_path / "key"
    path.write_bytes(raw)
    path.chmod(0o600)
    with Key.from_bytes(raw) as root, Key.from_bytes(data) as data_key:
        wrapped = root._wrap(data_key)

    def derived(key: bytes, label: str, context: bytes, size: int) -> bytes:
        return hazmat.kdf_counter_cmac(key, label.encode(), context, size)

    needles = all_round_keys("root", raw, both=False)
    needles |= all_round_keys("data", data, both=False)
    needles |= all_round_keys("wrapping", derived(raw, "key-wrap", b"", 32))
    needles |= all_round_keys("mac", derived(data, "key-mac", bytes(16), 32), both=False)
    subkey = derived(data, support.AEGIS, bytes(16) + (4096).to_bytes(4, "big"), 16)
    needles |= aegis_secrets("pages", subkey)
    script = HOLDER if memory == "secretmem" else WITHOUT_MEMFD_SECRET + HOLDER
    environment = support.child_environment(PYCCMEM_TIER=name, LD_BIND_NOW="1")
    arguments = (str(path), wrapped.hex(), control.hex(), action)
    with child(script, *arguments, environment=environment) as pid:
        found = find(pid, needles | {"control": control})
    assert any(what == "control" for what, _ in found), "the search itself finds nothing"
    secret = [what for what, mapping in found if {"lo", "dd", "dc"} <= mapping.flags]
    ordinary = [
        f"{what} in {mapping.name or hex(mapping.start)}"
        for what, mapping in found
        if what != "control" and not {"lo", "dd", "dc"} <= mapping.flags
    ]
    assert not ordinary, f"in ordinary memory: {sorted(set(ordinary))}"
    if memory == "secretmem" or action == "close":
        assert not secret, f"in locked memory: {sorted(set(secret))}"
    else:
        assert {"data round 0", "pages key"} <= set(secret), "the search misses locked memory"
