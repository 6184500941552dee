# SPDX-License-Identifier: Apache-2.0
"""ARCHITECTURE.md, STYLE.md and docs/ name no file of the project that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "ARCHITECTURE.md",
    ROOT / "STYLE.md",
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

#: Names in backticks that say of which folder they are, and targets of links.
QUOTED = re.compile(r"`((?:csrc|ggml|src|tests|docs|bench|release)/[\w./-]+)`")
LINKED = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def missing(text: str, folder: Path) -> list[str]:
    """What a page in `folder` names that is not there."""
    names = [(ROOT / name, name) for name in QUOTED.findall(text)]
    names += [(folder / name, name) for name in LINKED.findall(text) if "://" not in name]
    return [name for path, name in names if not path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_is_there(page: Path) -> None:
    assert not missing(page.read_text(encoding="utf-8"), page.parent)


def test_a_file_that_is_gone_is_told() -> None:
    """The control."""
    text = "`csrc/store/store.c`, [here](docs/nothing.md#top), `csrc/ccmem.h`, [a](README.md)"
    assert missing(text, ROOT) == ["csrc/store/store.c", "docs/nothing.md"]
