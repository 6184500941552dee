# SPDX-License-Identifier: Apache-2.0
"""Mappings where the system gives no more threads, descriptors or mappings, and many at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import support
from fault_injection import build, environment
from mapping_support import MECHANISMS, PRELUDE, SIGNALS, check

pytestmark = support.not_sanitized


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fault_injection"))


BEGIN = """
data = random_bytes(20 * 4096)
buffer = EncryptedBuffer.from_data(data, key=key)
def use(mapping):
    with mapping as array:
        assert np.array_equal(array, data)
    return mapping.stats()["mechanism"]
def refusal(call):
    try:
        call()
    except errors.PyccmemError as error:
        return error
    raise AssertionError("it was not refused")
"""

NO_THREAD = """
for system_calls in (True, False):
    used = use(buffer.map(system_calls=system_calls))
    assert used == "sigsegv", used
for name in sys.argv[2].split(","):
    if name != "sigsegv":
        error = refusal(lambda: mapping_of(buffer, name))
        assert type(error) is errors.FaultMechanismError, error
        for word in ("thread", "ulimit -u", "pids"):
            assert word in str(error), error
        assert "memory" not in str(error), error
    else:
        assert use(mapping_of(buffer, name, "r+")) == name
print("whole")
"""


def test_no_thread_by_injection(library: Path) -> None:
    script = """
from fault_injection import Injector
with Injector().failing(1, kinds=["pthread_create"], later=True):
    exec(NO_THREAD)
# Where the mechanism without a thread is refused too, the error is about the thread.
with Injector().failing(1, kinds=["pthread_create", "sigaction"], later=True):
    error = refusal(lambda: buffer.map())
    assert "ulimit -u" in str(error) and "pids" in str(error), error
"""
    support.check_python(
        PRELUDE + BEGIN + f"NO_THREAD = {NO_THREAD!r}" + script,
        "auto",
        ",".join(MECHANISMS),
        environment=environment(library),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives up being root")
def test_no_thread_by_ulimit() -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
os.setuid(65533)
threading.stack_size(65536)
try:
    threading.Thread(target=print).start()
    raise AssertionError("a thread can be had")
except RuntimeError:
    pass
"""
    names = [name for name in MECHANISMS if name != "uffd"]  # refused for another reason first
    out = support.check_python(PRELUDE + BEGIN + script + NO_THREAD, "auto", ",".join(names))
    assert out == "whole\n"


@pytest.mark.skipif("uffd-signal" not in MECHANISMS, reason="no userfaultfd")
def test_no_descriptor() -> None:
    """`auto` goes on to the one that needs none; each of the others says which limit it is."""
    check(
        BEGIN
        + """
import resource
use(buffer.map())
descriptors = []
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, 4096))
try:
    while True:
        descriptors.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
assert use(mapping_of(buffer)) == "sigsegv"
error = refusal(lambda: mapping_of(buffer, "uffd-signal"))
assert "Too many open files" in str(error), error
""",
        "auto",
    )


@pytest.mark.parametrize("fault", SIGNALS)
def test_more_mappings_than_a_thousand(fault: str) -> None:
    """There is no fixed number: each answers its own touches, and may be the source of a write."""
    check(
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
pyccmem.set_num_threads(1)  # no thread each that opens blocks ahead
COUNT = 1200
data = random_bytes(6 * 4096)
buffers = [EncryptedBuffer.from_data(np.roll(data, n), key=key) for n in range(COUNT)]
mappings = [mapping_of(buffer, fault, "r+") for buffer in buffers]
arrays = [mapping.__enter__() for mapping in mappings]
for n in (0, 63, 64, 127, 128, 1023, 1024, 1025, COUNT - 1):
    assert np.array_equal(arrays[n], np.roll(data, n)), n
for n, array in enumerate(arrays):
    array[5 * 4096] = n % 251
for n in range(0, COUNT, 2):
    mappings[n].close()
again = [mapping_of(buffers[n], fault) for n in range(0, COUNT, 2)]
for n, mapping in zip(range(0, COUNT, 2), again):
    with mapping as array:
        assert array[5 * 4096] == n % 251 and array[1] == np.roll(data, n)[1], n
last = arrays[COUNT - 1]
with EncryptedBuffer(last.nbytes, key=key) as copy:
    copy.write(last)
    assert copy.read() == last.tobytes()
for mapping in mappings:
    mapping.close()
assert buffers[COUNT - 1].read(5 * 4096, 1)[0] == (COUNT - 1) % 251
assert pyccmem.stats()["plaintext_reserved"] == 0
""",
        fault,
    )
