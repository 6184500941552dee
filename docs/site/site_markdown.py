# SPDX-License-Identifier: Apache-2.0
"""Links and headings of a Markdown page, as a forge reads them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

__all__ = ["Link", "anchors", "escaped", "links", "replaced"]

#: Code, in which nothing is a link: fenced blocks, comments, and pieces between backticks.
_CODE = re.compile(
    r"^```.*?^```[ \t]*$|<!--.*?-->|(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)",
    re.DOTALL | re.MULTILINE,
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)

#: Characters that mean something to Markdown where no code is.
_SPECIAL = re.compile(r"([\\*_|<>\[\]{}$#~])")


@dataclass(frozen=True)
class Link:
    """`[text](target)`; `line` counts from 1."""

    text: str
    target: str
    line: int
    image: bool

    @property
    def outside(self) -> bool:
        """True for an address on the web."""
        return "://" in self.target or self.target.startswith("mailto:")

    @property
    def path(self) -> str:
        """The file that is meant; empty for the page itself."""
        return unquote(self.target.partition("#")[0])

    @property
    def anchor(self) -> str:
        """The heading that is meant, or nothing."""
        return unquote(self.target.partition("#")[2])


def _hidden(text: str) -> tuple[str, list[str]]:
    """The text with a mark in place of each piece of code, and the pieces."""
    pieces: list[str] = []

    def hide(match: re.Match[str]) -> str:
        pieces.append(match[0])
        return f"\0{len(pieces) - 1}\0"

    return _CODE.sub(hide, text), pieces


def _shown(text: str, pieces: list[str]) -> str:
    return re.sub(r"\0(\d+)\0", lambda mark: pieces[int(mark[1])], text)


def replaced(text: str, change: Callable[[Link], str]) -> str:
    """The page with what `change` returns in the place of each link."""
    hidden, pieces = _hidden(text)

    def one(match: re.Match[str]) -> str:
        line = _shown(hidden[: match.start()], pieces).count("\n") + 1
        return change(Link(_shown(match[2], pieces), match[3], line, bool(match[1])))

    return _shown(_LINK.sub(one, hidden), pieces)


def links(text: str) -> list[Link]:
    """All links of a page."""
    found: list[Link] = []

    def note(link: Link) -> str:
        found.append(link)
        return ""

    replaced(text, note)
    return found


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives the headings of a page."""
    hidden, pieces = _hidden(text)
    found: dict[str, int] = {}
    names: set[str] = set()
    for _, heading in _HEADING.findall(hidden):
        plain = _shown(_LINK.sub(r"\2", heading), pieces).replace("`", "")
        kept = (c for c in plain.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
        name = "".join(kept).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def escaped(text: str) -> str:
    """Plain text, in which only backticks mean something, as Markdown for a line or a cell."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(
        part.replace("|", "\\|") if part.startswith("`") else _SPECIAL.sub(r"\\\1", part)
        for part in parts
    )
