# SPDX-License-Identifier: Apache-2.0
"""Writes and reads whose other end is a mapping of the very pages they are about: no lock of a page
may be held while memory is touched whose touch opens a page. A mistake is a wait without end, so
each runs in a child, and its end is waited for."""

from __future__ import annotations

import pytest
from mapping_support import check
from support import linux_only, not_sanitized

pytestmark = linux_only

SCRIPT = """
import os, sys
import numpy as np
from mapping_support import LEAST, mapping_of
import pyccmem
from pyccmem import EncryptedBuffer, Key, errors
from pyccmem.binding import ffi, lib

how, fault, cipher = sys.argv[1:]
BLOCK, blocks = 4096, 4 * LEAST
content = bytearray(np.random.default_rng(5).bytes(blocks * BLOCK))
with Key.generate() as key, EncryptedBuffer(len(content), key=key, cipher=cipher) as buffer:
    buffer.write(content)
    try:
        mapping = mapping_of(buffer, fault)
    except errors.FaultMechanismError:
        print("cannot be had")
        sys.exit()
    with mapping as array:
        base = ffi.cast("uint8_t *", array.ctypes.data)
        store = buffer._opened()

        def leave(block):
            # Blocks far from it come in, and drive it out.
            for other in range(blocks):
                if abs(other - block) > LEAST:
                    assert array[other * BLOCK] == content[other * BLOCK]

        for block in (0, 1, blocks // 2, blocks - 1):
            leave(block)
            at = block * BLOCK
            if how == "scatter":
                # Several runs of one page, from that page.
                offsets = ffi.new("uint64_t[]", [at + 100, at + 300, at + 900])
                runs = content[at + 2000 : at + 2000 + 3 * 8]
                status = lib.ccmem_store_scatter(store, offsets, 3, 8, base + at + 2000)
                for i, offset in enumerate(offsets):
                    content[offset : offset + 8] = runs[8 * i : 8 * i + 8]
            elif how == "part":
                status = lib.ccmem_store_write(store, at + 100, base + at + 1000, 500)
                content[at + 100 : at + 600] = content[at + 1000 : at + 1500]
            else:
                status = lib.ccmem_store_write(store, at, base + at, BLOCK)
            assert status == 0, status
            assert buffer.read() == content
        print("done")
"""


@not_sanitized
@pytest.mark.parametrize("how", ["scatter", "part", "page"])
@pytest.mark.parametrize("fault", ["uffd", "uffd-signal", "uffd-copy", "sigsegv"])
@pytest.mark.parametrize("cipher", ["aegis-128x2", "aes-128-xts"])
def test_a_write_whose_source_is_a_mapping_of_its_page(how: str, fault: str, cipher: str) -> None:
    assert check(SCRIPT, how, fault, cipher, timeout=60) in ("done\n", "cannot be had\n")
