# SPDX-License-Identifier: Apache-2.0
"""Every source file opens with its licence and with what it is for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support import ROOT

LICENCE = "SPDX-License-Identifier: Apache-2.0"
FOLDERS = ("csrc", "ggml", "src", "tests", "bench", "release", "docs", "examples")
SOURCES = [
    path
    for path in (
        *ROOT.glob("*.py"),
        *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.*") if p.is_file()),
    )
    if path.suffix in (".py", ".c", ".h") and path.name != "_native.c"
]


def fault_of_python(text: str) -> str | None:
    """What is wrong with the beginning of a Python file."""
    lines = text.splitlines()
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    if not lines or lines[0] != f"# {LICENCE}":
        return "its first line is not the licence"
    if not ast.get_docstring(ast.parse(text)):
        return "no docstring says what it is for"
    return None


def fault_of_c(text: str, header: bool = False) -> str | None:
    """What is wrong with the beginning of a C file; `header`: a header of its name describes it."""
    first = text.partition("\n")[0]
    if first not in (f"/* {LICENCE}", f"/* {LICENCE} */"):
        return "its first line is not the licence"
    comments = re.match(r"(\s*/\*.*?\*/)+", text, re.S)
    words = re.findall(r"\w{2,}", comments[0] if comments else "")
    if len(words) < 8 and not header:  # the licence has five
        return "no comment says what it is for"
    return None


def fault_of(path: Path) -> str | None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return fault_of_python(text)
    return fault_of_c(text, path.suffix == ".c" and path.with_suffix(".h").exists())


def test_every_file_opens_with_its_licence_and_what_it_is_for() -> None:
    assert len(SOURCES) > 250
    faults = {str(path.relative_to(ROOT)): fault_of(path) for path in SOURCES}
    assert not {name: fault for name, fault in faults.items() if fault}


@pytest.mark.parametrize(
    "text",
    [
        '"""What for."""\n',
        f"# {LICENCE}\nimport os\n",
        f'# {LICENCE} and more\n"""What for."""\n',
        f'\n# {LICENCE}\n"""What for."""\n',
    ],
)
def test_a_python_file_without_is_noticed(text: str) -> None:
    """The control."""
    assert fault_of_python(text)
    assert not fault_of_python(f'# {LICENCE}\n"""What for."""\n')


@pytest.mark.parametrize(
    "text",
    [
        f"/* {LICENCE} */\nint x;\n",
        f"/* {LICENCE} AES key wrap: encrypts a key\n * under another. */\n",
        "/* Wraps keys under other keys, and unwraps them. */\n",
    ],
)
def test_a_c_file_without_is_noticed(text: str) -> None:
    """The control."""
    assert fault_of_c(text)
    assert not fault_of_c(f"/* {LICENCE} */\n/* Wraps keys under other keys. */\nint x;\n")
    assert not fault_of_c(f"/* {LICENCE}\n * Wraps keys under other keys. */\nint x;\n")
