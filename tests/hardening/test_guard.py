# SPDX-License-Identifier: Apache-2.0
"""guard() in a process of its own: each part is off before and on afterwards, as it is found by
looking; options, repeated calls, refusals."""

from __future__ import annotations

import json

import pytest
from support import check_python, linux_only, not_sanitized

import pyccmem
from pyccmem import errors

pytestmark = [linux_only, not_sanitized]

STATES = """
import json
import pyccmem
from pyccmem.hardening import parts
def states():
    return {part.name: part.active for part in parts()}
"""

#: Parts that guard() can switch on in a program that has already started.
OWN = ("freed-memory", "numpy-memory", "core-dumps", "dumpable", "ptrace", "dontdump")


def states(script: str) -> list[dict[str, bool]]:
    """What a script prints in a new process, a line of JSON each."""
    return [json.loads(line) for line in check_python(STATES + script).splitlines()]


def test_each_part_is_found_off_and_then_on() -> None:
    before, after, again = states(
        "import resource\n"
        "soft = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (soft[1], soft[1]))\n"
        "print(json.dumps(states()))\n"
        "pyccmem.guard()\nprint(json.dumps(states()))\n"
        "pyccmem.guard()\nprint(json.dumps(states()))\n"
    )
    assert set(before) >= {"swap", "fork", "small-blocks", "python-objects", "torch-memory", *OWN}
    assert not any(before[name] for name in OWN if name != "core-dumps")
    assert all(after[name] for name in OWN)
    assert again == after


def test_debuggable_leaves_the_process_open_until_it_is_closed() -> None:
    open_, closed = states(
        "pyccmem.guard(debuggable=True)\nprint(json.dumps(states()))\n"
        "pyccmem.guard()\nprint(json.dumps(states()))\n"
    )
    assert open_["freed-memory"] and not open_["dumpable"] and not open_["ptrace"]
    assert closed["freed-memory"] and closed["dumpable"] and closed["ptrace"]


ARRAYS = """
import threading
import numpy as np
from pyccmem.hardening import libc
from pyccmem.hardening.memory import _Look
def left(nbytes, array=None):
    look = _Look(nbytes)
    array = np.empty(nbytes, np.uint8) if array is None else array
    array[:] = np.frombuffer(look.filled, np.uint8)
    address, owner = array.__array_interface__["data"][0], [array]
    del array
    return look.left([(address, owner.clear)])
def in_thread(nbytes):
    found = []
    thread = threading.Thread(target=lambda: found.append(left(nbytes)))
    thread.start(); thread.join()
    return found[0]
"""


def test_arrays_of_every_thread_and_those_that_exist_are_overwritten() -> None:
    """A handler of NEP 49 is one of a context: a thread would go on with the default one."""
    here, there, later, before = (
        json.loads(line)
        for line in check_python(
            STATES + ARRAYS + "old = [np.empty(800, np.uint8)]\n"
            "print(left(800), in_thread(800), sep='\\n')\n"
            "pyccmem.guard(debuggable=True)\n"
            "print(in_thread(800), left(800, old.pop()), sep='\\n')\n"
        ).splitlines()
    )
    assert here > 700 and there > 700  # the control
    assert later == before == 0


def test_arrays_that_change_their_size_keep_what_lies_in_them() -> None:
    check_python(
        "import numpy as np, pyccmem\npyccmem.guard(debuggable=True)\n"
        "for old in (3, 100, 900, 1100, 5000, 300000):\n"
        "    for new in (1, 100, 1000, 1200, 6000, 400000):\n"
        "        array = np.arange(old, dtype=np.uint16)\n"
        "        array.resize(new, refcheck=False)\n"
        "        same = min(old, new)\n"
        "        assert (array[:same] == np.arange(same, dtype=np.uint16)).all()\n"
        "        assert not array[same:].any()\n"
        "        array[:] = 7\n"
        "assert np.zeros(100).sum() == 0 and np.fromiter(range(5000), int).sum() == 12497500\n"
    )


def test_a_handler_of_the_users_own_is_left_alone_and_told() -> None:
    """What numpy does not overwrite is found by looking, whoever is to blame."""
    out = check_python(
        STATES + "from pyccmem.hardening import numpy_memory\n"
        "numpy_memory.library.load = lambda: None\n"
        "made = pyccmem.guard(debuggable=True)\n"
        "print(any('NumPy' in one for one in made.failures), states()['numpy-memory'])\n"
    )
    assert out.split() == ["True", "False"]


def test_strict_names_what_lacks() -> None:
    out = check_python(
        "import pyccmem\ntry:\n    pyccmem.guard(strict=True, swap='ignore')\n"
        "except pyccmem.errors.GuardError as error:\n    print(error)\n"
    )
    assert "small-blocks" in out and "python-objects" in out and "swap:" not in out


def test_a_process_in_another_program_is_open_again() -> None:
    """PR_SET_DUMPABLE is lost with exec, as the table says; limits and filters are not."""
    lines = check_python(
        "import os, sys\nimport pyccmem\npyccmem.guard()\nsys.stdout.flush()\n"
        f"script = {STATES!r} + 'print(json.dumps(states()))'\n"
        "os.execv(sys.executable, [sys.executable, '-c', script])\n"
    ).splitlines()
    found = json.loads(lines[-1])
    assert not found["dumpable"] and found["core-dumps"] and found["dontdump"]


def test_it_says_what_it_is() -> None:
    text, table = check_python(
        "import pyccmem\nmade = pyccmem.guard()\nprint(repr(made))\n"
        "print(len(str(made).splitlines()) > 10)\n"
    ).splitlines()
    assert text.startswith("<pyccmem.hardening.Guard: ") and "small-blocks" in text
    assert table == "True"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"swap": "off"}, errors.ArgumentError),
        ({"swap": True}, errors.ArgumentTypeError),
        ({"fork": "never"}, errors.ArgumentError),
        ({"fork": None}, errors.ArgumentTypeError),
    ],
)
def test_wrong_options_change_nothing(options: dict, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        pyccmem.guard(**options)
