# SPDX-License-Identifier: Apache-2.0
"""Every link of every page leads somewhere: files, headings, and addresses that are whole.
Addresses on the web are listed, and not asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import site_markdown as markdown
from support import ROOT

PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(
            page
            for folder in ("docs", "bench", "examples", ".github", "tests/vectors")
            for page in (ROOT / folder).rglob("*.md")
        ),
    }
)


def faults(page: Path, text: str | None = None) -> list[str]:
    """What is wrong with the links of a page."""
    found = []
    own = page.read_text("utf-8") if text is None else text
    for link in markdown.links(own):
        where = f"{page.relative_to(ROOT)}:{link.line}: {link.target}"
        if link.outside:
            if not re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?|mailto:\S+@\S+", link.target):
                found.append(f"{where} is no address")
            continue
        target = (page.parent / link.path).resolve() if link.path else page
        if not target.is_relative_to(ROOT):
            found.append(f"{where} leads out of the repository")
        elif target != page and not target.exists():
            found.append(f"{where} is not there")
        elif link.anchor and target.suffix == ".md":
            there = own if target == page else target.read_text("utf-8")
            if link.anchor not in markdown.anchors(there):
                found.append(f"{where}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not faults(page)


@pytest.mark.parametrize(
    "link, words",
    [
        ("[a](nothing.md)", "not there"),
        ("[a\nb](README.md#set-down)", "no such heading"),
        ("[`a`](#nowhere)", "no such heading"),
        ("[a](../elsewhere.md)", "out of the repository"),
        ("[a](https://nowhere)", "no address"),
        ("[a](http://example.org)", "no address"),
    ],
)
def test_a_link_that_leads_nowhere_is_noticed(link: str, words: str) -> None:
    """The control."""
    text = f"# Title\n\n`[x](code.md)` and {link}.\n\n```text\n[y](code.md)\n```\n"
    (fault,) = faults(ROOT / "page.md", text)
    assert words in fault and fault.startswith("page.md:3: ")


def test_anchors_are_those_of_a_forge() -> None:
    text = (
        "# What a process leaves: `pyccmem.guard()`\n\n```text\n# no heading\n```\n\n"
        "## Not dumped, not read\n\n## Not dumped, not read\n\n### [A link](x.md) & more_of it\n"
    )
    assert markdown.anchors(text) == {
        "what-a-process-leaves-pyccmemguard",
        "not-dumped-not-read",
        "not-dumped-not-read-1",
        "a-link--more_of-it",
    }
