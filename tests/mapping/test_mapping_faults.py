# SPDX-License-Identifier: Apache-2.0
"""Mappings and the system: calls of the kernel, signals, forks, and how a process ends."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import support
from mapping_support import (
    BLOCK,
    LEAST,
    MECHANISMS,
    SIGNALS,
    assert_died,
    check,
    copies,
    every_mechanism,
    mapping_of,
    random_bytes,
    run,
    watchdog,
)

import pyccmem
from pyccmem import EncryptedBuffer, errors

# ---- system calls ---------------------------------------------------------------------------


@every_mechanism
def test_system_calls_on_what_is_absent(key: pyccmem.Key, fault: str, tmp_path: Path) -> None:
    data = random_bytes(20 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    mapping = mapping_of(buffer, fault, "r+")
    path = tmp_path / "file"
    with watchdog(), mapping as array, open(path, "wb+", buffering=0) as file:
        if mapping.kernel_access:
            assert file.write(array) == data.size
            assert path.read_bytes() == data.tobytes()
            file.seek(0)
            array[:] = 0
            assert file.readinto(memoryview(array)) == data.size
            assert np.array_equal(array, data)
            assert array.tofile(file) is None
        else:
            with pytest.raises(OSError, match="Bad address"):
                file.write(array)
            assert path.stat().st_size == 0
            path.write_bytes(bytes(data.size))
            with pytest.raises(OSError, match="Bad address"):
                file.readinto(memoryview(array))
            with pytest.raises(OSError):
                array.tofile(file)
    assert buffer.verify() == []
    assert mapping.stats()["kernel_access"] or buffer.read() == data.tobytes()


@every_mechanism
def test_system_calls_on_what_is_pinned(key: pyccmem.Key, fault: str, tmp_path: Path) -> None:
    data = random_bytes(20 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    mapping = mapping_of(buffer, fault, "r+", frames=8)
    path = tmp_path / "file"
    with (
        watchdog(),
        mapping,
        open(path, "wb+", buffering=0) as file,
        mapping.pin(slice(5 * BLOCK - 100, 8 * BLOCK)) as part,
    ):
        assert file.write(part) == part.size
        assert path.read_bytes() == part.tobytes()
        file.seek(0)
        part[:] = 0
        assert file.readinto(memoryview(part)) == part.size
        file.seek(0)
        assert np.array_equal(np.fromfile(file, np.uint8), part)
    assert buffer.read() == data.tobytes()


def test_only_the_first_page_absent_is_not_a_short_write(key: pyccmem.Key, tmp_path: Path) -> None:
    """Of a range whose second half is absent write(2) reports what it could copy, and says so."""
    data = random_bytes(20 * BLOCK)
    for fault in SIGNALS:
        buffer = EncryptedBuffer.from_data(data, key=key)
        mapping = mapping_of(buffer, fault)
        with mapping as array:
            assert array[0] == data[0]
            with open(tmp_path / "file", "wb", buffering=0) as file:
                try:
                    written = file.write(array[: 10 * BLOCK])
                except OSError:
                    written = 0
            assert (tmp_path / "file").read_bytes() == data[:written].tobytes()
            # The buffered layers repeat what was short, and meet the error.
            with pytest.raises(OSError, match="Bad address"), open(tmp_path / "file", "wb") as file:
                file.write(array[: 10 * BLOCK])


@every_mechanism
def test_reading_the_process_memory_opens_nothing(key: pyccmem.Key, fault: str) -> None:
    """What looks through /proc finds no more than what is resident, and starts no decryption."""
    data = random_bytes(20 * BLOCK)
    mapping = mapping_of(EncryptedBuffer.from_data(data, key=key), fault)
    with watchdog(), mapping as array:
        base = array.__array_interface__["data"][0]
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            found = b""
            for at in range(0, data.size, BLOCK):
                memory.seek(base + at)
                with contextlib.suppress(OSError):
                    found += memory.read(BLOCK)
        assert data[:16].tobytes() not in found
        assert mapping.stats()["fills"] <= (0 if not mapping.kernel_access else LEAST)


# ---- signals --------------------------------------------------------------------------------


@every_mechanism
def test_signals_between_faults(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(64 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    seen = []
    with watchdog(), mapping_of(buffer, fault, "r+") as array:

        def handler(*_: object) -> None:
            seen.append(int(array[len(seen) * 5 * BLOCK % data.size]))

        old = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            rounds = 0
            while len(seen) < 100:
                array += 1
                rounds += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert np.array_equal(array, data + np.uint8(rounds % 256))
    assert buffer.read() == (data + np.uint8(rounds % 256)).tobytes()


@every_mechanism
def test_interrupt_in_the_block(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer(64 * BLOCK, key=key)
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with watchdog(), pytest.raises(KeyboardInterrupt), mapping_of(buffer, fault, "r+") as array:
            array[0] = 1
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            while True:
                array[BLOCK:] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert buffer.read(0, 1) == b"\1" and buffer.verify() == []
    mapping_of(buffer, fault, "r+").close()


SEGV = "ctypes.string_at(8)"


@every_mechanism
@pytest.mark.parametrize("order", ["before", "between", "both", "mapped"])
def test_faulthandler(fault: str, order: str) -> None:
    """A fault elsewhere reaches the handlers that were there before, once, and ends the process."""
    done = run(
        f"""
        import faulthandler
        order = {order!r}
        data = random_bytes(20 * 4096)
        buffer = EncryptedBuffer.from_data(data, key=key)
        if order in ("before", "both"):
            faulthandler.enable()
        first = mapping_of(buffer, fault)
        if order in ("between", "mapped"):
            faulthandler.enable()
        if order == "both":
            faulthandler.disable()
            faulthandler.enable()
        second = mapping_of(buffer, fault) if order in ("between", "both") else first
        assert np.array_equal(first._array, data) and np.array_equal(second._array, data)
        print("before", flush=True)
        {SEGV}
        """,
        fault,
    )
    assert_died(done, signal.SIGSEGV)
    assert done.stderr.count("Fatal Python error: Segmentation fault") == 1, done.stderr[:4000]


@pytest.mark.parametrize("fault", SIGNALS)
@pytest.mark.parametrize("what", ["SIG_DFL", "SIG_IGN", "handler"])
def test_raised_signals_are_passed_on(fault: str, what: str) -> None:
    """SIGSEGV sent with kill(2) is no fault of a range's."""
    done = run(
        f"""
        what, seen = {what!r}, []
        number = signal.SIGBUS if fault == "uffd-signal" else signal.SIGSEGV
        handler = (lambda *_: seen.append(1)) if what == "handler" else getattr(signal, what)
        signal.signal(number, handler)
        data = random_bytes(20 * 4096)
        with mapping_of(EncryptedBuffer.from_data(data, key=key), fault) as array:
            assert np.array_equal(array, data)
            print("before", flush=True)
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert (what == "handler") == bool(seen)
            assert np.array_equal(array, data)
        sys.exit(7)
        """,
        fault,
    )
    number = signal.SIGBUS if fault == "uffd-signal" else signal.SIGSEGV
    assert done.returncode == (-number if what == "SIG_DFL" else 7), done.stderr
    assert done.stdout == "before\n"


# ---- forks ----------------------------------------------------------------------------------


@every_mechanism
@support.not_sanitized
def test_a_forked_child(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(20 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    mapping = mapping_of(buffer, fault, "r+")
    mark = 0xA7 + MECHANISMS.index(fault)  # freed memory holds what the tests before used
    with watchdog(), mapping as array:
        array[:BLOCK] = mark
        base = array.__array_interface__["data"][0]
        needle = bytes([mark]) * 128
        assert copies(needle) >= BLOCK // len(needle), "the scan finds nothing"

        def work() -> None:
            for call in (
                mapping.flush,
                mapping.prefault,
                mapping.stats,
                mapping.close,
                lambda: mapping.pin(0).__enter__(),
            ):
                with pytest.raises((errors.ForkError, errors.ClosedError)):
                    call()
            assert pyccmem.stats()["plaintext_resident"] == 0
            assert pyccmem.stats()["plaintext_reserved"] == 0
            assert copies(needle) < 8, "the parent's plaintext is in the child"
            with pyccmem.Key.generate() as own, EncryptedBuffer(9 * BLOCK, key=own) as other:
                with mapping_of(other, fault, "r+") as mine:
                    mine[:] = 3
                assert other.read() == b"\3" * other.nbytes

        support.in_forked_child(work)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            import faulthandler

            faulthandler.disable()
            array[BLOCK] = 1
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGSEGV
        assert base == array.__array_interface__["data"][0]
        assert (array[:BLOCK] == mark).all() and np.array_equal(array[BLOCK:], data[BLOCK:])
        array[-1] = data[-1] = 0x55
    data[:BLOCK] = mark
    assert buffer.read() == data.tobytes()


@every_mechanism
@support.not_sanitized
def test_forks_while_threads_fault(fault: str) -> None:
    check(
        """
        import mapping_support
        data = random_bytes(64 * 4096)
        buffer = EncryptedBuffer.from_data(data, key=key)
        bad, stop = [], []
        mapping = mapping_of(buffer, fault, "r+")
        with mapping_support.watchdog(50), mapping as array:
            def work(part):
                while not stop:
                    if not np.array_equal(array[part::4], data[part::4]):
                        bad.append(part)
                    array[part::4] += 0
            threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(40):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(10)
                    child = pyccmem.Key.generate()
                    own = EncryptedBuffer.from_data(data, key=child)
                    with mapping_of(own, fault, "r+") as mine:
                        os._exit(0 if np.array_equal(mine, data) else 3)
                status = os.waitpid(pid, 0)[1]
                assert status == 0, status
            stop.append(1)
            for thread in threads:
                thread.join()
            del array
        assert not bad and buffer.read() == data.tobytes()
        """,
        fault,
    )


# ---- the end of the process -----------------------------------------------------------------


@every_mechanism
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_changed_pages(key: pyccmem.Key, fault: str, mode: str) -> None:
    data = random_bytes(20 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    support.damage(buffer, 7)
    mapping = mapping_of(buffer, fault, mode, frames=8, read_ahead=False)
    with mapping as array:
        with pytest.raises(errors.IntegrityError, match="Page 7"):
            mapping.prefault(slice(7 * BLOCK, 9 * BLOCK))
        with pytest.raises(errors.IntegrityError, match="Page 7"):
            mapping.pin(slice(6 * BLOCK, 8 * BLOCK)).__enter__()
        assert np.array_equal(array[: 7 * BLOCK], data[: 7 * BLOCK])
        assert np.array_equal(array[8 * BLOCK :], data[8 * BLOCK :])
        assert mapping.stats()["resident"] <= 8 * BLOCK
        support.damage(buffer, 7)
        mapping.prefault(slice(7 * BLOCK, 9 * BLOCK))
        assert np.array_equal(array, data)


@every_mechanism
@pytest.mark.parametrize("walk", ["jump", "stream"])
def test_a_touch_of_a_changed_page_ends_the_process(fault: str, walk: str) -> None:
    done = run(
        f"""
        data = random_bytes(20 * 4096)
        buffer = EncryptedBuffer(data.size, key=key, name="the layer", page_size=4096)
        buffer.write(data)
        support.damage(buffer, 7)
        other = buffer.map().__enter__() if {walk!r} == "jump" else None
        with mapping_of(buffer, fault, frames=8) as array:
            assert array[0] == data[0]
            print("before", flush=True)
            got = array[7 * 4096] if {walk!r} == "jump" else array.tobytes()
            print("after", got, flush=True)
        """,
        fault,
    )
    assert_died(done, signal.SIGABRT)
    assert "page 7 of 'the layer'" in done.stderr, done.stderr


@every_mechanism
@pytest.mark.parametrize("resident", [0, 1])
def test_a_write_through_a_pointer_to_a_read_only_mapping(fault: str, resident: int) -> None:
    done = run(
        f"""
        buffer = EncryptedBuffer(20 * 4096, key=key, name="fixed", page_size=4096)
        with mapping_of(buffer, fault) as array:
            if {resident}:
                assert array[5] == 0
            pointer = ctypes.c_uint8.from_address(array.__array_interface__["data"][0] + 5)
            print("before", flush=True)
            pointer.value = 1
            time.sleep(0.1)
            pointer.value = 1
            print("after", flush=True)
        """,
        fault,
    )
    ends = {"uffd-signal": signal.SIGBUS, "sigsegv": signal.SIGSEGV}.get(fault, signal.SIGABRT)
    assert_died(done, ends)
    assert fault in SIGNALS or "read-only mapping of 'fixed'" in done.stderr


@every_mechanism
def test_versions_used_up(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer(20 * BLOCK, key=key, _version_limit=3)
    for n in range(3):
        with mapping_of(buffer, fault, "r+") as array:
            array[2 * BLOCK] = array[0] = n + 1
    with pytest.raises(errors.VersionExhaustedError), mapping_of(buffer, fault, "r+") as array:
        array[2 * BLOCK] = 99
        array[9 * BLOCK] = 98
    assert buffer.read(2 * BLOCK, 1) == b"\3" and buffer.read(9 * BLOCK, 1) == b"\x62"
    with mapping_of(buffer, fault) as array:
        assert array[2 * BLOCK] == 3
