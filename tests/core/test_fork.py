# SPDX-License-Identifier: Apache-2.0
"""Keys and buffers do not follow a fork, nothing breaks because of one, nothing survives a kill."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import in_forked_child

import pyccmem
from pyccmem import EncryptedBuffer, Key, errors, hazmat
from pyccmem.binding import lib

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # Python 3.12 warns of a fork in a process with threads, which is what is tested here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

DATA = bytes(range(256)) * 300

USES: dict[str, Callable[[EncryptedBuffer, Key], Any]] = {
    "read": lambda b, k: b.read(),
    "read part": lambda b, k: b.read(5, 10),
    "read nothing": lambda b, k: b.read(0, 0),
    "read_into": lambda b, k: b.read_into(bytearray(100)),
    "read_into nothing": lambda b, k: b.read_into(bytearray()),
    "write": lambda b, k: b.write(b"x"),
    "write nothing": lambda b, k: b.write(b""),
    "ciphertext": lambda b, k: b.ciphertext,
    "versions": lambda b, k: b.versions,
    "stats": lambda b, k: b.stats(),
    "verify": lambda b, k: b.verify(),
    "new buffer": lambda b, k: EncryptedBuffer(100, key=k),
    "from_data": lambda b, k: EncryptedBuffer.from_data(b"x", key=k),
    "key as context": lambda b, k: k.__enter__(),
}


@pytest.fixture
def buffer(key: Key, cipher: str) -> EncryptedBuffer:
    made = EncryptedBuffer(len(DATA), key=key, cipher=cipher)
    made.write(DATA)
    return made


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_in_a_child_is_a_fork_error(
    buffer: EncryptedBuffer, key: Key, use: Callable
) -> None:
    def child() -> None:
        for _ in range(3):
            with pytest.raises(errors.ForkError, match="fork"):
                use(buffer, key)

    in_forked_child(child)
    assert buffer.read() == DATA
    if buffer.authenticated or use is not USES["verify"]:
        use(buffer, key)


def test_a_key_derives_nothing_in_a_child(native_units: ctypes.CDLL) -> None:
    """Whoever calls has asked for the key's process before; that the key itself asks again is the
    last that stands between a mistake there and an access to memory that a child does not have."""
    native_units.unit_derive_in_a_child.argtypes = (ctypes.c_void_p,)
    native_units.unit_key_free.argtypes = (ctypes.c_void_p,)
    key = ctypes.c_void_p()
    assert native_units.unit_key_new(ctypes.byref(key)) == lib.CCMEM_OK
    try:
        assert native_units.unit_derive_in_a_child(key) == lib.CCMEM_ERR_FORK
    finally:
        native_units.unit_key_free(key)


def test_a_fork_error_says_what_to_do(buffer: EncryptedBuffer, key: Key) -> None:
    def child() -> None:
        for use in (USES["read"], USES["new buffer"]):
            try:
                use(buffer, key)
            except errors.ForkError as error:
                assert "process" in str(error) and str(error).endswith("."), error

    in_forked_child(child)


def test_outputs_stay_untouched_in_a_child(buffer: EncryptedBuffer) -> None:
    def child() -> None:
        out = bytearray(b"\x5a" * len(DATA))
        with pytest.raises(errors.ForkError):
            buffer.read_into(out)
        assert out == b"\x5a" * len(DATA)

    in_forked_child(child)


def test_what_needs_no_key_works_in_a_child(buffer: EncryptedBuffer, key: Key) -> None:
    def child() -> None:
        assert repr(buffer) and repr(key) and len(buffer) == len(DATA)
        assert buffer.page_size == 4096 and not key.closed
        sealed = hazmat.xts_encrypt(bytes(range(32)), bytes(16), bytes(100))
        assert hazmat.xts_decrypt(bytes(range(32)), bytes(16), sealed) == bytes(100)
        assert pyccmem.stats()["buffers"] == 0
        assert pyccmem.selftest()["tier"] == pyccmem.cpu_info()["tier"]

    in_forked_child(child)


def test_a_child_makes_its_own(buffer: EncryptedBuffer, key: Key) -> None:
    """Also with native threads, which the child does not inherit."""
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(3)
    big = os.urandom(6 << 20)
    with EncryptedBuffer.from_data(big, key=key) as shared:
        assert shared.read() == big

        def child() -> None:
            with Key.generate() as own, EncryptedBuffer(len(big), key=own) as mine:
                assert own.level == key.level
                for _ in range(3):
                    mine.write(big)
                    assert mine.read() == big
                with pytest.raises(errors.ForkError):
                    shared.read()

        for _ in range(3):
            in_forked_child(child)
            assert shared.read() == big
    pyccmem.set_num_threads(before)


def test_closing_and_collecting_in_a_child_does_not_disturb_the_parent() -> None:
    key = Key.generate()
    buffer = EncryptedBuffer.from_data(DATA, key=key)
    view = buffer.ciphertext
    stored = bytes(view)
    holder = [key, buffer, view]
    del key, buffer, view

    def child() -> None:
        fresh = [Key.generate() for _ in range(20)]
        holder[1].close()
        holder[0].close()
        with pytest.raises(errors.ClosedError):
            holder[1].read()
        holder.clear()
        gc.collect()
        more = [EncryptedBuffer(10_000, key=k) for k in fresh]
        for made in more:
            made.write(b"own")
            assert made.read(0, 3) == b"own"

    for _ in range(3):
        in_forked_child(child)
    key, buffer, view = holder
    assert buffer.read() == DATA and bytes(view) == stored
    with EncryptedBuffer(100, key=key) as another:
        another.write(b"parent")
        assert another.read(0, 6) == b"parent"
    buffer.close()
    key.close()


@pytest.mark.parametrize("level", ["mlock", None])
def test_a_key_closed_in_a_child_leaves_the_keys_there_alone(level: str | None) -> None:
    """The child's own may lie where the parent's lies in the parent."""
    keys = [Key.generate(level=level) for _ in range(20)]

    def child() -> None:
        own = [Key.generate(level=level) for _ in range(60)]
        before = [key.id for key in own]
        assert len(set(before)) == len(own)
        for key in keys:
            key.close()
        own += [Key.generate(level=level) for _ in range(20)]
        after = [key.id for key in own]
        assert after[: len(before)] == before and len(set(after)) == len(own)

    before = [key.id for key in keys]
    in_forked_child(child)
    assert [key.id for key in keys] == before
    for key in keys:
        key.close()


def test_a_child_exits_normally_through_the_interpreter(tmp_path: Path) -> None:
    """sys.exit in a child runs every destructor; the parent goes on."""
    script = """
import os, sys, pyccmem
key = pyccmem.Key.generate()
b = pyccmem.EncryptedBuffer(1 << 20, key=key)
b.write(b"y" * (1 << 20))
view = b.ciphertext
for number in range(5):
    pid = os.fork()
    if pid == 0:
        try:
            b.read()
        except pyccmem.errors.ForkError:
            sys.exit(40 + number)
        sys.exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 40 + number
    assert b.read() == b"y" * (1 << 20)
print("parent done")
"""
    assert support.check_python(script) == "parent done\n"


def test_grandchildren(buffer: EncryptedBuffer) -> None:
    def grandchild_of(own: EncryptedBuffer) -> Callable[[], None]:
        def grandchild() -> None:
            for inherited in (buffer, own):
                with pytest.raises(errors.ForkError):
                    inherited.read()
            with Key.generate() as fresh, EncryptedBuffer.from_data(b"gc", key=fresh) as mine:
                assert mine.read() == b"gc"

        return grandchild

    def child() -> None:
        with Key.generate() as fresh, EncryptedBuffer.from_data(b"c", key=fresh) as own:
            in_forked_child(grandchild_of(own))
            assert own.read() == b"c"
            in_forked_child(grandchild_of(own))

    in_forked_child(child)
    assert buffer.read() == DATA


def test_many_children_at_once(buffer: EncryptedBuffer) -> None:
    pids = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                buffer.read()
            except errors.ForkError:
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    assert buffer.read() == DATA


def test_forks_while_threads_read_and_write() -> None:
    """The child may inherit any lock in any state; it must neither hang nor crash."""
    script = """
import os, random, sys, threading, time
import pyccmem
from pyccmem import Key, EncryptedBuffer, errors
pyccmem.set_num_threads(2)
key = Key.generate()
b = EncryptedBuffer(3 << 20, key=key)
stop = False
def work(seed):
    seed = random.Random(seed)
    data = seed.randbytes(2 << 20)
    while not stop:
        b.write(data, seed.randrange(1 << 20))
        b.read(seed.randrange(1 << 20), 2 << 20)
        Key.generate().close()
        EncryptedBuffer(100, key=key).close()
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for t in threads: t.start()
failed = 0
for number in range(40):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            try:
                b.read(0, 100)
            except errors.ForkError:
                with Key.generate() as own, EncryptedBuffer(3 << 20, key=own) as mine:
                    mine.write(b"z" * (3 << 20))
                    if mine.read() == b"z" * (3 << 20):
                        status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: break
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            status = os.waitpid(pid, 0)[1]
            print("child", number, "hung", flush=True)
            break
        time.sleep(0.001)
    failed += status != 0
stop = True
for t in threads: t.join()
sys.exit(failed)
"""
    done = support.run_python(
        script, environment=support.child_environment(PYTHONWARNINGS="ignore")
    )
    assert done.returncode == 0, done.stdout + done.stderr


def spawned(connection: Any, nbytes: int) -> None:
    """Runs in a spawned process, which has imported pyccmem anew."""
    with Key.generate() as own, EncryptedBuffer(nbytes, key=own) as mine:
        data = os.urandom(nbytes)
        mine.write(data)
        connection.send(mine.read() == data)
    connection.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing(method: str, key: Key) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no start method {method}")
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=spawned, args=(theirs, 100_000))
    process.start()
    assert ours.poll(60) and ours.recv() is True
    process.join(60)
    assert process.exitcode == 0
    for secret in (key, EncryptedBuffer(10, key=key)):
        with pytest.raises(errors.NotPicklableError):
            context.Process(target=print, args=(secret,)).start()


def test_children_started_by_subprocess_see_nothing(buffer: EncryptedBuffer) -> None:
    """No descriptor is inherited, whatever close_fds says."""
    listing = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; print([os.readlink('/proc/self/fd/' + f) for f in "
            "os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + f)])",
        ],
        close_fds=False,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "secretmem" not in listing and "memfd" not in listing
    assert buffer.read() == DATA


def leftovers() -> set[str]:
    """Files and shared memory that a killed process could leave."""
    found: set[str] = set()
    for directory in ("/dev/shm", "/tmp", "/var/tmp", "/run/shm"):
        if os.path.isdir(directory):
            found.update(f"{directory}/{name}" for name in os.listdir(directory))
    with open("/proc/sysvipc/shm", encoding="ascii") as segments:
        found.update(f"shm {line.split()[1]}" for line in segments if line.split()[1].isdigit())
    return found


def test_kill_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 in the middle of a write, 5 times; the machine is as it was."""
    if not os.path.exists("/proc/sysvipc/shm"):
        pytest.skip("needs /proc/sysvipc/shm")
    script = """
import os, pyccmem
key = pyccmem.Key.generate()
b = pyccmem.EncryptedBuffer(32 << 20, key=key)
data = os.urandom(32 << 20)
b.write(data)
print("ready", flush=True)
while True:
    b.write(data)
"""
    before = leftovers()
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env=support.child_environment(),
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        process.stdout.close()
    assert not list(tmp_path.iterdir())
    ours = {name for name in leftovers() - before if "ccmem" in name or name.startswith("shm")}
    assert not ours


def test_signals_during_a_long_read(key: Key) -> None:
    """Handlers run after the native call, in the main thread; the read is complete and right."""
    nbytes = 48 << 20
    data = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        with EncryptedBuffer.from_data(data, key=key) as buffer:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for _ in range(5):
                out = np.zeros(nbytes, np.uint8)
                buffer.read_into(out)
                buffer.write(out)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert (out == data).all() and seen
            assert buffer.read_into(out) == nbytes and (out == data).all()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_control_c_during_reads_and_writes() -> None:
    """KeyboardInterrupt surfaces between calls, and the buffer is whole afterwards."""
    script = """
import os, signal, sys, threading, time
import numpy as np
import pyccmem
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs ignore it
key = pyccmem.Key.generate()
n = 32 << 20
a, z = np.full(n, 1, np.uint8), np.full(n, 2, np.uint8)
b = pyccmem.EncryptedBuffer.from_data(a, key=key)
out = np.empty(n, np.uint8)
for attempt in range(8):
    timer = threading.Timer(0.01 + 0.003 * attempt, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()  # here: on a busy machine it may be up before this thread goes on
        while True:
            b.write(z if attempt % 2 else a)
            b.read_into(out)
    except KeyboardInterrupt:
        pass
    timer.join()
    b.read_into(out)
    pages = out.reshape(-1, 4096)
    assert (pages == pages[:, :1]).all(), "a torn page"
    assert b.versions.min() == b.versions.max(), "a write stopped half way"
b.write(a); b.read_into(out)
assert (out == a).all()
print("whole")
"""
    assert support.check_python(script) == "whole\n"
