# SPDX-License-Identifier: Apache-2.0
"""What the site consists of: the pages that docs/README.md lists, in its order, under its headings.

That page is the table of contents for readers of the repository, and this module makes the same of
it for Sphinx, so that there is one list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["INDEX", "ROOT", "Section", "docname_of", "listed", "pages_below", "sections"]

ROOT = Path(__file__).resolve().parents[2]

#: The page whose headings and links are the table of contents.
INDEX = ROOT / "docs" / "README.md"

#: Pages with a place of their own on the site; those of docs/ lie where they lie in docs/.
_PLACES = {
    "docs/README.md": "index",
    "README.md": "overview",
    "ARCHITECTURE.md": "design/architecture",
    "STYLE.md": "design/style",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "bench/README.md": "bench",
}

_HEADING = re.compile(r"^##+ +(.*?)\s*$")
_LINK = re.compile(r"\]\(([^)#\s]+\.md)\)")


@dataclass(frozen=True)
class Section:
    """A heading of the table of contents, and the pages under it."""

    title: str
    pages: tuple[Path, ...]


def sections(text: str | None = None) -> list[Section]:
    """The headings of the table of contents that have pages. Raises ValueError for a page that is
    not there, or is listed twice."""
    title, found, seen = "", {}, set()
    for line in (INDEX.read_text("utf-8") if text is None else text).splitlines():
        heading = _HEADING.match(line)
        if heading:
            title = heading[1]
        for target in _LINK.findall(line):
            page = (INDEX.parent / target).resolve()
            if not page.is_file():
                raise ValueError(f"{INDEX.name} lists {target}, which is not there")
            if not title:
                continue  # the introduction links as any page does
            if page in seen:
                raise ValueError(f"{INDEX.name} lists {target} twice")
            seen.add(page)
            found.setdefault(title, []).append(page)
    return [Section(name, tuple(pages)) for name, pages in found.items()]


def pages_below(page: Path) -> list[Path]:
    """The pages that belong to a README of a folder in docs/: all others of that folder."""
    if page.name != "README.md" or page.parent.parent != INDEX.parent:
        return []
    return sorted(other for other in page.parent.glob("*.md") if other != page)


def listed() -> list[Path]:
    """Every page of the site that is written by hand, in order."""
    found = [INDEX]
    for section in sections():
        for page in section.pages:
            found += [page, *pages_below(page)]
    return found


def docname_of(page: Path) -> str:
    """Sphinx's name of a page: its address on the site, without an ending."""
    name = page.relative_to(ROOT).as_posix()
    if name in _PLACES:
        return _PLACES[name]
    path = PurePosixPath(name)
    if path.name == "README.md":
        path = path.parent / "index.md"
    if path.parts[0] == "docs":
        path = path.relative_to("docs")
    return path.with_suffix("").as_posix().lower()
