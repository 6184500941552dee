# SPDX-License-Identifier: Apache-2.0
"""An exception that a signal's handler raises, Ctrl-C's among them, leaves nothing behind: no
window, thread, descriptor, block of plaintext, slot of secret memory, no share of the budget.

interrupts.py does it, in a process of its own: at each moment at which a handler can run, of each
public operation, and at random ones by a timer.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import TESTS, linux_only, not_sanitized

import pyccmem

PROGRAM = TESTS / "support" / "interrupts.py"
SOURCES = Path(pyccmem.__file__).parent

#: Operations that show each of the mistakes.
CAUGHT = {
    "gap": (
        "core",
        ["Key.generate", "EncryptedBuffer", "map", "blocks zeros"],
        {"slots", "threads", "budget"},
    ),
    "block gap": ("core", ["t[3:200]", "open r", "dequantize"], {"blocks", "plaintext"}),
    "Python destructor": ("core", ["Key.generate", "EncryptedBuffer"], {"slots"}),
    "late wipe": ("core", ["open and keep"], {"error"}),
    "plain descriptor": ("files", ["save_file", "inspect_file"], {"descriptors"}),
}


def interrupted(
    way: str, group: str, count: int, twin: str = "", only: list[str] | None = None
) -> dict[str, Any]:
    """What the program found."""
    arguments = [sys.executable, str(PROGRAM), way, group, str(count), *([twin] if twin else [])]
    environment = dict(os.environ, ONLY=", ".join(only or []))
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_nothing_left(found: dict[str, Any], least: int) -> None:
    left = {name: result["left"] for name, result in found.items() if result["left"]}
    assert not left, left
    assert sum(result["interrupted"] for result in found.values()) >= least, found


@linux_only
@not_sanitized
@pytest.mark.parametrize(("group", "count", "least"), [("core", 100, 3000), ("files", 40, 650)])
def test_at_each_moment(group: str, count: int, least: int) -> None:
    assert_nothing_left(interrupted("walk", group, count), least)


@linux_only
@not_sanitized
def test_torch_at_each_moment() -> None:
    pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")
    assert_nothing_left(interrupted("walk", "torch", 40), 250)


@linux_only
@not_sanitized
def test_at_random_moments() -> None:
    assert_nothing_left(interrupted("random", "core", 50), 400)


@pytest.mark.full
@linux_only
@not_sanitized
@pytest.mark.parametrize(
    ("way", "group", "count"),
    [
        ("walk", "core", 3000),
        ("walk", "files", 3000),
        ("walk", "torch", 1000),
        ("random", "core", 2000),
        ("random", "files", 300),
        ("random", "torch", 300),
    ],
)
def test_thousands(way: str, group: str, count: int) -> None:
    if group == "torch":
        pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")
    assert_nothing_left(interrupted(way, group, count), 800)


@linux_only
@not_sanitized
@pytest.mark.parametrize("twin", CAUGHT)
def test_mistakes_are_noticed(twin: str) -> None:
    group, only, kinds = CAUGHT[twin]
    found = interrupted("walk", group, 400, twin, only)
    noticed = {kind for result in found.values() for kind in result["left"]}
    assert kinds <= noticed, found
    assert all(result["left"] for result in found.values()), found


# ---- the rules that make it so -------------------------------------------------------------------


def python_destructors(source: str) -> list[str]:
    """What in a module has a function of Python run when something is destroyed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "__del__":
            found.append(f"line {node.lineno}: __del__")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        weak = called.split(".")[-1] in ("ref", "proxy") and len(node.args) > 1
        if weak or called.startswith("weakref.Weak") or called.endswith("weakref.finalize"):
            found.append(f"line {node.lineno}: {called}() with a callback")
        if called in ("ffi.gc", "_gc"):
            what = ast.unparse(node.args[1])
            if not what.startswith(("lib.ccmem_", "partial(lib.ccmem_", "self._drop")):
                found.append(f"line {node.lineno}: the destructor {what}")
            if ast.unparse(node.args[0]).endswith("[0]"):
                found.append(f"line {node.lineno}: an owner after the call")
        if called == "os.open" or called.endswith(".acquire"):
            found.append(f"line {node.lineno}: {called}()")
    return found


MISTAKES = """
ffi.gc(out[0], lib.ccmem_key_free)
ffi.gc(pointer, lambda _, kept=kept: None)
weakref.ref(view, forget)
weakref.WeakKeyDictionary()
os.open(path, os.O_RDONLY)
self._lock.acquire()
class Holder:
    def __del__(self): pass
"""


def test_the_rules_notice() -> None:
    assert len(python_destructors(MISTAKES)) == 7


def test_no_destructor_is_a_function_of_python() -> None:
    # The benchmarks and what ends the process are left out.
    files = [
        path
        for path in SOURCES.rglob("*.py")
        if "bench" not in path.parts and path.parts[-2:] != ("console", "command.py")
    ]
    assert len(files) > 80
    found = {
        str(path.relative_to(SOURCES)): python_destructors(path.read_text("utf-8"))
        for path in files
    }
    assert not {name: what for name, what in found.items() if what}
