# SPDX-License-Identifier: Apache-2.0
"""The library that makes calls of the native module fail does what its head promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import support
from fault_injection import build, environment

pytestmark = support.not_sanitized


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fault_injection"))


def test_calls_fail_as_asked(library: Path) -> None:
    support.check_python(
        """
import errno, os
import pyccmem
from pyccmem import errors
from fault_injection import Injector

injector = Injector()

def operation():
    with pyccmem.Key.generate() as key, pyccmem.EncryptedBuffer(100, key=key) as buffer:
        return buffer.read()

operation()  # what is made once for a process is there from now on
with injector.counting() as calls:
    assert operation() == bytes(100)
points = calls.seen
assert points > 10 and calls.failed is None, points
with injector.counting(["getrandom"]) as calls:
    operation()
randoms = calls.seen
assert 0 < randoms < points
with injector.counting(without=["getrandom"]) as calls:
    operation()
assert calls.seen == points - randoms

# One fails, and what follows does not; Python's own calls never do.
outcomes = []
for n in range(1, points + 2):
    with injector.failing(n):
        with open("/dev/null") as file:
            file.read()
        try:
            operation()
            outcomes.append(injector.failed)
        except errors.PyccmemError as error:
            outcomes.append(type(error))
assert outcomes[-1] is None, "there is no such call"
assert errors.EntropyError in outcomes and errors.OutOfMemoryError in outcomes, outcomes
assert operation() == bytes(100)

with injector.failing(1, kinds=["getrandom"], error=errno.EINTR) as calls:
    try:
        operation()
    except errors.EntropyError:
        pass
assert calls.failed == "getrandom"
with injector.failing(1, kinds=["getrandom", "syscall", "open", "read"], later=True) as calls:
    try:
        operation()
        raise AssertionError("no random bytes could be had")
    except errors.PyccmemError:
        pass
""",
        environment=environment(library),
        timeout=60,
    )


def test_time_passes_while_all_calls_fail(library: Path) -> None:
    """By the module's clock, which never goes back: what it waits for ends, and a test need not
    wait as long."""
    support.check_python(
        """
import pyccmem
from pyccmem import errors
from pyccmem._lib import ffi, lib
from fault_injection import Injector

injector = Injector()
room = ffi.new("uint8_t[]", 4096)

def looks():
    # Seconds that the module finds between two looks at its clock, one right after the other. It is
    # the least of some: another program may run between the two.
    return min(lib.ccmem_measure_plain_read(room, len(room)) for _ in range(20))

def refused():
    try:
        pyccmem.Key.generate().close()
    except errors.PyccmemError:
        return True
    return False

assert 0 <= looks() < 0.01
with injector.failing(1, kinds=["getrandom"]):  # once, and then no more
    assert refused() and looks() < 0.01
with injector.failing(1, kinds=["getrandom"], later=True):
    assert looks() < 0.01, "nothing has failed"
    assert refused()
    assert 0.02 <= looks() < 0.03
assert 0 <= looks() < 0.01
""",
        environment=environment(library),
        timeout=60,
    )
