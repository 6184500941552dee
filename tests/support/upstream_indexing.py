# SPDX-License-Identifier: Apache-2.0
"""Runs NumPy's own tests, where they are installed, with each index expression tried on a tensor
too.

    python tests/support/upstream_indexing.py [test_indexing.py ...]

NumPy's files (numpy/_core/tests, BSD licence) are read where they are installed. In copies of them,
which live as long as the run, `array[index]`, `array[index] = value` and the methods
of the same meaning become calls of the functions below. They do what NumPy does, do the same on an
encrypted copy, and note where the two differ: in type, dtype, shape, values, or kind of exception.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pyccmem
from pyccmem import EncryptedTensor

#: Set to have each tensor hold other values than the array, as a control.
BROKEN = "UPSTREAM_INDEXING_BROKEN"

#: The files that are tried if none are named.
FILES = ("test_indexing.py", "test_indexerrors.py", "test_item_selection.py")

#: Larger arrays are left out: loops over their elements would encrypt them each time.
LARGEST = 1 << 16

KINDS = (IndexError, TypeError, ValueError)

tried = 0
different: list[str] = []
_arena = pyccmem.Arena(key=pyccmem.Key.generate())


def tensor_of(array: Any) -> EncryptedTensor | None:
    """Returns an encrypted copy of what a tensor can hold: a plain array of items of fixed size."""
    if type(array) is not np.ndarray or array.dtype.hasobject or not array.dtype.itemsize:
        return None
    if array.nbytes > LARGEST:
        return None
    if os.environ.get(BROKEN) and array.dtype.kind in "iuf":
        array = array + array.dtype.type(1)
    return EncryptedTensor.from_numpy(array, arena=_arena)


def outcome(work: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return work()
        except Exception as error:
            return error


def is_same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Exception):
        kind = next((kind for kind in KINDS if isinstance(wanted, kind)), type(wanted))
        return isinstance(found, kind)
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, np.ndarray | np.generic):
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            return False
        return found.tobytes() == wanted.tobytes() or repr(found) == repr(wanted)
    return bool(found == wanted)


def compare(what: str, array: Any, index: Any, found: Any, wanted: Any) -> None:
    global tried
    tried += 1
    if not is_same(found, wanted):
        text = f"{what} {array.dtype} {array.shape} [{index!r:.200}]: {found!r:.120}, "
        different.append(f"{text}not {wanted!r:.120}")


def get(array: Any, index: Any) -> Any:
    t = tensor_of(array)
    if t is not None:
        found = outcome(lambda: t[index])
        compare("get", array, index, found, outcome(lambda: array[index]))
    return array[index]


def put(array: Any, index: Any, value: Any) -> None:
    t = tensor_of(array)
    if t is not None and array.flags.writeable and 0 not in array.strides:
        twin = array.copy()

        def assign(target: Any) -> Any:
            target[index] = value
            return target[...]

        wanted = outcome(lambda: assign(twin))
        compare("put", array, index, outcome(lambda: assign(t)), wanted)
    array[index] = value


def getter(array: Any) -> Any:
    return lambda index: get(array, index)


def putter(array: Any) -> Any:
    return lambda index, value: put(array, index, value)


class Rewriter(ast.NodeTransformer):
    """Puts calls of the functions above in the place of expressions with an index."""

    def _index(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Slice):
            none = ast.Constant(None)
            parts = [part or none for part in (node.lower, node.upper, node.step)]
            return ast.Call(ast.Name("slice", ast.Load()), parts, [])
        if isinstance(node, ast.Tuple):
            return ast.Tuple([self._index(item) for item in node.elts], ast.Load())
        return node

    @staticmethod
    def _call(name: str, *args: ast.expr) -> ast.expr:
        return ast.Call(ast.Name(f"_upstream_{name}", ast.Load()), list(args), [])

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            return self._call("get", node.value, self._index(node.slice))
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self.generic_visit(node)
        target = node.targets[0]
        if len(node.targets) == 1 and isinstance(target, ast.Subscript):
            call = self._call("put", target.value, self._index(target.slice), node.value)
            return ast.Expr(call)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if node.attr == "__getitem__":
            return self._call("getter", node.value)
        if node.attr == "__setitem__":
            return self._call("putter", node.value)
        return node


def rewritten(source: str) -> str:
    tree = ast.fix_missing_locations(Rewriter().visit(ast.parse(source)))
    names = ", ".join(f"{name} as _upstream_{name}" for name in ("get", "put", "getter", "putter"))
    return f"from upstream_indexing import {names}\n{ast.unparse(tree)}"


def upstream() -> Path | None:
    """Returns NumPy's folder of tests; None where NumPy is installed without them."""
    folder = Path(np.__file__).parent
    for name in ("_core", "core"):
        if (folder / name / "tests" / "test_indexing.py").exists():
            return folder / name / "tests"
    return None


def run(files: Sequence[str] = FILES, broken: bool = False) -> dict[str, Any]:
    """Returns NumPy's version, how many expressions were tried, what differed, and what pytest said
    of NumPy's own tests. Raises RuntimeError if they did not run."""
    source = upstream()
    if source is None:
        raise RuntimeError("NumPy is installed without its tests.")
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        for name in files:
            (Path(folder) / name).write_text(rewritten((source / name).read_text()))
        (Path(folder) / "conftest.py").write_text(
            "import json, pathlib, upstream_indexing as found\n"
            "def pytest_sessionfinish():\n"
            f"    pathlib.Path({str(report)!r}).write_text("
            "json.dumps([found.tried, found.different]))\n"
        )
        paths = [str(here), *(p for p in sys.path if p)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if broken:
            environment[BROKEN] = "1"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
        done = subprocess.run(
            [*command, "--rootdir", folder, *files],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
        if not report.exists():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        count, unlike = json.loads(report.read_text())
    said = done.stdout.strip().splitlines()[-1]
    return {"numpy": np.__version__, "tried": count, "different": unlike, "pytest": said}


if __name__ == "__main__":
    result = run(sys.argv[1:] or FILES)
    for line in result["different"]:
        print(line)
    count = result["tried"] - len(result["different"])
    print(f"NumPy {result['numpy']}: {count} of {result['tried']} index expressions agree.")
    print(f"NumPy's own tests: {result['pytest']}")
