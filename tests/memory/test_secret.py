# SPDX-License-Identifier: Apache-2.0
"""Secret memory: key bytes are nowhere a dump, a child or /proc/PID/mem would show them.

A child holds keys and buffers; this process, which knows the keys, searches all of the child's
readable memory. The child never learns the bytes by any way but pyccmem's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import support
from secret_search import (
    WITH_LIMIT,
    WITHOUT_MEMFD_SECRET,
    child,
    find,
    inverse_mix_columns,
    mappings,
    needs_secretmem,
    round_keys,
    secretmem_works,
    secrets_of,
    skip_without,
)
from support import check_python, child_environment, ffi, linux_only, not_sanitized

import pyccmem
from pyccmem import errors

pytestmark = linux_only


def test_the_key_schedule_of_this_test_is_right() -> None:
    """FIPS 197, A.1 and A.3: the last round keys of the examples."""
    last = round_keys(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))[-1]
    assert last.hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"
    key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
    assert round_keys(bytes.fromhex(key))[-1].hex() == "fe4890d1e6188d0b046df344706c631e"
    # FIPS 197, B: the state after MixColumns in round 1 of the example, and before it.
    mixed = bytes.fromhex("046681e5e0cb199a48f8d37a2806264c")
    assert inverse_mix_columns(mixed).hex() == "d4bf5d30e0b452aeb84111f11e2798e5"


# ---- the searches ------------------------------------------------------------------------------

#: Loads the key file, then uses it in every way, from several threads; holds a plain control.
HOLDER = """
import random, sys, threading
import numpy as np
import pyccmem
from pyccmem import Key, EncryptedBuffer
path, control, action = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3]
seed = random.Random(1)
pyccmem.set_num_threads(2)
keys = [Key.from_file(path) for _ in range(3)]
buffers = [EncryptedBuffer(3 << 20, key=keys[0], cipher=cipher, page_size=size)
           for cipher in ("aegis-128x2", "aes-128-xts", "aes-256-xts", "sm4-xts")
           for size in (4096, 65536)]
def use():
    out = np.empty(3 << 20, np.uint8)
    for buffer in buffers:
        buffer.write(bytes(range(256)) * (3 << 12))
        buffer.read_into(out)
        for _ in range(200):
            at = seed.randrange(3 << 20)
            n = min(seed.choice((1, 16, 64, 5000)), (3 << 20) - at)
            buffer.read(at, n)
            buffer.write(bytes(n), at)
        buffer.stats(), buffer.versions, repr(buffer), repr(keys)
threads = [threading.Thread(target=use) for _ in range(2)]
for thread in threads: thread.start()
use()
for thread in threads: thread.join()
if action == "close":
    for thing in (*buffers, *keys): thing.close()
kept = bytearray(control)
del control
print("ready", flush=True)
input()
assert action == "close" or buffers[0].read(0, 4) is not None
"""


@pytest.fixture
def secret_file(tmp_path: Path) -> tuple[Path, bytes]:
    key = os.urandom(32)
    path = tmp_path / "key"
    path.write_bytes(key)
    path.chmod(0o600)
    return path, key


@not_sanitized
@pytest.mark.parametrize("action", ["hold", "close"])
@pytest.mark.parametrize(("name", "memory"), support.TIERS_IN_SECRET_MEMORY)
def test_no_key_in_ordinary_memory(
    fixed_random: dict[str, str],
    secret_file: tuple[Path, bytes],
    memory: str,
    action: str,
    name: str,
) -> None:
    """No part of a key schedule in heap, stacks or anything but the secret mappings, which
    memfd_secret hides altogether; and after close() not in those either."""
    if memory == "secretmem" and not secretmem_works():
        pytest.skip("this kernel gives no memfd_secret memory")
    path, key = secret_file
    control = os.urandom(32)
    # LD_BIND_NOW: the dynamic linker's lazy resolver saves all vector registers on the stack, and
    # what is in them between two calls of other libraries is not this test's matter.
    script = HOLDER if memory == "secretmem" else WITHOUT_MEMFD_SECRET + HOLDER
    environment = fixed_random | {"PYCCMEM_TIER": name, "LD_BIND_NOW": "1"}
    with child(script, str(path), control.hex(), action, environment=environment) as pid:
        found = find(pid, secrets_of(key) | {"control": control})
    assert any(what == "control" for what, _ in found), "the search itself finds nothing"
    ordinary, locked = [], []
    for what, mapping in found:
        if what != "control":
            if {"lo", "dd", "dc"} <= mapping.flags:
                locked.append(what)
            else:
                ordinary.append(f"{what} in {mapping.name or hex(mapping.start)}")
    assert not ordinary, f"in ordinary memory: {sorted(set(ordinary))}"
    if memory == "secretmem" or action == "close":
        assert not locked, f"in locked memory: {sorted(set(locked))}"
    else:
        assert any(what.startswith("root") for what in locked), "the search misses locked memory"
        assert any("K1" in what for what in locked)
        assert any("inverse" in what for what in locked)
        assert any(what.startswith("aegis") for what in locked)
        assert any(what.startswith("sm4-xts/4096 second round") for what in locked)


@pytest.mark.parametrize("memory", ["secretmem", "mlock"])
def test_secret_memory_is_neither_dumped_nor_inherited(
    secret_file: tuple[Path, bytes], memory: str
) -> None:
    """VmFlags lo (locked), dd (not dumped), dc (not copied on fork); the ciphertext is ordinary."""
    if memory == "secretmem" and not secretmem_works():
        pytest.skip("this kernel gives no memfd_secret memory")
    path, _ = secret_file
    script = HOLDER if memory == "secretmem" else WITHOUT_MEMFD_SECRET + HOLDER
    with child(script, str(path), "00" * 32, "hold") as pid:
        protected = [m for m in mappings(pid) if {"lo", "dd", "dc"} <= m.flags]
        descriptors = [
            os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")
        ]
    secret = [m for m in protected if "secretmem" in m.name]
    if memory == "secretmem":
        assert secret
        assert len(secret) == len(protected)
    else:
        assert protected and not secret
        assert all(m.locked == m.end - m.start for m in protected)
    assert not any("secretmem" in name for name in descriptors), "a descriptor is left open"


@not_sanitized
def test_plaintext_is_not_left_behind(tmp_path: Path) -> None:
    """What is read into a buffer the caller wipes is nowhere afterwards, nor what was written."""
    script = """
import sys
import numpy as np
import pyccmem
pyccmem.set_num_threads(2)
size = 2 << 20
with open(sys.argv[1], "rb", buffering=0) as file:
    data = np.empty(size, np.uint8)
    file.readinto(data)
key = pyccmem.Key.generate()
kept = []
for cipher in ("aegis-128x2", "aes-128-xts", "aes-256-xts", "sm4-xts"):
    for page_size in (4096, 65536):
        b = pyccmem.EncryptedBuffer(size, key=key, cipher=cipher, page_size=page_size)
        b.write(data)
        b.write(data[4000:70000], 4000)   # partial pages: read, change, write
        out = np.empty(size, np.uint8)
        b.read_into(out)
        assert (out == data).all()
        out[:] = 0
        for at in range(0, size, 4097):
            part = out[: min(300, size - at)]
            b.read_into(part, at)
            part[:] = 0
        kept.append(b)
data[:] = 0
print("ready", flush=True)
input()
"""
    path = tmp_path / "data"
    blocks = [os.urandom(16) for _ in range(8)]
    path.write_bytes(b"".join(blocks) * ((2 << 20) // 128))
    with child(script, str(path), environment=child_environment(LD_BIND_NOW="1")) as pid:
        found = find(pid, {str(i): block for i, block in enumerate(blocks)})
    where = [(what, mapping.name) for what, mapping in found]
    assert not where, f"plaintext is left in {where}"


# ---- levels ------------------------------------------------------------------------------------


@needs_secretmem
def test_secretmem_is_used_where_it_can_be_had() -> None:
    with pyccmem.Key.generate(require="secretmem") as key:
        assert key.level == "secretmem"
        with pyccmem.EncryptedBuffer(100, key=key) as buffer:
            assert buffer.level == "secretmem"
    assert pyccmem.stats()["level"] == "secretmem"


@pytest.mark.parametrize("errno", [38, 1, 12], ids=["ENOSYS", "EPERM", "ENOMEM"])
def test_fallback_to_mlock(errno: int) -> None:
    """Reported, usable, and refused where secretmem is required."""
    script = (
        WITHOUT_MEMFD_SECRET.replace("forbid(447, 38)", f"forbid(447, {errno})")
        + """
from pyccmem import Key, EncryptedBuffer, errors, stats
for make in (Key.generate, lambda **k: Key.from_bytes(bytes(32), **k)):
    for require in (None, "mlock"):
        with make(require=require) as key, EncryptedBuffer(9999, key=key) as buffer:
            assert key.level == buffer.level == "mlock", key.level
            assert "mlock" in repr(key)
            buffer.write(b"works", 4094)
            assert buffer.read(4094, 5) == b"works"
    try:
        make(require="secretmem")
    except (errors.SecretMemoryError, errors.OutOfMemoryError) as error:
        print(type(error).__name__, error)
    else:
        raise AssertionError("secretmem cannot be had, yet the key was made")
assert stats()["level"] == "mlock"
"""
    )
    done = support.run_python(script)
    skip_without(done, "no seccomp filter may be installed here")
    if errno != 12:
        assert done.stdout.count("SecretMemoryError") == 2
        assert "'mlock'" in done.stdout and "secretmem" in done.stdout


def test_no_secret_memory_at_all_is_an_error() -> None:
    """Neither memfd_secret nor mlock nor madvise: no key is handed out in unprotected memory."""
    mlock = {"x86_64": 149, "aarch64": 228}.get(os.uname().machine)
    if mlock is None:
        pytest.skip("the number of mlock(2) is not known for this architecture")
    for errno, names in ((12, ("LockedMemoryError", "OutOfMemoryError")), (38, None)):
        script = (
            WITHOUT_MEMFD_SECRET
            + f"""
forbid({mlock}, {errno})
from pyccmem import Key, errors, stats
for make in (Key.generate, lambda: Key.from_bytes(bytes(32))):
    try:
        make()
    except errors.PyccmemError as error:
        print(type(error).__name__, error)
    else:
        raise AssertionError("a key in memory that is not locked")
assert stats()["level"] == "none"
"""
        )
        done = support.run_python(script)
        skip_without(done, "no seccomp filter may be installed here")
        if names:
            assert done.stdout.split()[0] in names


# ---- RLIMIT_MEMLOCK ----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", WITHOUT_MEMFD_SECRET], ids=["best", "mlock"])
def test_a_limit_of_zero_is_an_error_that_names_it(prefix: str) -> None:
    script = (
        prefix
        + WITH_LIMIT
        + """
limit(0)
for make in (Key.generate, lambda: Key.from_bytes(bytes(32))):
    try:
        make()
    except errors.LockedMemoryError as error:
        assert isinstance(error, MemoryError)
        assert "RLIMIT_MEMLOCK" in str(error), error
    else:
        raise AssertionError("a key was made without any locked memory")
"""
    )
    skip_without(support.run_python(script), "no seccomp filter may be installed here")


@pytest.mark.parametrize("prefix", ["", WITHOUT_MEMFD_SECRET], ids=["best", "mlock"])
@pytest.mark.parametrize("nbytes", [16 << 10, 64 << 10, 256 << 10])
@pytest.mark.parametrize(("cipher", "slot"), [("aegis-128x2", 256), ("aes-256-xts", 1024)])
def test_the_limit_bounds_keys_and_loses_none(
    prefix: str, nbytes: int, cipher: str, slot: int
) -> None:
    """At the limit: LockedMemoryError; what exists goes on working, and room freed is used."""
    script = (
        prefix
        + WITH_LIMIT
        + f"""
limit({nbytes})
keys, buffers = [], []
try:
    while len(keys) < 100_000:
        keys.append(Key.from_bytes(bytes(range(32))))
except errors.LockedMemoryError as error:
    assert "RLIMIT_MEMLOCK" in str(error) and "KiB" in str(error), error
assert 2 < len(keys) < {nbytes} // 240, len(keys)
assert len({{key.level for key in keys}}) == 1
for _ in range(3):
    for key in keys: key.close()
    keys = [Key.from_bytes(bytes(32)) for _ in keys]
for key in keys: key.close()
key = Key.generate()
try:
    while len(buffers) < 100_000:
        buffers.append(EncryptedBuffer(100, key=key, cipher={cipher!r}))
        buffers[-1].write(len(buffers).to_bytes(4, "little"))
except errors.LockedMemoryError as error:
    assert "RLIMIT_MEMLOCK" in str(error), error
assert 2 < len(buffers) <= {nbytes} // {slot}, len(buffers)
for number, buffer in enumerate(buffers, 1):
    assert buffer.read(0, 4) == number.to_bytes(4, "little")
count = len(buffers)
while buffers: buffers.pop().close()
for _ in range(3):
    again = [EncryptedBuffer(100, key=key, cipher={cipher!r}) for _ in range(count)]
    del again
"""
    )
    skip_without(support.run_python(script), "no seccomp filter may be installed here")


def test_level_is_an_error_name_in_the_tree() -> None:
    assert issubclass(errors.LockedMemoryError, errors.OutOfMemoryError)
    assert issubclass(errors.SecretMemoryError, errors.PyccmemError)


# ---- the level that a user chooses, and what is left when nothing is used -----------------------


SECRET_MAPPINGS = """
import gc
def secret():
    gc.collect()
    with open("/proc/self/maps") as file:
        return sum("secretmem" in line for line in file)
def locked():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmLck")).split()[1])
"""


@not_sanitized
@pytest.mark.parametrize("level", ["mlock", pytest.param("secretmem", marks=needs_secretmem)])
def test_secret_memory_goes_back_when_the_last_key_is_closed(level: str) -> None:
    """A system does not hibernate while a process has secretmem, so none may stay mapped."""
    check_python(
        SECRET_MAPPINGS
        + """
import sys, numpy as np
from pyccmem import Arena, EncryptedBuffer, EncryptedTensor, Key
level = sys.argv[1]
for _ in range(3):
    assert secret() == 0 and locked() == 0, (secret(), locked())
    key = Key.generate(level=level)
    buffers = [EncryptedBuffer(5, key=key, cipher=c) for c in ("aegis-128x2", "aes-256-xts")]
    arena = Arena(key=key)
    tensor = EncryptedTensor.from_numpy(np.ones(5), arena=arena)
    assert {key.level, arena.level, *(b.level for b in buffers)} == {level}
    assert (secret() > 0) == (level == "secretmem") and locked() > 0
    key.close()
    for buffer in buffers:
        buffer.close()
    arena.close()
    assert locked() > 0, "the tensor's key is there"
    tensor.close()
    del arena, tensor, key, buffers, buffer
assert secret() == 0 and locked() == 0, (secret(), locked())
""",
        level,
    )


@not_sanitized
@needs_secretmem
def test_a_closed_key_leaves_its_place_wiped_and_free() -> None:
    """While another key keeps the memory mapped, which only this process itself can look at."""
    raw, rounds = os.urandom(32), 15 * 16  # AES-256: the key is its first two round keys

    def places() -> dict[int, bytes]:
        found = {}
        for mapping in mappings(os.getpid()):
            if "secretmem" in mapping.name:
                size = mapping.end - mapping.start
                memory = ffi.buffer(ffi.cast("char *", mapping.start), size)
                for match in re.finditer(re.escape(raw), memory):
                    at = match.start()
                    found[mapping.start + at] = bytes(memory[at : at + rounds])
        return found

    with pyccmem.Key.generate(), pyccmem.Key.from_bytes(raw) as key:
        ((place, schedule),) = places().items()
        assert schedule[-16:] != bytes(16)
        key.close()
        assert bytes(ffi.buffer(ffi.cast("char *", place), rounds)) == bytes(rounds)
        with pyccmem.Key.from_bytes(raw):
            assert places() == {place: schedule}


@not_sanitized
@needs_secretmem
def test_mlock_can_be_chosen_where_there_is_better() -> None:
    check_python(
        SECRET_MAPPINGS
        + """
import os, pyccmem
from pyccmem import EncryptedBuffer, Key, errors
best = Key.generate()
assert best.level == "secretmem"
before = secret()
keys = [Key.generate(level="mlock"), Key.from_bytes(bytes(32), level="mlock"),
        Key.from_passphrase("x", salt=bytes(16), n=2, level="mlock")]
keys.append(keys[0]._unwrap(keys[0]._wrap(best)))
assert [key.level for key in keys] == ["mlock"] * 4 and secret() == before
assert EncryptedBuffer(9, key=keys[0]).level == "mlock" and secret() == before
assert Key.generate(require="mlock").level == "secretmem"  # at least
assert Key.generate(level="secretmem", require="mlock").level == "secretmem"
os.environ["PYCCMEM_SECRET"] = "mlock"
assert Key.generate().level == "mlock"
assert Key.generate(require="secretmem").level == "secretmem"
os.environ["PYCCMEM_SECRET"] = "none"
for call in (Key.generate, lambda: Key.from_bytes(bytes(32))):
    try:
        call()
    except errors.ConfigError as error:
        assert "PYCCMEM_SECRET='none'" in str(error)
    else:
        raise SystemExit("not refused")
del os.environ["PYCCMEM_SECRET"]
for options in ({"level": "none"}, {"level": 1}, {"level": "mlock", "require": "secretmem"}):
    try:
        Key.generate(**options)
    except (errors.ArgumentError, errors.ArgumentTypeError) as error:
        assert "level" in str(error)
    else:
        raise SystemExit(options)
"""
    )
