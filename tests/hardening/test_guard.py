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
OWN = ("freed-memory", "core-dumps", "dumpable", "ptrace", "dontdump")


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
