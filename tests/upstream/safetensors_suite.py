# SPDX-License-Identifier: Apache-2.0
"""Runs safetensors' own Python tests with pyccmem in the place of safetensors, and counts.

    python tests/upstream/safetensors_suite.py safetensors-0.8.0.tar.gz
    python tests/upstream/safetensors_suite.py CHECKOUT --mode sealed

The argument is its source distribution, or a checkout of https://github.com/huggingface/safetensors
(Apache-2.0) at the tag of a version. Nothing of it is kept: the tests are copied to a temporary
folder, and run there twice, with files that stay sealed and with files that were decrypted; see
safetensors_plugin.py. safetensors_expected.py lists what is left out or changed, with reasons. Ends
with status 1 if anything else does not pass.

Needs torch, ml_dtypes, pytest, fsspec, and safetensors itself.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import safetensors_expected as expected

HERE = Path(__file__).resolve().parent
MODES = ("sealed", "decrypted")


class _Sentences(ast.NodeTransformer):
    """Makes comparisons of an exception's text true in the tests of OWN_SENTENCES."""

    def __init__(self, file: str) -> None:
        self._place, self._inside, self.changed = [file], False, 0

    def _named(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self._place.append(node.name)
        outside = self._inside
        self._inside = self._inside or "::".join(self._place) in expected.OWN_SENTENCES
        self.generic_visit(node)
        self._inside = outside
        self._place.pop()
        return node

    visit_ClassDef = visit_FunctionDef = _named

    def visit_Call(self, node: ast.Call) -> ast.AST:
        text = ast.unparse(node)
        compares = re.match(r"self\.assert(Equal|In)\(", text)
        if self._inside and compares and re.search(r"str\(\w+\.exception\)", text):
            self.changed += 1
            return ast.parse("self.assertTrue(True)", mode="eval").body
        return self.generic_visit(node)


def _unpacked(source: Path, place: Path) -> Path:
    """Returns the folder of the sources."""
    if source.is_dir():
        return source
    with tarfile.open(source) as archive:
        archive.extractall(place, filter="data")
    (found,) = place.iterdir()
    return found


def _version(root: Path) -> str:
    text = (root / "bindings/python/Cargo.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return found.group(1) if found else "unknown"


def _prepared(tests: Path, place: Path) -> int:
    """Copies the tests, but for those of other frameworks. Returns how many comparisons of
    sentences were changed."""
    changed = 0
    (place / "tests/data").mkdir(parents=True)
    for file in sorted(tests.glob("*.py")):
        if file.name in expected.OTHER_FRAMEWORKS:
            continue
        sentences = _Sentences(file.name)
        tree = sentences.visit(ast.parse(file.read_text(encoding="utf-8")))
        changed += sentences.changed
        if sentences.changed:
            text = ast.unparse(ast.fix_missing_locations(tree))
            (place / "tests" / file.name).write_text(text, encoding="utf-8")
        else:
            shutil.copy(file, place / "tests" / file.name)
    return changed


def _run(tests: Path, mode: str, verbose: bool) -> tuple[dict[str, list[str]], int, str]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        changed = _prepared(tests, place)
        results = place / "results.json"
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "safetensors_plugin", "-q"),
                *("-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder, "tests"),
            ],
            cwd=place,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYCCMEM_SUITE_MODE": mode,
                "PYCCMEM_SUITE_RESULTS": str(results),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if not results.exists():
            sys.exit(f"pytest did not run:\n{done.stdout}{done.stderr}")
        found: dict[str, list[str]] = json.loads(results.read_text(encoding="utf-8"))
        return found, changed, done.stdout if verbose else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a source distribution or a checkout")
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--verbose", action="store_true", help="show what pytest says")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        root = _unpacked(arguments.source, Path(folder))
        tests, version = root / "bindings/python/tests", _version(root)
        if version != expected.VERSION:
            print(f"The lists are for {expected.VERSION}, and this is {version}.")
        others = sum((tests / name).exists() for name in expected.OTHER_FRAMEWORKS)
        for mode in MODES if arguments.mode is None else (arguments.mode,):
            results, changed, said = _run(tests, mode, arguments.verbose)
            print(said, end="")
            counts = Counter(outcome for outcome, _ in results.values())
            total = sum(counts.values()) - counts["absent"]
            print(
                f"safetensors {version}, {mode}: {counts['passed']} of {total} pass, "
                f"{counts['excluded']} excluded, {counts['skipped']} skip themselves, "
                f"{counts['failed']} fail; {changed} comparisons of sentences changed, {others} "
                f"files of other frameworks left out"
            )
            for name, (outcome, why) in sorted(results.items(), key=lambda pair: pair[1]):
                if outcome != "passed":
                    print(f"  {outcome}: {name}{': ' if why else ''}{why}")
            failed = failed or bool(counts["failed"] + counts["absent"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
