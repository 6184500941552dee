# SPDX-License-Identifier: Apache-2.0
"""Docstrings as Sphinx wants them. Here they are plain text, to be read in a terminal: paragraphs,
code and tables indented, names of code between single backticks."""

from __future__ import annotations

import itertools
import re

__all__ = ["restructured"]

_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
_SPECIAL = re.compile(r"([\\*|]|(?<=\w)_(?!\w))")
_COLUMNS = re.compile(r"\S+(?: \S+)* {2,}\S| {4,}")


def restructured(lines: list[str], exceptions: frozenset[str] = frozenset()) -> list[str]:
    """The lines of a docstring as reStructuredText. Names of `exceptions` become links."""
    made: list[str] = []
    for paragraph in _paragraphs(lines):
        if paragraph[0].startswith(" ") or _is_table(paragraph):
            made += [f".. code-block:: {_language(paragraph)}", ""]
            made += [f"   {line}".rstrip() for line in _dedented(paragraph)]
        else:
            made += _inline("\n".join(paragraph), exceptions).split("\n")
        made.append("")
    return made


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Pieces between blank lines; what is indented stays together, blank lines and all."""
    found: list[list[str]] = []
    blank = True
    for line in lines:
        if not line.strip():
            blank = True
            continue
        if not blank:
            found[-1].append(line)
        elif found and line.startswith("    ") and found[-1][0].startswith("    "):
            found[-1] += ["", line]
        else:
            found.append([line])
        blank = False
    # A sentence before code may end with two colons, which say the same in reStructuredText.
    for before, after in itertools.pairwise(found):
        if after[0].startswith(" ") and before[-1].endswith("::"):
            before[-1] = before[-1][:-1]
    return found


def _is_table(paragraph: list[str]) -> bool:
    return len(paragraph) > 1 and all(_COLUMNS.match(line) for line in paragraph)


def _dedented(paragraph: list[str]) -> list[str]:
    margin = min(len(line) - len(line.lstrip()) for line in paragraph if line.strip())
    return [line[margin:] for line in paragraph]


def _language(paragraph: list[str]) -> str:
    if paragraph[0].lstrip().startswith(">>> "):
        return "pycon"
    try:
        compile("\n".join(_dedented(paragraph)), "docstring", "exec")
    except (SyntaxError, ValueError):
        return "text"
    return "python"


def _inline(text: str, exceptions: frozenset[str]) -> str:
    parts = _CODE.split(text)
    for number, part in enumerate(parts):
        if number % 2:
            code = part.strip("`")
            parts[number] = f"``{code}``"
            continue
        plain = _SPECIAL.sub(r"\\\1", part)
        parts[number] = re.sub(
            r"\b[A-Z]\w+\b",
            lambda name: f":exc:`~pyccmem.errors.{name[0]}`" if name[0] in exceptions else name[0],
            plain,
        )
    return "".join(parts)
