# SPDX-License-Identifier: Apache-2.0
"""`pyccmem posture`: table, JSON, exit status; it is quick and imports nothing large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from support import SANITIZED, child_environment, run_python

import pyccmem
from pyccmem.assessment import LEVELS, NAMES, STATES


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyccmem", "posture", *words],
        env=child_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_table() -> None:
    done = run()
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("process ") and ", level " in lines[0]
    table = [line.split()[:2] for line in lines[2 : 2 + len(NAMES)]]
    assert [name for name, _ in table] == list(NAMES)
    for name, state in table:
        assert state in STATES
        told = sum(line.startswith(f"  {name} ") for line in lines)
        assert told == (1 if state == "good" else 2), f"{name}: no remedy"


def test_json() -> None:
    done = run("--json", "--require", "minimal", "--require", "self-tests")
    found = json.loads(done.stdout)
    assert list(found) == ["version", "pid", "level", "levels", "lines", "required", "failed"]
    assert found["version"] == pyccmem.__version__
    assert found["required"] == ["minimal", "self-tests"]
    assert set(found["levels"]) == set(LEVELS) and found["level"] in ("none", *LEVELS)
    for line, name in zip(found["lines"], NAMES, strict=True):
        assert list(line) == ["name", "state", "seen", "why", "remedy"]
        assert line["name"] == name and all(isinstance(text, str) for text in line.values())
    assert (done.returncode, done.stderr) == (0, "") if not found["failed"] else done.returncode


def test_what_is_not_as_required() -> None:
    """This command's process is dumpable, unless somebody closed it before its start."""
    done = run("--require", "dumpable", "--require", "self-tests")
    assert done.returncode == 1
    assert done.stderr.startswith("pyccmem: Process ") and done.stderr.count("\n") == 1
    assert "dumpable is bad" in done.stderr and "self-tests" not in done.stderr
    assert all(name in done.stdout for name in NAMES)
    found = json.loads(run("--json", "--require", "dumpable").stdout)
    assert (found["required"], found["failed"]) == (["dumpable"], ["dumpable"])
    assert run("--require", "self-tests").returncode == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--require", "bogus"), "no level and no line"),
        (("--require",), "expected one argument"),
        (("--pid", "x"), "invalid int"),
        (("--pid", "0"), "number of a process"),
        (("--pid", str(2**22 + 1)), "no process"),
        (("extra",), "unrecognized"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], text: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and text in done.stderr and not done.stdout


def test_another_process() -> None:
    found = json.loads(run("--json", "--pid", str(os.getpid())).stdout)
    assert found["pid"] == os.getpid()
    states = {line["name"]: line["state"] for line in found["lines"]}
    assert states["self-tests"] == states["models"] == "unknown"
    assert run("--pid", str(os.getpid()), "--require", "self-tests").returncode == 1


def test_the_help_names_levels_and_lines() -> None:
    done = run("--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert all(level in text for level in LEVELS)
    # argparse breaks words at their hyphens.
    assert all(name in text.replace("- ", "-") for name in NAMES)


def test_it_is_quick() -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        assert run().returncode == 0
        took.append(time.perf_counter() - start)
    assert min(took) < (20 if SANITIZED else 2), took


def test_nothing_large_is_imported() -> None:
    script = (
        "import sys, pyccmem\n"
        "before = set(sys.modules)\n"
        "pyccmem.posture()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "new -= sys.stdlib_module_names\n"
        "print(sorted(name for name in new if not name.startswith('_sysconfigdata')))\n"
        "print([n for n in ('torch', 'transformers', 'rich', 'argparse') if n in sys.modules])"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]
