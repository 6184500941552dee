# SPDX-License-Identifier: Apache-2.0
"""Writes and reads whose other end is a mapping of the very pages they are about: no lock of a page
may be held while memory is touched whose touch opens a page. A mistake is a wait without end, so
each runs in a child, and its end is waited for."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import support
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


# ---- reads that lose their races ----------------------------------------------------------------

#: A reader whose page gets another version in the middle of each try, until that was 400 times:
#: how often the lock was set when it stored, how often it tried again, and what became of it.
LOSING = """
import ctypes, sys
import numpy as np
from mapping_support import mapping_of
from pyccmem import EncryptedBuffer, Key
from pyccmem.binding import ffi, lib
import support

where, cipher, library = sys.argv[1:]
moving = ctypes.CDLL(library)
moving.moving_word_map.restype = ctypes.c_void_p
moving.moving_word_map.argtypes = [ctypes.c_void_p]
moving.moving_word_start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
moving.moving_word_moves.restype = moving.moving_word_locked.restype = ctypes.c_long
assert moving.moving_word_handle()
PAGE, FENCE, READ, MOVES = 65536, 3 * 4096, 5, 400
content = np.random.default_rng(5).bytes(8 * PAGE)
key = Key.generate()
buffer = EncryptedBuffer(len(content), key=key, cipher=cipher, page_size=PAGE)
buffer.write(content)
fence, mappings = None, []
if where == "nowhere":
    fence = moving.moving_word_map(None)
    size = FENCE
while not fence:  # until nothing lies below a mapping
    assert len(mappings) < 50
    other = EncryptedBuffer(len(content), key=key)
    mappings.append(mapping_of(other, mode="r+"))
    base = int(ffi.cast("uintptr_t", lib.ccmem_region_data(mappings[-1]._region)))
    fence = moving.moving_word_map(base - FENCE)
    size = FENCE + 100
out = np.ctypeslib.as_array(ctypes.cast(fence, ctypes.POINTER(ctypes.c_uint8)), (size,))
word = int(ffi.cast("uintptr_t", support.records(buffer)[0] + READ))
store, into = buffer._opened(), ffi.cast("void *", fence)
assert moving.moving_word_start(fence, word, MOVES)
status = lib.ccmem_store_read(store, READ * PAGE, into, size)
assert moving.moving_word_stop()
good = status == 0 and out.tobytes() == content[READ * PAGE : READ * PAGE + size]
retries = buffer.stats()["retries"]
print(moving.moving_word_locked(), retries, moving.moving_word_moves() == MOVES, good)
"""


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """moving_word.c as a library."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs a C compiler for the reader that loses")
    library = tmp_path_factory.mktemp("moving") / "libmoving_word.so"
    source = Path(support.__file__).with_name("moving_word.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, *flags, "-o", str(library), str(source)], check=True)
    return library


@not_sanitized
@pytest.mark.parametrize("cipher", support.CIPHERS)
def test_a_reader_that_always_loses_takes_the_lock(cipher: str, moving: Path) -> None:
    """The control of the next test: outside mappings it does, after 16 tries, and it is seen."""
    locked, retries, *_ = check(LOSING, "nowhere", cipher, str(moving)).split()
    assert int(locked) > 0 and int(retries) == 16


@not_sanitized
@pytest.mark.parametrize("cipher", support.CIPHERS)
def test_no_lock_is_taken_to_read_into_a_mapping(cipher: str, moving: Path) -> None:
    """However often the reader loses: to touch the mapping may open the very page it would lock."""
    locked, retries, moved, good = check(LOSING, "mapping", cipher, str(moving)).split()
    assert (locked, moved, good) == ("0", "True", "True") and int(retries) > 16
