# SPDX-License-Identifier: Apache-2.0
"""guard() and posture() for ordinary users, with little memory to lock, and in containers without
/sys, with a /proc that shows processes alone, and without ptrace: nothing fails, and what cannot be
seen is not called good."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from secret_search import WITH_LIMIT, WITHOUT_MEMFD_SECRET
from support import check_python, child_environment, linux_only, not_sanitized

from pyccmem.assessment import NAMES

pytestmark = [linux_only, not_sanitized]

TELL = """
import ctypes, json, os, resource, threading
import pyccmem
def tell(**more):
    found = pyccmem.posture()
    states = {line.name: line.state for line in found}
    print(json.dumps({"states": states, "level": found.level, **more}))
"""

#: As a user's program is started: root's exemption from limits is gone, and changing users has made
#: the process not dumpable.
AS_A_USER = f"""
{TELL}
{WITH_LIMIT}
limit(LIMIT)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""


def told(script: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in check_python(script).splitlines()]


def as_a_user(limit: int, script: str) -> list[dict[str, Any]]:
    return told(AS_A_USER.replace("LIMIT)", f"{limit})", 1) + script)


def test_an_ordinary_user() -> None:
    """With `ulimit -l 64`, the default of older systems."""
    (root,) = told(f"{TELL}\ntell()")
    before, guarded = as_a_user(
        64 << 10,
        "with pyccmem.Key.generate() as key, pyccmem.EncryptedBuffer(4096, key=key):\n"
        "    pyccmem.posture(require='minimal')\n"
        "    tell()\n"
        "    pyccmem.guard()\n"
        "    tell()\n",
    )
    assert set(before["states"]) == set(NAMES)
    unseen = {name for name, state in before["states"].items() if state == "unknown"}
    assert unseen <= {name for name, state in root["states"].items() if state == "unknown"}
    assert before["states"]["dumpable"] == before["states"]["dontdump"] == "bad"
    for name in ("core-dumps", "dumpable", "ptrace", "dontdump"):
        assert guarded["states"][name] == "good", name
    assert guarded["states"]["secret-memory"] in ("good", "weak")


def test_locking_all_memory_with_a_small_limit() -> None:
    """It is refused before it can do harm: threads still start, memory can still be had."""
    (found,) = as_a_user(
        64 << 10,
        "guard = pyccmem.guard(swap='lock')\n"
        "thread = threading.Thread(target=lambda: bytearray(1 << 24)); thread.start()\n"
        "thread.join()\n"
        "tell(failures=guard.failures)\n",
    )
    assert "RLIMIT_MEMLOCK is 64 KiB" in "; ".join(found["failures"])
    assert found["states"]["dumpable"] == "good"


def test_no_memory_to_lock_at_all() -> None:
    """No key can be made, and the line says so; the look itself does not fail."""
    (found,) = as_a_user(
        0,
        "try:\n"
        "    pyccmem.posture(require='minimal')\n"
        "except pyccmem.errors.PostureError as error:\n"
        "    tell(failed=[line.name for line in error.lines], text=str(error))\n",
    )
    assert found["failed"] == ["secret-memory"] and found["level"] == "none"
    assert "no key can be made" in found["text"] and "ulimit -l" in found["text"]
    assert found["states"]["self-tests"] == "good"


# ---- a container ---------------------------------------------------------------------------------

#: A user namespace with a /proc of its processes alone, and nothing in /sys.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-c"]
HIDE = "mount -t proc -o subset=pid proc /proc && mount -t tmpfs tmpfs /sys || exit 78; "

#: Numbers of x86-64; as Docker's filter does without CAP_SYS_PTRACE.
WITHOUT_PTRACE = WITHOUT_MEMFD_SECRET.replace(
    "forbid(447, 38)", "forbid(101, 1)\nforbid(310, 1)\nforbid(311, 1)"
)


def in_a_container(script: str, hide: str = HIDE) -> list[dict[str, Any]]:
    if shutil.which("unshare") is None:
        pytest.skip("needs the program unshare")
    done = subprocess.run(
        [*NAMESPACE, f'{hide}exec "$@"', "sh", sys.executable, "-c", script],
        env=child_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode in (77, 78) or "unshare failed" in done.stderr:
        pytest.skip(f"no such container can be had here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


HIDDEN = ("hibernation", "lockdown", "huge-pages", "page-merging", "userfaultfd", "kernel-wiping")


def test_a_container_that_hides_the_system() -> None:
    """Before and after guard(): what depends on hidden files alone is unknown, what guard() does to
    the process holds."""
    soft_limit = "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    before, after = in_a_container(
        f"{WITHOUT_PTRACE}{TELL}{soft_limit}tell()\npyccmem.guard()\ntell()"
    )
    for found in (before, after):
        for name in HIDDEN:
            assert found["states"][name] == "unknown", name
        # Which areas of swap there are does not show, nor can freed memory be looked at.
        for name in ("swap", "freed-memory", "small-blocks", "python-objects", "numpy-memory"):
            assert found["states"][name] != "good", name
    # A program may get dumps whatever the limit is: the pattern is hidden.
    assert before["states"]["core-dumps"] == "bad"
    for name in ("core-dumps", "dumpable", "ptrace", "dontdump"):
        assert after["states"][name] == "good", name
    assert after["level"] == "minimal"


def test_the_same_process_that_sees_all() -> None:
    """The control: without hiding, the same user namespace shows the lines of the system."""
    (found,) = in_a_container(f"{TELL}tell()", hide="")
    (outside,) = told(f"{TELL}tell()")
    for name in HIDDEN:
        assert found["states"][name] == outside["states"][name], name


def test_a_container_without_proc() -> None:
    hide = "mount -t tmpfs tmpfs /proc && mount -t tmpfs tmpfs /sys || exit 78; "
    before, after = in_a_container(f"{TELL}tell()\npyccmem.guard()\ntell()", hide)
    for found in (before, after):
        for name in (*HIDDEN, "memory-encryption"):
            assert found["states"][name] == "unknown", name
        for name in ("swap", "ptrace", "dontdump"):
            assert found["states"][name] != "good", name
        assert found["states"]["self-tests"] == "good"
    assert after["states"]["dumpable"] == "good"


def test_the_command_in_a_container() -> None:
    script = (
        "import subprocess, sys, json\n"
        "words = [sys.executable, '-m', 'pyccmem', 'posture', '--json', '--require']\n"
        "for name in ('self-tests', 'hibernation'):\n"
        "    done = subprocess.run([*words, name], capture_output=True, text=True)\n"
        "    print(json.dumps([done.returncode, json.loads(done.stdout)['failed']]))\n"
    )
    first, second = in_a_container(script)
    assert first == [0, []]
    assert second == [1, ["hibernation"]]
