# SPDX-License-Identifier: Apache-2.0
"""`pyccmem posture`: shows what protects a process now, and ends with a status that says whether
that is enough."""

from __future__ import annotations

import argparse

from ... import __version__, errors
from ...assessment import LEVELS, NAMES, STATES, Line, Posture, posture
from ...console.command import EXIT_FAILED, complain
from ..output import safe, show_json, show_rows, show_table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem posture`."""
    parser.description = (
        "Looks at what protects a process now: this command's own, as any Python program that is "
        "started the same way, or another one, of which less is to be seen from outside. Each line "
        "is good, weak, bad or unknown."
    )
    parser.epilog = (
        f"Levels: {', '.join(LEVELS)}. Lines: {', '.join(NAMES)}. `pyccmem run -- pyccmem posture` "
        "shows what a program started by `pyccmem run` has. Exit status: 0 shown, and all is as "
        "required; 1 something is not; 2 wrong usage or another error."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="LEVEL|NAME",
        help="end with status 1 unless this level is reached, or this line is good (NAME:weak: or "
        "weak); may be repeated",
    )
    parser.add_argument("--pid", type=int, help="look at this process from outside")


def run(arguments: argparse.Namespace) -> int:
    """Prints it. Raises what posture() raises, but PostureError."""
    failed: tuple[Line, ...] = ()
    try:
        found = posture(arguments.require, pid=arguments.pid)
    except errors.PostureError as error:
        found, failed = error.posture, error.lines
        sentence = str(error)
    if arguments.json:
        names = [line.name for line in failed]
        shown = {"version": __version__, **found.to_dict()}
        show_json({**shown, "required": arguments.require, "failed": names})
    else:
        _show(found)
    if failed:
        complain(safe(sentence))
        return EXIT_FAILED
    return 0


def _show(found: Posture) -> None:
    print(f"process {found.pid}, level {found.level}")
    show_table(
        ("line", "state", "seen"), [[line.name, line.state, safe(line.seen)] for line in found]
    )
    for state in STATES[1:]:
        lines = [line for line in found if line.state == state]
        if lines:
            rows = [(line.name, f"{line.why}: {safe(line.remedy)}") for line in lines]
            show_rows(f"{state}:", rows)
