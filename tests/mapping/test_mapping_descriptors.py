# SPDX-License-Identifier: Apache-2.0
"""A program that closes descriptors that are not its own while a mapping is open, as daemons do
with all that they do not know: every touch is answered as before, no other file is touched, and
what keeps the mapping's descriptor keeps no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import support
from fault_injection import build, environment
from mapping_support import MECHANISMS, PRELUDE, check, every_mechanism

pytestmark = support.not_sanitized

UFFD = [name for name in MECHANISMS if name.startswith("uffd")]
with_userfaultfd = pytest.mark.parametrize("fault", UFFD)

#: In a child.
BEGIN = """
import fcntl
BLOCK, BLOCKS = 4096, 60
data = random_bytes(BLOCKS * BLOCK)
buffer = EncryptedBuffer.from_data(data, key=key)
alone = len(os.listdir("/proc/self/task"))

def close_all():
    os.closerange(3, 4096)

def others():
    # Files that get the numbers: another's userfaultfd, and some of every day.
    found = [os.open("/dev/null", os.O_RDWR), *os.pipe()]
    number = ctypes.CDLL(None).syscall(323, os.O_CLOEXEC | 1)  # userfaultfd(2), user mode only
    return found + ([number] if number >= 0 else []) + [os.open(__file__, os.O_RDONLY)
        if "__file__" in globals() else os.open("/proc/self/status", os.O_RDONLY) for _ in range(6)]

def identities(numbers):
    return [(os.fstat(n).st_dev, os.fstat(n).st_ino) for n in numbers]

def settled(count):
    for _ in range(100):
        if len(os.listdir("/proc/self/task")) == count:
            return
        time.sleep(0.02)
    raise AssertionError(os.listdir("/proc/self/task"))
"""


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("mode", ["r", "r+"])
@every_mechanism
def test_every_touch_is_answered(fault: str, mode: str, reused: bool) -> None:
    out = check(
        BEGIN
        + """
mode, reused = sys.argv[2], sys.argv[3] == "True"
before = os.listdir("/proc/self/fd")
for ahead in (False, True):
    mapping = mapping_of(buffer, fault, mode, frames=6, read_ahead=ahead)
    with mapping as array:
        assert array[5] == data[5]
        close_all()
        files = others() if reused else []
        known = identities(files)
        model = data.copy()
        for block in (0, 40, 3, 59, 0, 17, 3):
            at = block * BLOCK + 100
            assert np.array_equal(array[at : at + 500], model[at : at + 500]), block
            if mode == "r+":
                array[at : at + 300] = model[at : at + 300] = block
        found = []
        def work():
            found.append(np.array_equal(array, model))
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert found == [True] * 4, found
        mapping.prefault(slice(10 * BLOCK, 12 * BLOCK))
        with mapping.pin(slice(20 * BLOCK, 20 * BLOCK + 50)) as part:
            assert np.array_equal(part, model[20 * BLOCK : 20 * BLOCK + 50])
        if mode == "r+":
            mapping.flush()
            array += 1
            model += 1
        begun = time.monotonic()
    assert time.monotonic() - begun < 5, "the end took long"
    assert identities(files) == known, "a file that is not ours was closed"
    for number in files:
        os.close(number)
    assert buffer.read() == model.tobytes()
    data = model
assert len(os.listdir("/proc/self/fd")) == len(before), os.listdir("/proc/self/fd")
settled(alone)
print("whole")
""",
        fault,
        mode,
        str(reused),
    )
    assert out == "whole\n"


@with_userfaultfd
def test_mappings_that_are_made_afterwards(fault: str) -> None:
    """They get the number of the one that is still open, whose touches they must not swallow."""
    out = check(
        BEGIN
        + """
arrays, mappings = [], []
for _ in range(4):
    mappings.append(mapping_of(buffer, fault, read_ahead=False))
    arrays.append(mappings[-1].__enter__())
    assert arrays[-1][0] == data[0]
    close_all()
for _ in range(2):
    for block in range(BLOCKS):
        for array in arrays:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            assert np.array_equal(array[part], data[part]), block
for mapping in (mappings[1], mappings[3], mappings[0], mappings[2]):
    mapping.close()
settled(alone)
print("whole")
""",
        fault,
    )
    assert out == "whole\n"


@with_userfaultfd
def test_the_keeper_keeps_nothing_else(fault: str) -> None:
    """No connection stays open because of it, no lock of the program is dropped, and its thread
    ends with the last mapping."""
    out = check(
        BEGIN
        + """
import tempfile
read_end, write_end = os.pipe()
file = tempfile.NamedTemporaryFile()
fcntl.lockf(file, fcntl.LOCK_EX)

def tables():
    # Of the threads that do not have the program's: a file that is opened now tells.
    probe = os.open("/dev/null", os.O_RDONLY)
    found = []
    for task in os.listdir("/proc/self/task"):
        links = {}
        for number in os.listdir(f"/proc/self/task/{task}/fd"):
            try:
                links[int(number)] = os.readlink(f"/proc/self/task/{task}/fd/{number}")
            except FileNotFoundError:
                pass  # of listdir() itself
        if links.get(probe) != "/dev/null":
            found.append(sorted(link.split("[")[0] + link.split("[")[-1][:11]
                                for link in links.values()))
    os.close(probe)
    return found

assert tables() == []
mappings = [mapping_of(buffer, fault) for _ in range(3)]
kept, = tables()
assert kept == ["anon_inode:userfaultfd"] * 3 + [kept[-1]] and kept[-1].startswith("socket:"), kept
os.close(write_end)
assert os.read(read_end, 1) == b"", "a copy of the other end is open"
script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
import subprocess
def locked():
    done = subprocess.run([sys.executable, "-c", script, file.name], capture_output=True)
    return b"BlockingIOError" in done.stderr
assert locked()
mappings[1].close()
kept, = tables()
assert len(kept) == 3, kept
mappings[0].close(), mappings[2].close()
settled(alone)
assert tables() == [] and locked()
fcntl.lockf(file, fcntl.LOCK_UN)
assert not locked(), "the control of locked()"
print("whole")
""",
        fault,
    )
    assert out == "whole\n"


@with_userfaultfd
def test_a_forked_child_leaves_it_alone(fault: str) -> None:
    out = check(
        BEGIN
        + """
with mapping_of(buffer, fault, read_ahead=False) as array:
    assert array[0] == data[0]
    child = os.fork()
    if not child:
        close_all()
        with pyccmem.Key.generate() as other, EncryptedBuffer.from_data(data, key=other) as own:
            with mapping_of(own, fault) as again:
                close_all()
                os._exit(0 if np.array_equal(again, data) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(array, data)
    close_all()
    assert np.array_equal(array, data)
print("whole")
""",
        fault,
    )
    assert out == "whole\n"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fault_injection"))


CONTROL = """
from fault_injection import Injector
# The thread's own table is only claimed (userfaultfd(2) is the first call): it has the program's.
with Injector().failing(2, kinds=["syscall"], later=True, lie=True):
    mapping = mapping_of(buffer, fault, read_ahead=False)
with mapping as array:
    assert array[5] == data[5]
    close_all()
    print("equal" if np.array_equal(array, data) else
          "zeros" if not array[50 * BLOCK :].any() else "neither", flush=True)
    os._exit(0)
"""


@pytest.mark.skipif("uffd-signal" not in MECHANISMS, reason="no userfaultfd that sends signals")
def test_without_a_table_of_its_own_the_loss_is_seen(library: Path) -> None:
    """The control: closing is what takes the descriptor away, and the values tell."""
    out = support.check_python(
        PRELUDE + BEGIN + CONTROL, "uffd-signal", environment=environment(library)
    )
    assert out == "zeros\n"


@with_userfaultfd
def test_a_refused_table_is_a_refused_mechanism(library: Path, fault: str) -> None:
    """Where the system has no close_range(2), or forbids it, no mapping goes without a keeper."""
    script = """
from fault_injection import Injector
files = len(os.listdir("/proc/self/fd"))
injector = Injector()
refused = 0
for kind in ("syscall", "socketpair", "sendmsg", "recvmsg"):
    for n in (1, 2, 3):
        try:
            with injector.failing(n, kinds=[kind]):
                mapping = mapping_of(buffer, fault)
        except errors.FaultMechanismError:
            refused += 1
        else:
            with mapping as array:
                close_all()
                assert np.array_equal(array, data)
        settled(alone)
        assert len(os.listdir("/proc/self/fd")) == files
    if kind != "syscall":
        with injector.failing(1, kinds=[kind], later=True):
            with mapping_of(buffer, "auto") as array:
                assert np.array_equal(array, data)
print("refused", refused)
"""
    out = support.check_python(PRELUDE + BEGIN + script, fault, environment=environment(library))
    assert out.startswith("refused") and int(out.split()[1]) >= 4, out
