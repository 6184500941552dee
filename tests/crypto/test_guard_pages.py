# SPDX-License-Identifier: Apache-2.0
"""No byte outside source and destination is touched: both lie flush against unmapped memory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import support
from guarded import PAGE, Guarded
from support import OK, ffi, lib

import pyccmem
from pyccmem import EncryptedBuffer


@pytest.fixture(scope="module")
def areas() -> Iterator[tuple[Guarded, Guarded]]:
    """A source and a destination, guarded at both ends."""
    both = Guarded(3 * 65536 + PAGE), Guarded(3 * 65536 + PAGE)
    yield both
    for area in both:
        area.close()


def ends(area: Guarded, n: int) -> tuple[object, object]:
    return area.at_start(n), area.at_end(n)


def test_the_guard_pages_fault() -> None:
    """The control: reading one byte past the end kills a process."""
    script = """
import ctypes, mmap
import guarded, support
area = guarded.Guarded(4096)
print("ready", flush=True)
support.ffi.memmove(bytearray(1), area.{end}, 1)
print("alive")
"""
    for end in ("at_end(0)", "at_start(0) - 1"):
        done = support.run_python(script.format(end=end))
        assert "ready" in done.stdout and "alive" not in done.stdout, done
        assert done.returncode != 0


@pytest.mark.parametrize("key_size", [32, 64])
def test_data_units(areas: tuple[Guarded, Guarded], tier: int, key_size: int) -> None:
    """Every length to 300 bytes, then those around whole pages, at all four pairs of ends."""
    seed = random.Random(key_size)
    source, target = areas
    around = [n + d for n in (512, 1024, 4096, 8192, 65536) for d in (-17, -16, -1, 0, 1, 15, 16)]
    for n in [*range(16, 300), *around]:
        key, tweak, text = seed.randbytes(key_size), seed.randbytes(16), seed.randbytes(n)
        want = support.xts(tier, True, key, tweak, text)
        for src in ends(source, n):
            for dst in ends(target, n):
                ffi.memmove(src, text, n)
                assert lib.ccmem_xts(tier, 1, key, key_size, tweak, src, dst, n) == OK
                assert bytes(ffi.buffer(dst, n)) == want
                assert lib.ccmem_xts(tier, 0, key, key_size, tweak, dst, src, n) == OK
                assert bytes(ffi.buffer(src, n)) == text
            assert lib.ccmem_xts(tier, 1, key, key_size, tweak, src, src, n) == OK
            assert bytes(ffi.buffer(src, n)) == want


def test_keys_tweaks_and_tags(areas: tuple[Guarded, Guarded], tier: int) -> None:
    """The short operands are not read or written past their ends either."""
    source, target = areas
    text = bytes(range(48))
    for key_size in (32, 64):
        key = bytes(range(key_size))
        want = support.xts(tier, True, key, bytes(16), text)
        out = ffi.new("uint8_t[48]")
        for key_at, tweak_at in zip(ends(source, key_size), ends(target, 16), strict=True):
            ffi.memmove(key_at, key, key_size)
            ffi.memmove(tweak_at, bytes(16), 16)
            assert lib.ccmem_xts(tier, 1, key_at, key_size, tweak_at, text, out, 48) == OK
            assert bytes(ffi.buffer(out)) == want
    for key_size in (16, 24, 32):
        for n in range(0, 70):
            key, message = bytes(range(key_size)), bytes(range(n))
            want_tag = ffi.new("uint8_t[16]")
            assert lib.ccmem_cmac(tier, key, key_size, message, n, want_tag) == OK
            for message_at in ends(source, n):
                for tag_at in ends(target, 16):
                    ffi.memmove(message_at, message, n)
                    assert lib.ccmem_cmac(tier, key, key_size, message_at, n, tag_at) == OK
                    assert bytes(ffi.buffer(tag_at, 16)) == bytes(ffi.buffer(want_tag))
    for n in (1, 16, 33, 100):
        for out_at in ends(target, n):
            status = lib.ccmem_kdf(tier, bytes(32), 32, b"label", 5, b"context", 7, out_at, n)
            assert status == OK


@pytest.mark.parametrize("lanes", [1, 2])
def test_aegis_messages(areas: tuple[Guarded, Guarded], tier: int, lanes: int) -> None:
    """Lengths of data and associated data around whole blocks, at all four pairs of ends."""
    seed = random.Random(lanes)
    source, target = areas
    key, nonce = seed.randbytes(16), seed.randbytes(16)
    for n in [*range(0, 140), 255, 256, 257, 4095, 4096, 4097]:
        text, ad, size = seed.randbytes(n), seed.randbytes(n * 7 % 131), 16 << n % 2
        want, tag = ffi.new("uint8_t[]", n), ffi.new("uint8_t[]", size)
        message = (tier, lanes, key, nonce, ad, len(ad))
        assert lib.ccmem_aegis_encrypt(*message, text, want, n, tag, size) == OK
        sealed = bytes(ffi.buffer(want))
        for src in ends(source, n):
            for dst in ends(target, n):
                ffi.memmove(src, text, n)
                assert lib.ccmem_aegis_encrypt(*message, src, dst, n, tag, size) == OK
                assert bytes(ffi.buffer(dst, n)) == sealed
                assert lib.ccmem_aegis_decrypt(*message, dst, src, n, tag, size) == OK
                assert bytes(ffi.buffer(src, n)) == text
            assert lib.ccmem_aegis_encrypt(*message, src, src, n, tag, size) == OK
            assert bytes(ffi.buffer(src, n)) == sealed
        for ad_at, tag_at in zip(ends(source, len(ad)), ends(target, size), strict=True):
            ffi.memmove(ad_at, ad, len(ad))
            ffi.memmove(tag_at, bytes(ffi.buffer(tag)), size)
            at_ends = (tier, lanes, key, nonce, ad_at, len(ad))
            assert lib.ccmem_aegis_decrypt(*at_ends, sealed, want, n, tag_at, size) == OK
            assert bytes(ffi.buffer(want)) == text
            assert lib.ccmem_aegis_encrypt(*at_ends, text, want, n, tag_at, size) == OK
            assert bytes(ffi.buffer(tag_at, size)) == bytes(ffi.buffer(tag))


def test_buffer_reads_and_writes(
    areas: tuple[Guarded, Guarded], key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    """Lengths and offsets around block and page boundaries, flush against all ends."""
    seed = random.Random(page_size)
    source, target = areas
    nbytes = 3 * page_size + 100
    model = bytearray(seed.randbytes(nbytes))
    offsets = {0, 1, 15, 16, 17, 63, 64, page_size - 1, page_size, page_size + 1, nbytes - 1}
    lengths = {0, 1, 15, 16, 17, 64, 65, page_size - 1, page_size, page_size + 1, 2 * page_size}
    with EncryptedBuffer(nbytes, key=key, cipher=cipher, page_size=page_size) as buffer:
        buffer.write(model)
        for offset in sorted(offsets):
            for n in sorted({*lengths, nbytes - offset}):
                if offset + n > nbytes:
                    continue
                for out in ends(target, n):
                    buffer.read_into(target.view(out, n), offset)
                    assert bytes(ffi.buffer(out, n)) == model[offset : offset + n]
                text = seed.randbytes(n)
                for data in ends(source, n):
                    ffi.memmove(data, text, n)
                    buffer.write(source.view(data, n), offset)
                model[offset : offset + n] = text
        assert buffer.read() == model


def test_a_buffer_of_one_page_ends_where_its_pages_end(
    key: pyccmem.Key, cipher: str, page_size: int
) -> None:
    """Reads of the last byte and the whole of exactly full buffers (a sanitizer looks on)."""
    for pages in (1, 2, 7):
        nbytes = pages * page_size
        with EncryptedBuffer(nbytes, key=key, cipher=cipher, page_size=page_size) as buffer:
            data = bytes(i & 255 for i in range(nbytes))
            buffer.write(data)
            assert buffer.read(nbytes - 1) == data[-1:]
            assert buffer.read() == data
