# SPDX-License-Identifier: Apache-2.0
"""What docs/buffers.md says of cipher suites is what the library says of them."""

from __future__ import annotations

import re

from support import ROOT

from pyccmem.binding import DEFAULT_CIPHER, SUITES


def rows(text: str) -> dict[str, tuple[str, bool]]:
    """By suite: the table's column about tags, and whether it is called the default."""
    table = re.search(r"^## Ciphers\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    found = {}
    for line in table[1].splitlines()[2:]:
        name, tag, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        found[name.split("`")[1]] = (tag, name.endswith("(default)"))
    return found


def faults(text: str) -> list[str]:
    wrong = []
    for name, (tag, default) in rows(text).items():
        if name not in SUITES:
            wrong.append(f"there is no {name}")
            continue
        size = SUITES[name].tag_size
        if tag != (f"{size} bytes a page" if size else "none"):
            wrong.append(f"{name}: a tag of {size} bytes")
        if default != (name == DEFAULT_CIPHER):
            wrong.append(f"{name}: the default is {DEFAULT_CIPHER}")
    return wrong


def test_the_table_says_what_is() -> None:
    text = (ROOT / "docs" / "buffers.md").read_text("utf-8")
    assert not faults(text)
    assert {DEFAULT_CIPHER, "aes-256-gcm", "aes-128-xts", "aes-256-xts"} <= set(rows(text))


def test_what_is_wrong_is_noticed() -> None:
    """The control."""
    head = "## Ciphers\n\n| cipher | tag |\n| --- | --- |\n"
    wrong = "| `aes-128-xts` (default) | 16 bytes a page |\n| `rot13` | none |\n"
    assert len(faults(head + wrong)) == 3
