# SPDX-License-Identifier: Apache-2.0
"""The plaintext budget, what is counted, and what really lies in memory."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import support
from mapping_support import (
    BLOCK,
    LEAST,
    MECHANISMS,
    PRELUDE,
    every_mechanism,
    mapping_of,
    random_bytes,
    watchdog,
)

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, audit, errors

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_budget() -> Iterator[None]:
    """Every test begins and ends without a bound."""
    gc.collect()
    pyccmem.set_plaintext_budget(None)
    yield
    pyccmem.set_plaintext_budget(None)


def taken() -> int:
    """Bytes that the budget has given out."""
    return int(pyccmem.stats()["plaintext_reserved"])


# ---- the bound ------------------------------------------------------------------------------


def test_setting() -> None:
    assert pyccmem.get_plaintext_budget() is None
    pyccmem.set_plaintext_budget("3MiB")
    assert pyccmem.get_plaintext_budget() == 3 * MIB == pyccmem.stats()["plaintext_budget"]
    pyccmem.set_plaintext_budget(taken() or 1)
    for wrong in (0, -1, "much", "", 1.5, True, b"1"):
        with pytest.raises(errors.PyccmemError):
            pyccmem.set_plaintext_budget(wrong)  # type: ignore[arg-type]
    pyccmem.set_plaintext_budget(None)
    assert pyccmem.get_plaintext_budget() is None


@every_mechanism
def test_windows(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer(100 * BLOCK, key=key)
    before = taken()
    pyccmem.set_plaintext_budget(before + 20 * BLOCK)
    with mapping_of(buffer, fault, frames=12) as array:
        assert taken() == before + 12 * BLOCK
        with pytest.raises(errors.PlaintextBudgetError):
            mapping_of(buffer, fault, frames=9)
        with pytest.raises(errors.PlaintextBudgetError):
            pyccmem.set_plaintext_budget(before + 12 * BLOCK - 1)
        assert pyccmem.get_plaintext_budget() == before + 20 * BLOCK
        with mapping_of(buffer, fault, frames=8) as other:
            assert not array.any() and not other.any()
        assert taken() == before + 12 * BLOCK
    assert taken() == before
    pyccmem.set_plaintext_budget(before + LEAST * BLOCK - 1)
    with pytest.raises(errors.PlaintextBudgetError):
        mapping_of(buffer, fault)
    assert taken() == before


def test_arrays_and_opens(key: pyccmem.Key) -> None:
    tensor = EncryptedTensor.from_numpy(np.ones((1024, 1024), "f4"), key=key)
    before = taken()
    pyccmem.set_plaintext_budget(before + 2 * MIB)
    with pytest.raises(errors.PlaintextBudgetError):
        tensor[...]
    with pytest.raises(errors.PlaintextBudgetError), tensor.open():
        pass
    assert taken() == before
    with tensor.map(window="1MiB") as array:
        assert array.sum() == 1 << 20
        part = tensor[:200]
        assert part.sum() == 200 * 1024 and taken() >= before + MIB + part.nbytes
        with pytest.raises(errors.PlaintextBudgetError):
            tensor[:300]
    del part, array
    gc.collect()
    pyccmem.set_plaintext_budget(None)
    with tensor.open() as whole:
        assert whole.sum() == 1 << 20


@every_mechanism
def test_a_window_that_takes_all_of_it(key: pyccmem.Key, fault: str) -> None:
    """Nothing that a mapping does later needs more."""
    data = random_bytes(40 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    pyccmem.set_plaintext_budget(taken() + 2 * LEAST * BLOCK)
    mapping = mapping_of(buffer, fault, "r+", frames=2 * LEAST)
    with mapping as array:
        array += 1
        mapping.prefault()
        with mapping.pin(slice(0, 2 * BLOCK)) as part:
            part[0] = 7
            mapping.flush()
            part[0] += 1
        mapping.flush()
    data += 1
    data[0] = 8
    assert buffer.read_into(array_of := bytearray(data.size)) == data.size
    assert array_of == data.tobytes()


def test_counts(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer.from_data(random_bytes(40 * BLOCK), key=key)
    before = pyccmem.stats()
    mapping = mapping_of(buffer, mode="r+", frames=8)
    with mapping as array:
        array[::BLOCK] += 1
        now, own = pyccmem.stats(), mapping.stats()
        assert now["plaintext_resident"] == before["plaintext_resident"] + own["resident"]
        assert now["plaintext_reserved"] == before["plaintext_reserved"] + own["window"]
        time.sleep(0.1)
        later = pyccmem.stats()["plaintext_byte_seconds"]
        grown = later - now["plaintext_byte_seconds"]
        assert 0.09 * own["resident"] <= grown <= 10 * own["resident"]
        assert now["plaintext_peak"] >= own["peak"] > 0
    own, after = mapping.stats(), pyccmem.stats()
    for name in ("faults", "fills", "read_ahead", "evictions", "write_backs"):
        assert after[f"map_{name}"] - before[f"map_{name}"] == own[name], name
    assert own["resident"] == 0 and after["plaintext_resident"] == before["plaintext_resident"]
    assert own["fills"] >= 40 and own["evictions"] >= 32 and own["write_backs"] >= 40
    quiet = pyccmem.stats()["plaintext_byte_seconds"]
    time.sleep(0.02)
    if not after["plaintext_resident"]:
        assert pyccmem.stats()["plaintext_byte_seconds"] == pytest.approx(quiet, abs=1)


@support.not_sanitized
def test_a_child_counts_from_zero(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer(40 * BLOCK, key=key)
    pyccmem.set_plaintext_budget(taken() + 64 * MIB)
    limit = pyccmem.get_plaintext_budget()
    with mapping_of(buffer) as array:
        assert not array.any()

        def work() -> None:
            stats = pyccmem.stats()
            assert pyccmem.get_plaintext_budget() == limit
            for name in ("reserved", "resident", "peak", "byte_seconds"):
                assert stats[f"plaintext_{name}"] == 0, name
            assert stats["map_fills"] == 0

        support.in_forked_child(work)


# ---- what lies in memory --------------------------------------------------------------------


SCANNING = (
    PRELUDE
    + """
buffer = EncryptedBuffer.from_data(random_bytes(1 << 22), key=key)
mapping = mapping_of(buffer, fault, frames=16)
with mapping as array:
    print(array.ctypes.data, flush=True)
    while True:
        array.sum()
"""
)


@every_mechanism
@support.not_sanitized
def test_residency_during_a_scan(fault: str) -> None:
    """1,000 times the process is stopped, all its threads at once, and the pages of the range that
    are present are counted."""
    child = subprocess.Popen(
        [sys.executable, "-c", SCANNING, fault],
        env=support.child_environment(),
        stdout=subprocess.PIPE,
    )
    samples = []
    try:
        assert child.stdout
        base = int(child.stdout.readline())
        with watchdog(), open(f"/proc/{child.pid}/pagemap", "rb", buffering=0) as pagemap:
            while len(samples) < 1000:
                os.kill(child.pid, signal.SIGSTOP)
                os.waitpid(child.pid, os.WUNTRACED)
                pagemap.seek(base // 4096 * 8)
                entries = np.frombuffer(pagemap.read((4 * MIB) // 4096 * 8), "<u8")
                held = np.flatnonzero(entries >> np.uint64(63))
                samples.append((len(held), int(held[0]) if len(held) else -1))
                os.kill(child.pid, signal.SIGCONT)
                time.sleep(0.0005)
    finally:
        child.kill()
        child.communicate()
    assert max(count for count, _ in samples) * 4096 <= 16 * BLOCK
    assert sum(count for count, _ in samples) > 1000
    assert len({first for _, first in samples}) > 20, "the scan went on in between"


SCAN = (
    PRELUDE
    + """
def load():  # not through a buffer, which would keep a part
    data = np.empty(os.path.getsize(sys.argv[2]) // 4, "f4")
    with open(sys.argv[2], "rb", buffering=0) as file:
        assert file.readinto(memoryview(data).cast("B")) == data.nbytes
    return data
data = load()
tensor = EncryptedTensor.from_numpy(data, key=key)
data[:] = 0
if sys.argv[3] == "plain":
    held = load()
else:
    mapping = mapping_of(tensor, fault, frames=16)
    array = mapping.__enter__()
    total = array.sum()
    if sys.argv[3] == "after":
        del array
        mapping.close()
del data
print("ready", flush=True)
sys.stdin.readline()
"""
)


@support.not_sanitized
@pytest.mark.parametrize("fault", MECHANISMS)
def test_the_scanner(fault: str, tmp_path: Path) -> None:
    st = pytest.importorskip("safetensors.numpy")
    data = np.random.default_rng(8).standard_normal(2 * MIB // 4).astype("f4")
    (tmp_path / "data").write_bytes(data.tobytes())
    st.save_file({"weight": data}, tmp_path / "data.safetensors")
    found = {}
    for state in ("plain", "open", "after"):
        child = subprocess.Popen(
            [sys.executable, "-c", SCAN, fault, str(tmp_path / "data"), state],
            env=support.child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert child.stdout and child.stdout.readline() == b"ready\n"
            os.kill(child.pid, signal.SIGSTOP)
            samples = audit.samples_from_safetensors(tmp_path / "data.safetensors", count=2000)
            report = audit.scan(child.pid, samples)
            found[state] = report.found
        finally:
            child.kill()
            child.communicate()
    share = 16 * BLOCK / data.nbytes
    assert found["plain"] == 2000, "the scanner does not see what lies in the clear"
    assert found["open"] <= 2000 * share * 2, found
    assert found["after"] == 0, found


# ---- leaks ----------------------------------------------------------------------------------


@every_mechanism
@support.not_sanitized
def test_nothing_is_left(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer.from_data(random_bytes(20 * BLOCK), key=key)

    def work(n: int) -> None:
        for i in range(n):
            with mapping_of(buffer, fault, "r+" if i % 2 else "r") as array:
                array[:: 2 * BLOCK].sum()
            with pytest.raises(errors.ArgumentError):
                mapping_of(buffer, fault, frames=1)

    work(100)
    before, threads = support.resources(), len(os.listdir("/proc/self/task"))
    work(500)
    after = support.resources()
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert grown[0] < 2 * MIB and grown[1] <= 0 and grown[2] <= 0 and grown[3] <= 3, grown
    assert len(os.listdir("/proc/self/task")) <= threads


@every_mechanism
def test_failures_give_everything_back(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer(20 * BLOCK, key=key)
    before = taken()
    with mapping_of(buffer, fault, "r+"):
        for _ in range(50):
            with pytest.raises(errors.MappingConflictError):
                mapping_of(buffer, fault)
    for _ in range(3):
        held = [mapping_of(buffer, fault) for _ in range(100)]
        assert taken() == before + 100 * LEAST * BLOCK
        for mapping in held:
            mapping.close()
    assert taken() == before


# ---- where userfaultfd is forbidden ---------------------------------------------------------

FORBID = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
# ld nr; jeq userfaultfd -> EPERM; else allow
code = b"".join(struct.pack("<HBBI", *i) for i in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 323), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
held = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("n", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(4, ctypes.addressof(held))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    print("refused"); raise SystemExit(0)
real_open = os.path.exists("/dev/userfaultfd")
"""


def test_without_userfaultfd(tmp_path: Path) -> None:
    script = (
        PRELUDE.replace("fault = sys.argv[1]", "").replace(
            "from mapping_support", FORBID + "\nfrom mapping_support"
        )
        + """
from mapping_support import MECHANISMS
data = random_bytes(40 * 4096 + 5)
buffer = EncryptedBuffer.from_data(data, key=key)
mapping = buffer.map(window="64KiB", mode="r+")
with mapping as array:
    assert np.array_equal(array, data)
    array += 1
    name = mapping.stats()["mechanism"]
assert buffer.read() == (data + np.uint8(1)).tobytes()
if not real_open:
    assert MECHANISMS == ["sigsegv"] and name == "sigsegv", (MECHANISMS, name)
    os.environ["PYCCMEM_FAULT"] = "uffd"
    try:
        buffer.map()
    except errors.FaultMechanismError as error:
        assert "uffd" in str(error) and "PYCCMEM_FAULT" in str(error)
    else:
        raise SystemExit("mapped without userfaultfd")
print("done", name)
"""
    )
    out = support.check_python(script).split()
    if out == ["refused"]:
        pytest.skip("no seccomp filter may be installed here")
    assert out[0] == "done"
