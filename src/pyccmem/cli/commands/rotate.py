# SPDX-License-Identifier: Apache-2.0
"""`pyccmem rotate`: gives all sealed files of a directory another key, as a whole."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..directory import directory_function
from ..keys import add_context_option, add_key_options, context_of, key_of
from ..output import safe, show_json, show_table

__all__ = ["add_arguments", "add_rotation_options", "rotated", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem rotate`."""
    parser.description = (
        "Makes all sealed files of a directory open with another key, all at once: a new directory "
        "is made beside it and takes its place in one step. Processes that have the old files "
        "open, or mapped, keep them. By default the files' data keys are wrapped anew, and nothing "
        "is decrypted; with --re-encrypt each file gets a new data key. What was killed is "
        "gone on with by the same command."
    )
    parser.epilog = (
        "Exit status: 0 all files open with the new key; 2 wrong usage or another error, and the "
        "directory is as it was."
    )
    parser.add_argument("directory", metavar="DIR", help="a directory of sealed files")
    add_rotation_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, "the key that opens them now")
    add_key_options(parser, "the key that shall open them", prefix="new-", sealing=True)


def add_rotation_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how."""
    parser.add_argument(
        "--re-encrypt",
        action="store_true",
        help="a new data key for each file: who has the old key, and an old file, cannot read "
        "the new files",
    )
    add_context_option(parser, "--context", "a text that the files' contexts must have")
    add_context_option(
        parser, "--new-context", "a text of the new context, which else stays as it is"
    )


def run(arguments: argparse.Namespace) -> int:
    """Rotates and prints. Raises what rotate_directory() raises."""
    with key_of(arguments) as old, key_of(arguments, "new-") as new:
        return rotated(arguments, old, new)


def rotated(arguments: argparse.Namespace, old: Any, new: Any) -> int:
    """Rotates from one key to the other, and prints. Returns the exit status."""

    def progress(path: str, number: int, count: int) -> None:
        if path and sys.stderr.isatty():
            print(f"{number + 1} of {count}  {safe(path)}", file=sys.stderr, flush=True)

    done = directory_function("rotate_directory")(
        arguments.directory,
        old,
        new,
        re_encrypt=arguments.re_encrypt,
        context=context_of(arguments.context),
        new_context=context_of(arguments.new_context),
        progress=progress,
    )
    if arguments.json:
        show_json(
            {
                "directory": arguments.directory,
                "pin": done.pin,
                "changed": done.changed,
                "resumed": done.resumed,
                "files": [{"file": name, "pin": pin} for name, pin in done.pins.items()],
            }
        )
        return 0
    what = "rotated" if done.changed else "opens with the new key already"
    print(f"{safe(arguments.directory)}: {what}")
    show_table(("sealed file", "pin"), [(safe(name), pin) for name, pin in done.pins.items()])
    print(f"directory  {done.pin}")
    return 0
