# SPDX-License-Identifier: Apache-2.0
"""The text to embed: docstrings of the Python standard library, or the lines of a file."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .. import errors

__all__ = ["from_file", "from_standard_library"]

#: Shorter docstrings say too little to be found by their meaning.
_SHORTEST = 80


def from_file(path: str) -> list[tuple[str, str]]:
    """Returns (place, text) of every line of a UTF-8 file that is not blank.

    Raises FileReadError, FileFormatError.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise errors.FileFormatError(f"{path!r} is not UTF-8 text: {error.reason}.") from None
    except (OSError, ValueError) as error:
        raise errors.FileReadError(f"{path!r} cannot be read: {error}.") from None
    found = [(f"line {number}", " ".join(line.split())) for number, line in enumerate(lines, 1)]
    found = [(place, text) for place, text in found if text]
    if not found:
        raise errors.FileFormatError(f"{path!r} has no text; it must have one passage a line.")
    return found


def from_standard_library(count: int) -> list[tuple[str, str]]:
    """Returns (name, text) of `count` docstrings, the same ones every time for one version of
    Python.

    The files are parsed and never run. All the modules' own docstrings come first, then functions
    and classes from evenly spread places.
    """
    modules: list[tuple[str, str]] = []
    inner: list[tuple[str, str]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for name, text in _docstrings(tree, path.stem):
            (modules if name == path.stem else inner).append((name, text))
    chosen = modules[:count]
    rest = min(count - len(chosen), len(inner))
    return chosen + [inner[i * len(inner) // rest] for i in range(rest)]


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of the docstrings of a module or class and of the public names in it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = " ".join((ast.get_docstring(node) or "").split())
        if len(text) >= _SHORTEST:
            yield name, text
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            child_name = getattr(child, "name", "_")
            if not child_name.startswith("_"):
                yield from _docstrings(child, f"{name}.{child_name}")
