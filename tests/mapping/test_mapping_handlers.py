# SPDX-License-Identifier: Apache-2.0
"""Handlers of SIGSEGV and SIGBUS that others set while a mapping is open: the mapping goes on
working, and they get what is not its."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import support
from foreign_handlers import foreign_library
from mapping_support import SIGNALS, assert_died, check, every_mechanism, run

pytestmark = support.not_sanitized

#: In a child: what a mapping answers, a sum of blocks that were not touched before.
USE = """
from signal import signal as set_handler  # by this name since before the mapping
import faulthandler
BLOCKS = 60
data = random_bytes(BLOCKS * 4096)
untouched = iter(range(1, BLOCKS))

def touch(array):
    for _ in range(3):
        block = next(untouched)
        at = block * 4096
        assert np.array_equal(array[at : at + 4096], data[at : at + 4096])
        array[at] = data[at] = block

NUMBERS = (signal.SIGSEGV, signal.SIGBUS)
buffer = EncryptedBuffer.from_data(data, key=key)
mapping = mapping_of(buffer, fault, "r+", read_ahead=False)
seen = []
def handler(number, frame):
    seen.append(number)
"""

END = """
assert buffer.read() == data.tobytes()
print("whole", flush=True)
"""


@every_mechanism
def test_a_python_handler(fault: str) -> None:
    """Python's handler in C returns at once, so that a touch it got would be repeated for ever."""
    out = check(
        USE
        + """
with mapping as array:
    touch(array)
    for number, setter in zip(NUMBERS, (signal.signal, set_handler)):
        assert setter(number, handler) == signal.SIG_DFL
        assert signal.getsignal(number) is handler
    touch(array)
    for number in NUMBERS:
        os.kill(os.getpid(), number)  # sent by somebody: it is theirs
        time.sleep(0.01)
    assert seen == list(NUMBERS), seen
    touch(array)
    for number in NUMBERS:
        assert signal.signal(number, signal.SIG_IGN) is handler
        os.kill(os.getpid(), number)
    touch(array)
    for number in NUMBERS:
        set_handler(number, signal.SIG_DFL)
    touch(array)
    threads = [threading.Thread(target=touch, args=(array,)) for _ in range(4)]
    signal.signal(signal.SIGSEGV, handler)
    for thread in threads:
        thread.start()
        signal.signal(signal.SIGBUS, handler)
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        thread.join(20)
        assert not thread.is_alive()
"""
        + END,
        fault,
    )
    assert out == "whole\n"


@every_mechanism
def test_faulthandler_comes_and_goes(fault: str) -> None:
    done = run(
        USE
        + """
with mapping as array:
    touch(array)
    for _ in range(3):
        faulthandler.enable()
        touch(array)
        faulthandler.disable()
        touch(array)
    faulthandler.enable()
    touch(array)
assert buffer.read() == data.tobytes()
print("before", flush=True)
ctypes.string_at(8)
""",
        fault,
    )
    assert_died(done, signal.SIGSEGV)
    assert done.stderr.count("Fatal Python error: Segmentation fault") == 1, done.stderr[:4000]


@every_mechanism
def test_faulthandler_that_was_there_before_goes(fault: str) -> None:
    """disable() puts back what enable() found, and with it the end of the process."""
    out = check(
        "import faulthandler; faulthandler.enable()\n"
        + USE
        + """
with mapping as array:
    touch(array)
    faulthandler.disable()
    touch(array)
"""
        + END,
        fault,
    )
    assert out == "whole\n"


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_library(tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("fault", SIGNALS)
@pytest.mark.parametrize("handler", ["returns", "asks"])
def test_a_handler_of_a_library(foreign: Path, fault: str, handler: str) -> None:
    """That nobody is told of: it does see touches, and does not loop for ever."""
    out = check(
        USE
        + f"""
library = ctypes.CDLL({str(foreign)!r})
with mapping as array:
    touch(array)
    assert library.set({0 if handler == "returns" else 2}) == 0
    touch(array)
    assert library.called() > 0, "it was not in front"
    touch(array)
    time.sleep(0.3)
    before = library.called()
    touch(array)
    assert library.called() == before, "it still is"
"""
        + END,
        fault,
    )
    assert out == "whole\n"


@pytest.mark.parametrize("fault", SIGNALS)
@pytest.mark.parametrize("told", ["flush", "a while", "not"])
def test_a_handler_that_ends_the_process(foreign: Path, fault: str, told: str) -> None:
    """It gets no touch after a call about the mapping, nor after some time; at once it does, which
    cannot be helped."""
    done = run(
        USE
        + f"""
library = ctypes.CDLL({str(foreign)!r})
with mapping as array:
    touch(array)
    assert library.set(1) == 0
    if {told!r} == "flush":
        mapping.flush()
    elif {told!r} == "a while":
        time.sleep(0.5)
    touch(array)
"""
        + END,
        fault,
    )
    expected = (9, "") if told == "not" else (0, "whole\n")
    assert (done.returncode, done.stdout) == expected, done.stderr


@pytest.mark.parametrize("fault", SIGNALS[-1:])
def test_torch_prints_stacks_on_fatal_signals(fault: str) -> None:
    pytest.importorskip("torch")
    out = check(
        """
import torch
setter = getattr(torch._C, "_set_print_stack_traces_on_fatal_signal", None)
"""
        + USE
        + """
with mapping as array:
    touch(array)
    if setter:
        setter(True)
        mapping.flush()
    touch(array)
"""
        + END,
        fault,
    )
    assert out == "whole\n"


@pytest.mark.parametrize("fault", SIGNALS)
def test_more_handlers_than_there_is_room_for_are_told(fault: str) -> None:
    """Of handlers that take each other's place a new mapping refuses the one too many, in words."""
    out = check(
        USE
        + """
libc = ctypes.CDLL(None)
libc.signal.restype = ctypes.c_void_p
libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
lies = [ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda n: None) for _ in range(12)]
with mapping as array:
    touch(array)
    refused = 0
    for lie in lies:
        for number in NUMBERS:
            libc.signal(number, ctypes.cast(lie, ctypes.c_void_p).value)
        try:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # any call tells
        except errors.FaultMechanismError as error:
            assert "put in front" in str(error), error
            refused += 1
    assert 0 < refused < 12, refused
    libc.signal(signal.SIGSEGV, None)
    libc.signal(signal.SIGBUS, None)
    mapping.flush()
    touch(array)
"""
        + END,
        fault,
    )
    assert out == "whole\n"
