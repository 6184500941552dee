# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem run`, and the run."""

from __future__ import annotations

import argparse
import sys

from .launch import execute
from .settings import FORK, SWAP, Settings

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem run`."""
    parser.usage = "pyccmem run [options] [--] COMMAND [ARGUMENT ...]"
    parser.description = (
        "Becomes COMMAND, of any language, in which freed memory is overwritten before it is given "
        "back, and which is neither dumped nor read by other processes of its user. Python "
        "programs do what pyccmem.guard() does as well, before their own first line; and so do "
        "the processes that they start. Without COMMAND: shows what holds under it here."
    )
    parser.epilog = (
        "Exit status: COMMAND's own; 127 COMMAND was not found; 126 it cannot be run; 2 wrong "
        "usage, or --strict and something asked for cannot be had."
    )
    parser.add_argument(
        "--debuggable", action="store_true", help="leave dumps and debuggers alone (development)"
    )
    parser.add_argument(
        "--swap",
        choices=SWAP,
        default="check",
        help="look whether swap is in the clear, lock all memory, or neither (check)",
    )
    parser.add_argument("--fork", choices=FORK, default="keep", help="what forked children get")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="end Python programs at their start if a part does not hold that was asked for",
    )
    parser.add_argument("--json", action="store_true", help="without COMMAND: print JSON")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Becomes the command. Returns an exit status only if that failed."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        words = [sys.executable, "-m", "pyccmem.hardening.show"]
        words += ["--json"] if arguments.json else []
    settings = Settings(
        debuggable=arguments.debuggable,
        swap=arguments.swap,
        fork=arguments.fork,
        strict=arguments.strict,
    )
    return execute(settings, words)
