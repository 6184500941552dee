# SPDX-License-Identifier: Apache-2.0
"""Output of a command to a terminal: styled tables, and bars that redraw themselves.

NO_COLOR (https://no-color.org), when it is not empty, switches styles off. FORCE_COLOR switches
them on where there is no terminal. A terminal called "dumb" obeys no sequences at all.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

__all__ = ["bar_console", "can_redraw", "table_console"]


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name))


def can_redraw(stream: TextIO) -> bool:
    """Returns True when a line on `stream` can be overwritten: it is a terminal, and not a dumb
    one."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def table_console(stream: TextIO | None = None) -> Any:
    """Returns rich's Console for styled tables on `stream`, by default standard output; None if
    plain text is right, or rich is not installed."""
    stream = sys.stdout if stream is None else stream
    if _is_set("NO_COLOR") or not (_is_set("FORCE_COLOR") or can_redraw(stream)):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream)


def bar_console(*, wanted: bool = False) -> Any:
    """Returns rich's Console for a bar on standard error; None if a bar cannot be redrawn there,
    unless it is `wanted` in any case. Raises ImportError if rich is not installed."""
    if not wanted and not can_redraw(sys.stderr):
        return None
    from rich.console import Console

    return Console(stderr=True, color_system=None if _is_set("NO_COLOR") else "auto")
