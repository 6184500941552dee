# SPDX-License-Identifier: Apache-2.0
"""Writes the table for people and the JSON document for programs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .. import __version__
from ..console.terminal import can_redraw, table_console
from ..cpu import cpu_info
from .rounds import Figure, Plan, Summary

#: Increased when a field of the JSON document changes its meaning.
SCHEMA = 1

Row = tuple[str, ...]
HEADINGS: Row = ("", "value", "reference", "ratio", "quartiles", "target", "", "")
RIGHT = {1, 3, 4, 5}
VERDICT = 6


def machine() -> dict[str, Any]:
    """Returns the properties of this machine on which the figures depend."""
    info = cpu_info()
    return {
        "processor": info["processor"],
        "architecture": info["architecture"],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "tier": info["tier"],
        "tiers": list(info["tiers"]),
        "huge_pages": _huge_pages(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyccmem": __version__,
    }


def _huge_pages() -> str:
    """Returns the system's setting for transparent huge pages: the word in brackets."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or "unknown"


def document(
    plan: Plan, figures: Sequence[Figure], missing: Sequence[str], began: datetime
) -> dict[str, Any]:
    """Returns the results of a run, ready for JSON."""
    return {
        "schema": SCHEMA,
        "date": began.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "rounds": plan.rounds,
        "quick": plan.quick,
        "figures": [_figure(figure) for figure in figures],
        "not_measured": list(missing),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    target = figure.target
    return {
        "id": figure.id,
        "group": figure.group,
        "label": figure.label,
        "kind": figure.kind,
        "value": _summary(figure.value),
        "unit": figure.unit,
        "reference": figure.reference,
        "reference_label": figure.reference_label,
        "ratio": None if figure.ratio is None else _summary(figure.ratio),
        "target": None
        if target is None
        else {
            "of": target.of,
            "sense": "at least" if target.at_least else "at most",
            "limit": target.limit,
        },
        "reached": figure.reached,
        "note": figure.note,
    }


def _summary(summary: Summary) -> dict[str, float]:
    return {"median": summary.median, "low": summary.low, "high": summary.high}


def number(value: float) -> str:
    """Returns a number with three significant digits, larger ones without decimals, smaller ones
    than 1 with three decimals."""
    size = abs(value)
    if size < 0.9995:
        return f"{value:.3f}"
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _row(figure: Figure) -> Row:
    reference = ""
    if figure.reference is not None:
        reference = f"{number(figure.reference)} {figure.reference_label}"
    judged = figure.judged
    spread = ""
    if judged.low != judged.high:
        spread = f"{number(judged.low)} - {number(judged.high)}"
    target = verdict = ""
    if figure.target is not None:
        target = f"{'>=' if figure.target.at_least else '<='} {figure.target.limit:g}"
        if figure.target.of == "value":
            target += f" {figure.unit}"
        verdict = "reached" if figure.reached else "MISSED"
    return (
        figure.label,
        f"{number(figure.value.median)} {figure.unit}",
        reference,
        "" if figure.ratio is None else number(figure.ratio.median),
        spread,
        target,
        verdict,
        figure.note,
    )


def heading(doc: dict[str, Any]) -> list[str]:
    """Returns the lines above the table: the machine and the time."""
    about = doc["machine"]
    return [
        f"pyccmem {about['pyccmem']} on {about['processor']} ({about['cores']} cores)",
        f"tier {about['tier']} of {', '.join(about['tiers'])}; {about['system']}, huge pages "
        f"{about['huge_pages']}; Python {about['python']}, numpy {about['numpy']}",
        f"{doc['date']}, medians of {doc['rounds']} rounds" + (", quick" if doc["quick"] else ""),
    ]


def footing(figures: Sequence[Figure], missing: Sequence[str]) -> list[str]:
    """Returns the lines below the table: targets reached, and what could not be measured."""
    judged = [figure for figure in figures if figure.target is not None]
    lines = [f"not measured: {reason}" for reason in missing]
    if judged:
        reached = sum(bool(figure.reached) for figure in judged)
        lines.append(f"{reached} of {len(judged)} targets reached.")
    return lines


def show(doc: dict[str, Any], figures: Sequence[Figure], out: TextIO | None = None) -> None:
    """Prints the table: by rich on a terminal that is wide enough, if it is installed, else as
    plain text."""
    stream = sys.stdout if out is None else out
    rows = {figure.id: _row(figure) for figure in figures}
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows.values(), strict=True)]

    def line(row: Row) -> str:
        cells = [
            cell.rjust(width) if i in RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return ("  " + "  ".join(cells)).rstrip()

    wide_enough = shutil.get_terminal_size().columns >= sum(widths) + 2 * len(widths)
    console = table_console(stream) if wide_enough else None
    if console is not None:
        _show_rich(console, doc, figures, rows)
        return
    print(*heading(doc), "", line(HEADINGS), sep="\n", file=stream)
    for group, members in groupby(figures, key=lambda figure: figure.group):
        print(group, file=stream)
        for figure in members:
            print(line(rows[figure.id]), file=stream)
    print("", *footing(figures, doc["not_measured"]), sep="\n", file=stream)


def _show_rich(
    console: Any, doc: dict[str, Any], figures: Sequence[Figure], rows: Mapping[str, Row]
) -> None:
    from rich.table import Table
    from rich.text import Text

    for text in heading(doc):
        console.print(Text(text))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if i in RIGHT else "left", no_wrap=True)
    for group, members in groupby(figures, key=lambda figure: figure.group):
        table.add_row(Text(group, style="bold"))
        for figure in members:
            style = {"peer": "dim", "machine": "cyan"}.get(figure.kind, "")
            cells = [Text(cell, style=style) for cell in rows[figure.id]]
            cells[0].pad_left(2)
            if figure.reached is not None:
                cells[VERDICT].stylize("green" if figure.reached else "bold red")
            table.add_row(*cells)
    console.print(table)
    for text in footing(figures, doc["not_measured"]):
        console.print(Text(text))


class Progress:
    """A line on a terminal that says what is being measured. Prints nothing elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._active = can_redraw(self._stream)

    def __call__(self, text: str) -> None:
        if self._active:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=self._stream, flush=True)

    def clear(self) -> None:
        self("")
