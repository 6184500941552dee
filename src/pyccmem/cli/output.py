# SPDX-License-Identifier: Apache-2.0
"""Prints the output of commands: names and values, tables, JSON; no character that controls a
terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..console.terminal import table_console

__all__ = ["safe", "show_json", "show_named", "show_rows", "show_table", "size"]


def safe(text: str) -> str:
    """Returns a text from a file without characters that control a terminal."""
    return "".join(
        c if c.isprintable() and c.isascii() else c.encode("unicode_escape").decode() for c in text
    )


def size(nbytes: int) -> str:
    """Returns a number of bytes in a readable form."""
    if nbytes < 1024:
        return f"{nbytes} bytes"
    power = min((nbytes.bit_length() - 1) // 10, 4)
    return f"{nbytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def show_json(value: Any) -> None:
    """Prints JSON in ASCII."""
    print(json.dumps(value, indent=2))


def show_rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints a title, and a line for each name and value."""
    print(title)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def show_named(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Does show_rows(), but as a table by rich on a terminal, if it is installed."""
    console = table_console()
    if console is not None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        console.print(table)
        return
    show_rows(title, rows)


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: by rich on a terminal, if it is installed, else as plain text."""
    console = table_console()
    if console is not None:
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for head in heads:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    for row in [heads, *rows]:
        print(
            "  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        )
