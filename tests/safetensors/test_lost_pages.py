# SPDX-License-Identifier: Apache-2.0
"""Sealed files that are cut short, or whose file system fails, while they are open: every way to
read raises an error that names the file, in every thread; what cannot ends with a message."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import support
from fault_injection import build, environment
from foreign_handlers import foreign_library
from mapping_support import MECHANISMS, PRELUDE, every_mechanism

import pyccmem
from pyccmem import EncryptedTensor, errors, safetensors

pytestmark = [pytest.mark.skipif(not hasattr(mmap, "MAP_POPULATE"), reason="Linux")]

ROWS, WIDTH = 512, 1024
ROW = 4 * WIDTH  # one page


def plain() -> np.ndarray:
    return np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) / 1000


def opened(path: Path, key: pyccmem.Key) -> EncryptedTensor:
    safetensors.save_file({"weight": plain()}, path, key=key)
    return safetensors.load_file(path, key=key)["weight"]


def cut(path: Path, row: int) -> bytes:
    """Ends the file with the page before that row's; returns what it held."""
    whole = path.read_bytes()
    with safetensors.safe_open(path, key=support_key()) as file:
        start = file._placed["weight"][1].start
    os.truncate(path, start + row * ROW)
    return whole


def support_key() -> pyccmem.Key:
    return pyccmem.Key.from_bytes(support.KEY_BYTES)


VECTOR = np.ones(WIDTH, np.float32)

USES = {
    "read_into": lambda t: t._buffer.read_into(bytearray(ROWS * ROW)),
    "read": lambda t: t._buffer.read(400 * ROW, 100),
    "a row": lambda t: t[400],
    "rows": lambda t: t[[1, 400, 2, 411]],
    "a column": lambda t: t[:, 7],
    "numpy": lambda t: t.numpy() if hasattr(t, "numpy") else t[...],
    "verify": lambda t: t._buffer.verify(),
    "vector": lambda t: pyccmem.linear(VECTOR, t),
    "matrix": lambda t: pyccmem.linear(np.ones((40, WIDTH), np.float32), t),
    "@": lambda t: t @ VECTOR,
    "copy": lambda t: t.copy(key=support_key()),
    "open": lambda t: t.open("r").__enter__(),
    "prefault": lambda t: t.map(window="16KiB").prefault(slice(400, 404)),
    "pin": lambda t: t.map(window="64KiB").pin(slice(400, 404)).__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_names_the_file(key: pyccmem.Key, tmp_path: Path, use: str) -> None:
    path = tmp_path / "model.safetensors"
    tensor = opened(path, key)
    USES[use](tensor)  # the control: nothing is wrong with it
    whole = cut(path, 300)
    for _ in range(2):
        with pytest.raises(errors.FileReadError) as caught:
            USES[use](tensor)
        assert caught.value.filename == str(path) and str(path) in str(caught.value)
        assert "'weight'" in str(caught.value) and not isinstance(caught.value, ValueError)
    # What is still there can be read, and a page that was lost stays so until it is loaded again.
    assert np.array_equal(tensor[:300], plain()[:300])
    path.write_bytes(whole)
    with pytest.raises(errors.FileReadError):
        USES[use](tensor)
    again = safetensors.load_file(path, key=key)["weight"]
    assert np.array_equal(again[...], plain())
    USES[use](again)


def test_damage_is_not_a_lost_page(key: pyccmem.Key, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensor = opened(path, key)
    whole = bytearray(cut(path, 300))
    with pytest.raises(errors.FileReadError):
        tensor[400]
    size = path.stat().st_size
    path.write_bytes(whole[:size])  # through the page cache, which the mapping shows
    with open(path, "r+b") as file:
        file.seek(size - 10)
        byte = file.read(1)
        file.seek(size - 10)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(errors.IntegrityError, match="Page 299"):
        tensor[299]
    with pytest.raises(errors.FileReadError, match="Page 300"):
        tensor[300]
    with pytest.raises(errors.FileReadError):
        tensor._buffer.verify()


def test_a_file_cut_in_the_middle_of_reads(key: pyccmem.Key, tmp_path: Path) -> None:
    """Threads that read, in this process's pool and their own, see right values or the error."""
    path = tmp_path / "model.safetensors"
    tensor = opened(path, key)
    expected, wrong, lost, stop = plain(), [], [], threading.Event()

    def work(first: int) -> None:
        while not stop.is_set():
            try:
                for row in range(first, ROWS, 4):
                    if not np.array_equal(tensor[row], expected[row]):
                        wrong.append(row)
                if not np.array_equal(tensor[...], expected):
                    wrong.append(-1)
            except errors.FileReadError as error:
                lost.append(error.filename)
                return
            except BaseException as error:
                wrong.append(error)
                raise

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    cut(path, 200)
    for thread in threads:
        thread.join(60)
    stop.set()
    assert not wrong and lost == [str(path)] * 4


def test_names_that_are_hard_to_print(key: pyccmem.Key, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff b\n\x1b[1m.safetensors"))
    tensor = opened(path, key)
    cut(path, 300)
    with pytest.raises(errors.FileReadError) as caught:
        tensor[300]
    assert caught.value.filename == str(path)
    assert str(caught.value).isprintable()


def test_torch_in_its_own_threads(key: pyccmem.Key, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pyccmem.torch import load_file

    path = tmp_path / "model.safetensors"
    opened(path, key)
    weight = load_file(path, key=key)["weight"]
    x = torch.ones(3, WIDTH)
    expected = x @ torch.from_numpy(plain()).T
    assert torch.allclose(torch.nn.functional.linear(x, weight), expected)
    cut(path, 300)
    for rows in (1, 3, 64):
        with pytest.raises(errors.FileReadError) as caught:
            torch.nn.functional.linear(torch.ones(rows, WIDTH), weight)
        assert caught.value.filename == str(path)
    module = torch.nn.Linear(WIDTH, ROWS, bias=False)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(errors.FileReadError):
        module(x)


# ---- where nobody can be told ---------------------------------------------------------------

CHILD = f"""
import resource, sys
sys.path += [{os.path.dirname(__file__)!r}, {os.path.dirname(support.__file__)!r}]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{PRELUDE}
from pathlib import Path
import faulthandler
from test_lost_pages import cut, opened, support_key, plain, ROW
path, how = Path(sys.argv[2]), sys.argv[3]
tensor = opened(path, support_key())
if how == "faulthandler":
    faulthandler.enable()
if how == "python":
    signal.signal(signal.SIGBUS, lambda *_: None)
"""


@every_mechanism
def test_a_touch_through_a_mapping(tmp_path: Path, fault: str) -> None:
    script = """
with mapping_of(tensor, fault) as array:
    cut(path, 300)
    assert np.array_equal(array[:300], plain()[:300])
    print("before", flush=True)
    print(array[400, 0], flush=True)
"""
    path = tmp_path / "model\n\x1b.safetensors"
    done = support.run_python(CHILD + script, fault, str(path), "", timeout=60)
    assert done.stdout == "before\n", (done.stdout, done.stderr)
    shown = str(path).replace("\n", "?").replace("\x1b", "?")
    assert done.returncode == -signal.SIGABRT and f"from the file '{shown}'" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@support.not_sanitized  # the address sanitizer answers SIGBUS itself, with exit status 1
@pytest.mark.parametrize("how", ["plain", "faulthandler", "python"])
def test_a_view_of_the_ciphertext(tmp_path: Path, how: str) -> None:
    """Zeros must not pass for ciphertext with anybody who checks no tags. And no handler makes it
    loop for ever."""
    script = """
view = np.asarray(tensor._buffer.ciphertext)
view.sum()
cut(path, 300)
assert view[: 300 * ROW].any()
print("before", flush=True)
print(view[300 * ROW :].sum(), flush=True)
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(CHILD + script, "auto", str(path), how, timeout=60)
    assert done.stdout == "before\n", (done.stdout, done.stderr)
    assert done.returncode == -signal.SIGBUS, (done.returncode, done.stderr)
    assert done.stderr.count(f"sealed file '{path}' could not be had") == 1
    assert ("Fatal Python error: Bus error" in done.stderr) == (how == "faulthandler")


@pytest.mark.parametrize("how", ["faulthandler", "python"])
def test_handlers_that_are_set_later(tmp_path: Path, how: str) -> None:
    script = """
cut(path, 300)
try:
    tensor[400]
except errors.FileReadError as error:
    print(error.filename == str(path))
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(CHILD + script, "auto", str(path), how, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True\n"), (done.stdout, done.stderr)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_library(tmp_path_factory.mktemp("foreign"))


LATER = """
library = ctypes.CDLL(sys.argv[4])
def tell(use):
    try:
        use()
    except errors.FileReadError as error:
        print(error.filename == str(path), flush=True)
def threads():
    return len(os.listdir("/proc/self/task"))
"""


@support.not_sanitized
@pytest.mark.parametrize("use", ["tensor[400]", "tensor @ np.ones(1024, np.float32)",
                                 "np.asarray(tensor._buffer.ciphertext)[400 * ROW]"])  # fmt: skip
def test_a_library_that_ends_the_process_on_signals(
    foreign: Path, tmp_path: Path, use: str
) -> None:
    """A crash reporter that is started after the file was loaded, and tells nobody. Before the
    first use of pages, and 20 ms later, nothing of it is seen; a view has no caller, but still a
    message."""
    script = f"""
{LATER}
view = "ciphertext" in {use!r}
if len(sys.argv) > 5:  # not before the first use
    tensor[0]
    if view:
        tensor._buffer.ciphertext
assert library.set(1) == 0
cut(path, 300)
if sys.argv[5:] == ["a while"]:
    time.sleep(0.5)
print("before", flush=True)
tell(lambda: {use})
"""
    for when in ([], ["a while"]):
        path = tmp_path / f"model{len(when)}.safetensors"
        done = support.run_python(
            CHILD + script, "auto", str(path), "", str(foreign), *when, timeout=60
        )
        if "ciphertext" in use:
            assert (done.returncode, done.stdout) == (9, "before\n"), done
            assert f"sealed file '{path}' could not be had" in done.stderr
        else:
            assert (done.returncode, done.stdout) == (0, "before\nTrue\n"), (when, done)
            assert not done.stderr
    # The control, and what cannot be helped: at once after it was set, it is in front.
    path = tmp_path / "model.safetensors"
    done = support.run_python(
        CHILD + script, "auto", str(path), "", str(foreign), "at once", timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, "before\n", ""), done


@support.not_sanitized
def test_a_child_keeps_its_handler_in_front(foreign: Path, tmp_path: Path) -> None:
    """For a view that it inherits, though all that its parent's handlers were for is forgotten."""
    script = f"""
{LATER}
from pyccmem.binding import lib
view = np.asarray(tensor._buffer.ciphertext)
child = os.fork()
if not child:
    assert library.set(1) == 0
    assert lib.ccmem_signals_lead()
    cut(path, 300)
    view[400 * ROW]
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status))
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(CHILD + script, "auto", str(path), "", str(foreign), timeout=60)
    assert (done.returncode, done.stdout) == (0, "9\n"), done
    assert f"sealed file '{path}' could not be had" in done.stderr


@support.not_sanitized
@pytest.mark.parametrize("handler", [0, 2])
def test_a_library_whose_handler_returns(foreign: Path, tmp_path: Path, handler: int) -> None:
    """The access is repeated, for 20 ms and not for ever."""
    script = f"""
{LATER}
tensor[0]
assert library.set({handler}) == 0
cut(path, 300)
tell(lambda: tensor[400])
assert library.called() > 0, "the control: it was not in front"
time.sleep(0.3)
before = library.called()
tell(lambda: tensor[410])
assert library.called() == before, "it still is"
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(CHILD + script, "auto", str(path), "", str(foreign), timeout=60)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done


def test_the_thread_that_looks_comes_with_the_first_use(tmp_path: Path) -> None:
    """A process that loads a file for its children has none. A child that reads has its own."""
    script = """
def threads():
    return len(os.listdir("/proc/self/task"))
def settled(count):
    for _ in range(100):
        if threads() == count:
            return
        time.sleep(0.02)
    raise AssertionError((threads(), count))
from pyccmem import safetensors
if not os.fork():
    os._exit(0)
os.wait()  # a BLAS has no threads any more after a fork
alone = threads()
again = safetensors.load_file(path, key=support_key())["weight"]
assert threads() == alone
tensor[400]
assert threads() == alone + 1
child = os.fork()
if not child:
    os._exit(threads() - 1)
assert os.waitpid(child, 0)[1] == 0
again[300], tensor[1]
assert threads() == alone + 1, "one serves all files"
tensor.close()
assert threads() == alone + 1
again.close()
settled(alone)
with safetensors.safe_open(path, key=support_key(), mmap=False) as file:
    read = file.get_tensor("weight")
assert np.array_equal(read[400], plain()[400])
assert threads() == alone, "pages that were read into memory need none"
print("whole")
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(CHILD + script, "auto", str(path), "", timeout=60)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done


@support.not_sanitized
def test_no_thread_that_looks(foreign: Path, tmp_path: Path) -> None:
    """Where there is none to be had, each call looks itself."""
    library = build(tmp_path)
    script = f"""
{LATER}
from fault_injection import Injector
with Injector().failing(1, kinds=["pthread_create"], later=True) as injector:
    count = threads()
    tensor[0]
    assert injector.failed == "pthread_create" and threads() == count
assert library.set(1) == 0
cut(path, 300)
tell(lambda: tensor[400])
assert threads() == count
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(
        CHILD + script, "auto", str(path), "", str(foreign), environment=environment(library)
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done


@support.not_sanitized
def test_a_signal_of_something_else_is_passed_on(tmp_path: Path) -> None:
    """A file that is not pyccmem's, cut off while one of pyccmem's is open, ends the process."""
    script = """
import mmap
other = path.with_suffix(".other")
other.write_bytes(bytes(8192))
with open(other, "rb") as file:
    view = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_READ)
os.truncate(other, 0)
print("before", flush=True)
print(view[4096], flush=True)
"""
    path = tmp_path / "model.safetensors"
    done = support.run_python(CHILD + script, "auto", str(path), "", timeout=60)
    assert done.stdout == "before\n" and done.returncode == -signal.SIGBUS
    assert "pyccmem" not in done.stderr


def test_mappings_leave_nothing_behind(key: pyccmem.Key, tmp_path: Path) -> None:
    """Addresses of a file that was closed are nobody's: another mapping there is not answered."""
    path = tmp_path / "model.safetensors"
    safetensors.save_file({f"{i}": plain()[:8] for i in range(50)}, path, key=key)
    size = support.status_field("VmSize")
    for turn in range(20):
        tensors = safetensors.load_file(path, key=key)
        assert np.array_equal(tensors["49"][...], plain()[:8])
        for tensor in tensors.values():
            tensor.close()
        if turn == 5:
            size = support.status_field("VmSize")
    assert support.status_field("VmSize") - size < 4 << 20
    assert MECHANISMS


#: A fork of a large process takes long, and every lock that follows a fork is held meanwhile. The
#: function that is registered first runs last before a fork.
FORK = """
import ctypes, os, sys, threading, time

HANDLER = ctypes.CFUNCTYPE(None)
forking = threading.Event()

@HANDLER
def large():
    forking.set()
    time.sleep(0.5)

assert not ctypes.CDLL(None).__register_atfork(large, None, None, None)

import pyccmem
from pyccmem import errors, safetensors

path, hexadecimal, length = sys.argv[1:]
key = pyccmem.Key.from_bytes(bytes.fromhex(hexadecimal))
tensor = safetensors.load_file(path, key=key)["weight"]
tensor[0]
os.truncate(path, int(length))
found = []

def touch():
    forking.wait()
    try:
        tensor[400]
    except errors.FileReadError:
        found.append("told")

thread = threading.Thread(target=touch)
thread.start()
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
thread.join()
print(found)
"""


def test_a_page_that_is_lost_while_another_thread_forks(key: pyccmem.Key, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    opened(path, key).close()
    whole = cut(path, 300)
    short = path.stat().st_size
    path.write_bytes(whole)
    done = support.check_python(FORK, str(path), support.KEY_BYTES.hex(), str(short))
    assert done.strip() == "['told']"
