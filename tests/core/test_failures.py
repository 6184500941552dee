# SPDX-License-Identifier: Apache-2.0
"""What fails half-way gives back what it took: budget, and slots of secret memory; and a random
generator that gives little at a time, or nothing."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import fault_injection
import pytest
import support
from secret_search import needs_secretmem
from support import linux_only, not_sanitized, run_threads

import pyccmem
from pyccmem import EncryptedBuffer, Key, errors
from pyccmem.binding import ffi, lib

pytestmark = linux_only


def reserved() -> tuple[int, int]:
    """Bytes reserved of the budget, and bytes of it that are plaintext now."""
    stats = ffi.new("ccmem_plaintext_stats *")
    lib.ccmem_plaintext_get_stats(stats)
    return int(stats.reserved), int(stats.resident)


@not_sanitized
def test_a_block_that_cannot_be_had_takes_no_budget() -> None:
    before = reserved()
    out = ffi.new("uint8_t **")
    for n in (1 << 47, 1 << 50, 1 << 60):
        assert lib.ccmem_plain_alloc(n, out) == lib.CCMEM_ERR_NOMEM
        assert reserved() == before
    assert lib.ccmem_plain_alloc(1 << 63, out) == lib.CCMEM_ERR_NOMEM
    for n in (1, 5000, 1 << 20):
        assert lib.ccmem_plain_alloc(n, out) == lib.CCMEM_OK
        taken = reserved()[0] - before[0]
        assert n <= taken and reserved()[1] - before[1] == taken
        lib.ccmem_plain_free(out[0])
        assert reserved() == before


def test_a_budget_is_kept_to_the_byte() -> None:
    stats = ffi.new("ccmem_plaintext_stats *")
    lib.ccmem_plaintext_get_stats(stats)
    before = int(stats.budget)
    out = ffi.new("uint8_t **")
    base = reserved()[0]
    try:
        assert lib.ccmem_set_plaintext_budget(base + (1 << 20)) == lib.CCMEM_OK
        assert lib.ccmem_plain_alloc((1 << 20) + 1, out) == lib.CCMEM_ERR_BUDGET
        assert lib.ccmem_plain_alloc((1 << 20) + 65, out) == lib.CCMEM_ERR_BUDGET
        assert lib.ccmem_plain_alloc(1 << 20, out) == lib.CCMEM_OK
        more = ffi.new("uint8_t **")
        for n in (1, 64):
            assert lib.ccmem_plain_alloc(n, more) == lib.CCMEM_ERR_BUDGET
        assert lib.ccmem_set_plaintext_budget(base + (1 << 20) - 1) == lib.CCMEM_ERR_BUDGET
        lib.ccmem_plain_free(out[0])
        assert reserved()[0] == base
    finally:
        assert lib.ccmem_set_plaintext_budget(before) == lib.CCMEM_OK


RANDOM = r"""
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
/* GIVE bytes at a time, counting from 1, each second call interrupted; GIVE=0: refused. */
ssize_t getrandom(void *out, size_t n, unsigned flags)
{
    static unsigned char next = 1;
    static int interrupted;
    unsigned char *p = out;
    size_t most = (size_t)atoi(getenv("GIVE"));
    (void)flags;
    if (!most) {
        errno = ENOSYS;
        return -1;
    }
    if ((interrupted = !interrupted)) {
        errno = EINTR;
        return -1;
    }
    if (most < n)
        n = most;
    for (size_t i = 0; i < n; i++)
        p[i] = next++;
    return (ssize_t)n;
}
"""

GENERATE = """
import ctypes, os
os.urandom(1)
from pyccmem import Key, errors
from pyccmem.binding import ffi, lib
def identity(key):
    out = ffi.new("uint8_t[16]")
    assert lib.ccmem_key_id(key._opened(), out) == 0
    return bytes(ffi.buffer(out))
# Where the counter stands, whatever asked before.
ctypes.CDLL(None).getrandom.restype = ctypes.c_ssize_t
room = ctypes.create_string_buffer(1)
try:
    while (got := ctypes.CDLL(None).getrandom(room, 1, 0)) != 1:
        if os.environ["GIVE"] == "0":
            break
    start = room.raw[0]
    made = Key.generate()
except errors.EntropyError:
    print("refused")
else:
    wanted = bytes((start + 1 + i) % 256 for i in range(32))
    print("as given" if identity(made) == identity(Key.from_bytes(wanted)) else "something else")
"""


@pytest.fixture(scope="module")
def little_random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that stands in for getrandom(2)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stand-in random generator")
    directory = tmp_path_factory.mktemp("little_random")
    source, library = directory / "little_random.c", directory / "little_random.so"
    source.write_text(RANDOM)
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


@not_sanitized
@pytest.mark.parametrize("give", [1, 5, 31, 32])
def test_random_bytes_that_come_little_by_little(little_random: Path, give: int) -> None:
    """A key is made of as many as it needs, and of each once."""
    environment = support.child_environment(
        LD_PRELOAD=str(little_random), GIVE=str(give), PYTHONHASHSEED="0"
    )
    assert support.check_python(GENERATE, environment=environment) == "as given\n"


@not_sanitized
def test_no_random_bytes(little_random: Path) -> None:
    """Nothing is made of what was not given."""
    environment = support.child_environment(
        LD_PRELOAD=str(little_random), GIVE="0", PYTHONHASHSEED="0"
    )
    assert support.check_python(GENERATE, environment=environment) == "refused\n"


def test_the_last_version_is_used_once(key: Key) -> None:
    """Writers that meet at the last version: one gets it, and the others are refused, whatever each
    of them saw before it had the page to itself."""
    limit = 30
    for _ in range(40):
        with EncryptedBuffer(4096, key=key, _version_limit=limit) as buffer:
            written: list[int] = []

            def write(
                index: int, buffer: EncryptedBuffer = buffer, written: list[int] = written
            ) -> None:
                data = bytes([index + 1]) * (4096 if index % 2 else 100)
                while True:
                    try:
                        buffer.write(data)
                    except errors.VersionExhaustedError:
                        return
                    written.append(index)

            run_threads([lambda i=i: write(i) for i in range(4)])
            assert len(written) == limit and buffer.versions.tolist() == [limit]
            assert buffer.verify() == []


@pytest.mark.parametrize("short", [0, 100])
def test_the_last_version_is_used_up_meanwhile(key: Key, short: int) -> None:
    """By another thread, after a long write has found every page writable, and before it comes to
    its last one, which it covers as a whole or in part."""
    pages, threads = 2048, pyccmem.get_num_threads()
    data = bytes(pages * 4096 - short)
    pyccmem.set_num_threads(1)
    overtaken = 0
    try:
        for _ in range(50):
            with EncryptedBuffer(pages * 4096, key=key, _version_limit=2) as buffer:
                buffer.write(data)
                versions, _ = support.records(buffer)
                refused: list[bool] = []

                def long(buffer: EncryptedBuffer = buffer, refused: list[bool] = refused) -> None:
                    try:
                        buffer.write(data)
                    except errors.VersionExhaustedError:
                        refused.append(True)

                thread = threading.Thread(target=long)
                thread.start()
                while versions[0] == 1 and thread.is_alive():
                    pass
                try:
                    buffer.write(b"mine" * 1024, (pages - 1) * 4096)
                except errors.VersionExhaustedError:
                    thread.join()
                    continue  # too late
                thread.join()
                overtaken += 1
                # What was encrypted together with the last page was refused with it.
                found = buffer.versions.tolist()
                assert refused and found[0] == found[-1] == 2 == max(found)
                assert buffer.read((pages - 1) * 4096) == b"mine" * 1024
                assert buffer.verify() == []
                if overtaken == 3:
                    break
    finally:
        pyccmem.set_num_threads(threads)
    assert overtaken


NO_SLOT = """
from fault_injection import Injector
from pyccmem import Key, errors
from pyccmem.binding import lib
from pyccmem.safetensors._sealer import Sealer
key = Key.from_bytes(bytes(range(32)), require="secretmem")
held, injector = [Sealer(key, bytes(16), 4096)], Injector()
try:
    for _ in range(100_000):
        before = lib.ccmem_secret_slots()
        with injector.failing(1, later=True, kinds=["syscall"]):
            held.append(Sealer(key, bytes(16), 4096))
        assert lib.ccmem_secret_slots() == before + 1
except errors.PyccmemError:
    assert injector.failed == "syscall"
    print(lib.ccmem_secret_slots() - before, "more")
"""


@not_sanitized
@needs_secretmem
def test_a_key_without_a_place_for_its_subkey_goes_back(tmp_path: Path) -> None:
    """The last free slot holds the one, and no memory can be had for the other."""
    environment = fault_injection.environment(fault_injection.build(tmp_path))
    assert support.check_python(NO_SLOT, environment=environment) == "0 more\n"


ADVICE = """
import errno, sys
from fault_injection import Injector
from pyccmem import Key, errors
level, injector = sys.argv[1], Injector()
with injector.counting(["madvise"]):
    Key.generate(level=level).close()
advice = injector.seen
for n in range(1, advice + 1):
    with injector.failing(n, kinds=["madvise"], error=errno.EINVAL):
        try:
            Key.generate(level=level)
        except errors.SecretMemoryError:
            print("refused", end=" ")
print(advice)
"""


@not_sanitized
@pytest.mark.parametrize("level", ["mlock", pytest.param("secretmem", marks=needs_secretmem)])
def test_no_key_without_the_promises_of_the_kernel(level: str, tmp_path: Path) -> None:
    """Neither the advice about dumps nor that about children may be refused, and both are asked."""
    environment = fault_injection.environment(fault_injection.build(tmp_path))
    found = support.check_python(ADVICE, level, environment=environment)
    assert found == "refused refused 2\n"


LEVELS = """
from fault_injection import Injector
from pyccmem import Key
injector = Injector()
with injector.failing(1, kinds=["syscall"]):  # memfd_secret(2), so that mlock(2) has to do
    first = Key.generate()
same = Key.generate(require="mlock")
better = Key.generate(require="secretmem")
print(injector.failed, first.level, same.level, better.level)
"""


@not_sanitized
@needs_secretmem
def test_a_key_is_put_where_its_level_is(tmp_path: Path) -> None:
    """Not into memory that is there already, and was good enough for another key."""
    environment = fault_injection.environment(fault_injection.build(tmp_path))
    found = support.check_python(LEVELS, environment=environment)
    assert found == "syscall mlock mlock secretmem\n"
