# SPDX-License-Identifier: Apache-2.0
"""No exception keeps a native buffer over its caller's memory alive, and none is in a cycle of its
own. CPython up to 3.12 ends by SIGSEGV when it collects a cycle of an exception, a frame with such
a buffer, and the memoryview that the buffer is over.

tracebacks.py calls, in a process of its own, everything public that takes a buffer, has it fail in
each way that it can and at each moment at which a signal's handler could raise, and keeps the
exception.
"""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support

import pyccmem

PROGRAM = support.TESTS / "support" / "tracebacks.py"
SOURCES = Path(pyccmem.__file__).parent

#: CPython's own mending of the order came with 3.12.
COLLECTION_CRASHES = sys.implementation.name == "cpython" and sys.version_info < (3, 12)


def child(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_no_exception_keeps_a_buffer() -> None:
    done = child("walk")
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["failures"] >= 90, found
    assert found["interrupts"] >= 300 or sys.version_info < (3, 11), found
    assert not found["kept"], found["kept"]
    assert not found["passed"], "calls that were to fail"
    assert found["forked"] == 5
    assert "exported buffer" not in done.stderr


def test_a_kept_buffer_is_noticed() -> None:
    done = child("walk", "twin")
    assert done.returncode == 0, done.stderr[-3000:]
    kept = json.loads(done.stdout)["kept"]
    assert {name.split(":")[0] for name in kept} == {"read_into", "hazmat.aes_cmac"}, kept


def test_a_collection_survives() -> None:
    done = child("collect")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["failures"] >= 90


@support.not_sanitized  # the address sanitizer ends the process in its own way
@pytest.mark.skipif(not COLLECTION_CRASHES, reason="this interpreter collects in the right order")
def test_a_collection_ends_the_process_where_a_buffer_is_kept() -> None:
    assert child("collect", "twin").returncode == -signal.SIGSEGV


def test_a_server_reads_while_another_thread_closes() -> None:
    done = child("serve")
    assert (done.returncode, done.stderr) == (0, "")


@support.not_sanitized  # the address sanitizer ends the process in its own way
@pytest.mark.skipif(not COLLECTION_CRASHES, reason="this interpreter collects in the right order")
def test_a_server_that_keeps_a_buffer_ends() -> None:
    assert child("serve", "twin").returncode == -signal.SIGSEGV


# ---- the rules that make it so -------------------------------------------------------------------

_BUFFERS = ("from_buffer", "input_buffer", "output_buffer", "exact_bytes", "_floats")


def deleted_by(block: ast.Try) -> frozenset[str]:
    """The variables that a `finally` deletes."""
    statements = (line for line in block.finalbody if isinstance(line, ast.Delete))
    return frozenset(ast.unparse(target) for line in statements for target in line.targets)


def kept_buffers(source: str) -> list[str]:
    """Where a module keeps a native buffer that an exception can find: one is the subject of a
    `with`, an argument of a call, or a variable that a `finally` deletes."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).split(".")[-1].removeprefix("_")
        if name not in [buffer.removeprefix("_") for buffer in _BUFFERS]:
            continue
        parent, inside = parents[node], node
        while not isinstance(inside, (ast.FunctionDef, ast.Module)):
            inside = parents[inside]
        if isinstance(parent, (ast.withitem, ast.Call)):
            continue
        if isinstance(inside, ast.FunctionDef) and inside.name == "_floats":
            continue  # an argument itself
        blocks = (block for block in ast.walk(inside) if isinstance(block, ast.Try))
        deleted = frozenset[str]().union(*map(deleted_by, blocks))
        if isinstance(parent, ast.Assign) and ast.unparse(parent.targets[0]) in deleted:
            continue
        found.append(f"line {node.lineno}: {ast.unparse(parent)[:80]}")
    return found


def kept_exceptions(source: str) -> list[str]:
    """Where a module puts an exception into a variable that its traceback has."""
    found = []

    def look(node: ast.AST, caught: frozenset[str]) -> None:
        if isinstance(node, ast.Try):
            caught |= deleted_by(node)
        if isinstance(node, ast.ExceptHandler) and node.name:
            caught |= {node.name}
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            raised = node.exc.id
            if raised[0].islower() and raised not in caught:
                found.append(f"line {node.lineno}: raise {raised}")
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(value, ast.Name) and value.id in caught:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        for inner in ast.iter_child_nodes(node):
            look(inner, caught)

    look(ast.parse(source), frozenset())
    return found


MISTAKES = """
def first(value):
    source = input_buffer("data", value)
    check(len(source))

def second(value):
    target = ffi.from_buffer("uint8_t[]", value, True)
    try:
        check(len(target))
    finally:
        other()

def third():
    return exact_bytes("key", value, (16,), ArgumentError)

def fourth():
    try:
        work()
    except ValueError as error:
        failure = error
    raise failure

def fifth():
    answer = OSError("it failed")
    answer.errno = 5
    raise answer from None
"""


def test_the_rules_notice() -> None:
    assert len(kept_buffers(MISTAKES)) == 3
    assert len(kept_exceptions(MISTAKES)) == 3


def test_no_function_keeps_a_buffer_or_an_exception() -> None:
    files = [path for path in SOURCES.rglob("*.py") if "bench" not in path.parts]
    assert len(files) > 80
    found = {}
    for path in files:
        source = path.read_text("utf-8")
        kept = kept_exceptions(source)
        if path.name != "arguments.py":  # whose functions return what they make
            kept += kept_buffers(source)
        if kept:
            found[str(path.relative_to(SOURCES))] = kept
    assert not found
