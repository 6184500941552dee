# SPDX-License-Identifier: Apache-2.0
"""What mappings leave in memory: nothing of a window that was closed or of a process that ends, one
copy of a block while it is mapped; and that pinned blocks stay where they are."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fault_injection
import pytest
import support
from support import linux_only, not_sanitized

pytestmark = [linux_only, not_sanitized]

MECHANISMS = ["uffd", "uffd-signal", "uffd-copy", "sigsegv"]
SEED = bytes(range(40, 72))
NEEDLE = bytes(b ^ 0x5A for b in SEED)

BEGIN = """
import gc, mmap, os, sys
import numpy as np
import fault_injection
from mapping_support import LEAST, mapping_of
from pyccmem import EncryptedBuffer, Key, errors

BLOCK, blocks = 4096, 2 * LEAST
seed = np.arange(40, 72, dtype=np.uint8)

def needle_at(buffer, block):
    # Each block's own, made in one place, which is wiped: 0x5A ^ seed + block, and zeros around it.
    room = np.zeros(BLOCK, np.uint8)
    room[64:96] = seed
    room[64:96] ^= 0x5A
    room[96] = block
    buffer.write(room, block * BLOCK)
    room.fill(0)

# What memory is read into: wiped, since a copy that was left there would be found the next time.
scratch = np.frombuffer(mmap.mmap(-1, 256 * BLOCK), np.uint8)

def read(memory, at, n):
    # How many bytes of memory, n or fewer, lie in scratch now; 0 at what is absent.
    memory.seek(at)
    try:
        return memory.readinto(scratch[:n])
    except OSError:
        return 0

def copies(block):
    # In all memory that can be written, but for this function's own bytes.
    count, ranges = 0, []
    with open("/proc/self/maps") as lines:
        for line in lines.readlines():
            place, mode, *rest = line.split()
            if mode[:2] == "rw" or mode[:2] == "r-" and len(rest) == 3:
                ranges.append([int(part, 16) for part in place.split("-")])
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for begin, end in ranges:
            while begin < end:
                n = read(memory, begin, min(end - begin, scratch.size))
                for at in np.flatnonzero(scratch[: max(n - 33, 0) : 32] == seed[0] ^ 0x5A):
                    found = scratch[32 * at : 32 * at + 33]
                    count += bool(((found[:32] ^ 0x5A) == seed).all() and found[32] == block)
                scratch[:n] = 0
                begin += max(n // BLOCK, 1) * BLOCK
    return count

def start(mode, frames=LEAST):
    key = Key.generate()
    buffer = EncryptedBuffer(blocks * BLOCK, key=key)
    for block in range(blocks):
        needle_at(buffer, block)
    gc.collect()
    try:
        return buffer, mapping_of(buffer, sys.argv[1], mode, frames=frames)
    except errors.FaultMechanismError:
        print("cannot be had")
        sys.exit()
"""

ONE_COPY = """
buffer, mapping = start("r+")
with mapping as array:
    for block in range(3):
        assert array[block * BLOCK + 96] == block
    print([copies(block) for block in range(3)])
    array[96] = 77
    print(copies(77), copies(0))
"""

CLOSED = """
buffer, mapping = start("r+")
injector = fault_injection.Injector()
with mapping as array:
    for block in range(3):
        array[block * BLOCK + 97] = 1
    before = [copies(block) for block in range(3)]
    with injector.failing(1, later=True, kinds=["munmap"]) as unmapping:
        del array
        mapping.close()
        mapping = None
        gc.collect()
    print(before, unmapping.failed, [copies(block) for block in range(3)])
"""

PINNED = """
buffer, mapping = start("r+", LEAST + 2)
injector = fault_injection.Injector()
moves = ["mremap", "ioctl", "mprotect"]
with mapping as array:
    array[97] = 5
    with injector.counting(moves):
        mapping.flush()
        loose = injector.seen
    with mapping.pin(slice(0, BLOCK)):
        array[97] = 6
        with injector.counting(moves):
            mapping.flush()
            pinned = injector.seen
        assert buffer.read(97, 1) == bytes([6])
    print("moved" if loose else "stayed", "moved" if pinned else "stayed")
"""

REFUSED = """
import pyccmem
from pyccmem.binding import lib
key = Key.generate()
arena = pyccmem.Arena(key=key)
tensor = pyccmem.EncryptedTensor.zeros(blocks * BLOCK, np.uint8, arena=arena)
for block in range(blocks):
    needle_at(tensor._buffer, block)
try:
    mapping = mapping_of(tensor, sys.argv[1], "r", read_ahead=False)
except errors.FaultMechanismError:
    print("cannot be had")
    sys.exit()

with mapping as array:
    for block in range(LEAST + 1):
        assert array[block * BLOCK + 96] == block
    mapped = [copies(block) for block in range(LEAST + 2)]
    # As a mistake elsewhere would: from now on the store refuses every call, and writes nothing.
    lib.ccmem_arena_remove(mapping._store._store)
    try:
        mapping.prefault(slice((LEAST + 1) * BLOCK, (LEAST + 2) * BLOCK))
    except errors.ClosedError:
        print(mapped, [copies(block) for block in range(LEAST + 2)])
"""

DIES = """
buffer, mapping = start("r")
import support
support.damage(buffer, 2)
with mapping as array:
    assert array[96] == 0 and array[BLOCK + 96] == 1
    print(copies(0), copies(1), flush=True)
    array[2 * BLOCK + 96]
"""


# Blocks 2 and 3 are opened ahead of the reader of 0 and 1, one after the other, while block 6 is
# opened and refused, whose first page is damaged.
DIES_WHILE_OPENING = """
import sys
import numpy as np
import support
from mapping_support import LEAST, mapping_of
from pyccmem import EncryptedBuffer, Key, errors

BLOCK, blocks = 16 << 20, 2 * LEAST
buffer = EncryptedBuffer(blocks * BLOCK, key=Key.generate())
piece = np.zeros(4096, np.uint8)
piece[64:96] = np.arange(40, 72, dtype=np.uint8)
piece[64:96] ^= 0x5A
piece[96] = 2
for page in range(2 * BLOCK // 4096):
    buffer.write(piece, 2 * BLOCK + page * 4096)
piece.fill(0)
buffer.write(piece, 6 * BLOCK)
support.damage(buffer, 6 * BLOCK // 4096)
try:
    mapping = mapping_of(buffer, sys.argv[1], block=BLOCK)
except errors.FaultMechanismError:
    print("cannot be had")
    sys.exit()
with mapping as array:
    array[0] + array[BLOCK]
    print("1 1", flush=True)
    array[6 * BLOCK]
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fault_injection.build(tmp_path_factory.mktemp("injector"))


def run(script: str, fault: str, library: Path) -> str:
    output = support.check_python(
        BEGIN + script, fault, environment=fault_injection.environment(library)
    )
    if output == "cannot be had\n":
        pytest.skip(f"{fault} cannot be had on this system")
    return output


@pytest.mark.parametrize("fault", MECHANISMS)
def test_a_mapped_block_is_in_memory_once(fault: str, library: Path) -> None:
    assert run(ONE_COPY, fault, library) == "[1, 1, 1]\n1 0\n"


@pytest.mark.parametrize("fault", MECHANISMS)
def test_a_closed_window_is_wiped(fault: str, library: Path) -> None:
    """Looked at where munmap(2) is refused, since the memory is gone otherwise."""
    assert run(CLOSED, fault, library) == "[1, 1, 1] munmap [0, 0, 0]\n"


@pytest.mark.parametrize("fault", MECHANISMS)
def test_a_frame_is_wiped_when_its_next_block_is_refused(fault: str, library: Path) -> None:
    """The frame of the block that was there longest is to hold another one, which cannot be had."""
    assert run(REFUSED, fault, library) == "[0, 1, 1, 1, 1, 0] [0, 0, 1, 1, 1, 0]\n"


@pytest.mark.parametrize("fault", MECHANISMS)
def test_a_pinned_block_is_flushed_where_it_is(fault: str, library: Path) -> None:
    """It may be in a system call's hands, which would find it gone for a moment."""
    assert run(PINNED, fault, library) == "moved stayed\n"


STOPPING = r"""
#include <signal.h>
#include <unistd.h>
/* Waits to be looked at instead of ending. */
void abort(void)
{
    raise(SIGSTOP);
    _exit(77);
}
"""


def copies_in(pid: int, block: int) -> int:
    """Of a block's needle, in all memory of another process that can be read."""
    wanted, count = re.compile(re.escape(NEEDLE + bytes([block]))), 0
    with open(f"/proc/{pid}/maps", encoding="ascii") as lines:
        ranges = [line.split()[0] for line in lines if line.split()[1][0] == "r"]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for place in ranges:
            begin, end = (int(part, 16) for part in place.split("-"))
            try:
                memory.seek(begin)
                count += len(wanted.findall(memory.read(end - begin)))
            except (OSError, ValueError, OverflowError):
                continue
    return count


@pytest.mark.parametrize("script", [DIES, DIES_WHILE_OPENING], ids=["placed", "opening"])
@pytest.mark.parametrize("fault", MECHANISMS)
def test_a_process_that_ends_wipes_its_windows(
    fault: str, script: str, library: Path, tmp_path: Path
) -> None:
    """Looked at in the moment in which it would end, for a core dump or a debugger."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "library was compiled before"
    source, stopping = tmp_path / "stopping.c", tmp_path / "libstopping.so"
    source.write_text(STOPPING)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-o", str(stopping), str(source)], check=True
    )
    environment = fault_injection.environment(library)
    environment["LD_PRELOAD"] = f"{environment['LD_PRELOAD']} {stopping}"
    child = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script if script == DIES else script, fault],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if line == "cannot be had\n":
            pytest.skip(f"{fault} cannot be had on this system")
        assert line == "1 1\n"
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP, status
        assert [copies_in(child.pid, block) for block in range(3)] == [0, 0, 0]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()
