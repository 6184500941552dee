# SPDX-License-Identifier: Apache-2.0
"""Every system call and allocation of a mapping fails once, at each point, by every mechanism: an
error or success, the right values, never a hang, a lost write or something left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import support
from fault_injection import build, environment
from mapping_support import MECHANISMS, PRELUDE, every_mechanism

pytestmark = support.not_sanitized

SCRIPT = f"""
{PRELUDE}
import faulthandler
from fault_injection import Injector
from pyccmem.errors import PyccmemError

mode, what = sys.argv[2], sys.argv[3]
BLOCK, BLOCKS = 16384, 14
injector = Injector()
start = random_bytes(BLOCKS * BLOCK, 1)

class Wrong(Exception):
    pass

def same(found, expected, where):
    if not np.array_equal(found, expected):
        raise Wrong(where)

def tries(call):
    # What raises must be ours, and can be done again where one call fails.
    try:
        return call()
    except PyccmemError:
        return call() if what != "later" else None

def left():
    return (
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        pyccmem.stats()["plaintext_reserved"],
        pyccmem.stats()["plaintext_resident"],
    )

def scenario(**how):
    model = start.copy()
    with EncryptedBuffer.from_data(start, key=key) as buffer:
        with injector.failing(**how):
            try:
                mapping = mapping_of(buffer, fault, mode, frames=5, block=BLOCK)
            except PyccmemError:
                return "refused"
            with mapping as array:
                for block in (0, 7, 0, 3, 12, 9, 4, 7, 13):
                    at = block * BLOCK + 4000
                    same(array[at : at + 500], model[at : at + 500], ("jump", block))
                    if mode == "r+":
                        array[at : at + 300] = model[at : at + 300] = block + 1
                if mode == "r+":
                    tries(mapping.flush)
                    same(np.frombuffer(buffer.read(), np.uint8), model, "flush")
                    array += 1
                    model += 1
                tries(lambda: mapping.prefault(slice(5 * BLOCK, 7 * BLOCK)))
                pinned = mapping.pin(slice(2 * BLOCK, 2 * BLOCK + 10))
                try:
                    pinned.__enter__()
                except PyccmemError:
                    pinned = None
                for block in range(BLOCKS):
                    at = block * BLOCK
                    same(array[at : at + BLOCK], model[at : at + BLOCK], ("stream", block))
                if mode == "r+":
                    array[::777] = model[::777] = 0
                if pinned:
                    pinned.__exit__(None, None, None)
        same(np.frombuffer(buffer.read(), np.uint8), model, "the end")
    return "done"

assert scenario(nth=0) == "done"
time.sleep(0.2)  # a thread that is joined may show for a moment
before = left()
points = injector.seen
print("points", points, flush=True)
"""

SWEEP = """
outcomes = set()
partial = what == "partial"
kinds = ["ioctl"] if partial else None
with injector.counting(kinds):
    pass
scenario(nth=0, kinds=kinds)
points = injector.seen
for n in range(1, points + points // 8 + 2):
    print("at", n, flush=True)
    faulthandler.dump_traceback_later(30, exit=True)
    result = scenario(nth=n, kinds=kinds, partial=partial)
    faulthandler.cancel_dump_traceback_later()
    outcomes.add(result)
    if left() != before:
        time.sleep(0.2)
        assert left() == before, (n, injector.failed, result, left(), before)
assert "done" in outcomes, outcomes
print("whole", points, flush=True)
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fault_injection"))


def sweep(library: Path, script: str, *arguments: str, timeout: float = 300) -> list[str]:
    done = support.run_python(
        SCRIPT + script, *arguments, environment=environment(library), timeout=timeout
    )
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[-3000:])
    return done.stdout.splitlines()


@every_mechanism
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_one_call_fails(library: Path, fault: str, mode: str) -> None:
    last = sweep(library, SWEEP, fault, mode, "whole")[-1]
    assert last.startswith("whole") and int(last.split()[1]) > 60, last


@pytest.mark.parametrize("fault", [name for name in MECHANISMS if name.startswith("uffd")])
def test_one_call_ends_half_way(library: Path, fault: str) -> None:
    last = sweep(library, SWEEP, fault, "r+", "partial")[-1]
    assert last.startswith("whole") and int(last.split()[1]) > 20, last


LIES = """
# Each call that moves or protects memory claims to have done it: the scenario has to notice some.
import signal
kinds = {"uffd-copy": ["ioctl", "mremap"], "sigsegv": ["mprotect", "mremap"]}.get(fault, ["ioctl"])
scenario(nth=0, kinds=kinds)
points, noticed = injector.seen, 0
for n in range(8, points, max(points // 5, 1)):
    pid = os.fork()
    if pid == 0:
        key = pyccmem.Key.generate()
        status = 0
        try:
            signal.alarm(1)  # a touch that nobody answers
            scenario(nth=n, kinds=kinds, lie=True)
        except (Wrong, PyccmemError):
            status = 3
        finally:
            os._exit(status)
    noticed += os.waitpid(pid, 0)[1] != 0
print("noticed", noticed, flush=True)
"""


@every_mechanism
def test_the_scenario_notices_what_was_not_done(library: Path, fault: str) -> None:
    last = sweep(library, LIES, fault, "r+", "lies")[-1]
    assert last.startswith("noticed") and int(last.split()[1]) > 0, last


LATER = """
# From some call on all fail: the end is an exception of ours, or a message and SIGABRT.
import signal
first, last, step = map(int, sys.argv[4:])
for n in range(first, min(points, last) + 2, step):
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        key = pyccmem.Key.generate()
        os.dup2(write_end, 2)
        status = 1
        try:
            signal.alarm(60)
            scenario(nth=n, later=True, without=["write"])
            status = 0
        except PyccmemError:
            status = 0
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as file:
        text = file.read().decode()
    status = os.waitpid(pid, 0)[1]
    told = status == signal.SIGABRT and text.startswith("pyccmem: ")
    assert status == 0 or told, (n, status, text)
print("whole", flush=True)
"""


@every_mechanism
def test_all_later_calls_fail(library: Path, fault: str) -> None:
    assert sweep(library, LATER, fault, "r+", "later", "1", "1000000", "13")[-1] == "whole"


@pytest.mark.full
@every_mechanism
def test_all_later_calls_fail_from_each_on(library: Path, fault: str) -> None:
    last = sweep(library, LATER, fault, "r+", "later", "1", "1000000", "1", timeout=1200)[-1]
    assert last == "whole"
