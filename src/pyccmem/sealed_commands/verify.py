# SPDX-License-Identifier: Apache-2.0
"""`pyccmem verify`: is all of a sealed file as it was sealed?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .. import errors
from ..safetensors._inspect import Damage, damage_of
from ._keys import add_key_options, key_of
from ._output import safe, show_json

__all__ = ["EXIT_DAMAGED", "add_arguments", "run"]

EXIT_DAMAGED = 1

_MOST_PAGES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem verify`."""
    parser.description = "Checks the header, the table and every page of sealed files."
    parser.epilog = (
        "Exit status: 0 all is as it was sealed; 1 something was changed; 2 wrong usage or another "
        "error (no such file, another key)."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a sealed file")
    parser.add_argument(
        "--expect", metavar="ID:GENERATION", help="the file and the least generation to accept"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Checks and prints. Raises what verify_file() raises, but for IntegrityError."""
    if arguments.expect and len(arguments.files) > 1:
        raise errors.ArgumentError("--expect is for one file; check them one by one.")
    results = []
    with key_of(arguments) as key:
        assert key is not None, "argparse asks for one"
        for path in arguments.files:
            result: dict[str, Any] = {"file": path, "whole": False, "error": None, "damage": []}
            try:
                opened, damage = damage_of(path, key, expect=arguments.expect)
            except (errors.IntegrityError, errors.FileFormatError) as error:
                result["error"] = str(error)
                lines = [f"{safe(path)}  DAMAGED: {error}"]
            else:
                result |= {"whole": not damage, "pin": f"{opened.file_id}:{opened.generation}"}
                result["damage"] = [
                    {"tensor": found.tensor, "pages": found.pages} for found in damage
                ]
                lines = [f"{safe(path)}  {'DAMAGED' if damage else 'whole'}  {result['pin']}"]
                lines += [f"  {safe(found.tensor)}: {_words(found)}" for found in damage]
            results.append(result)
            if not arguments.json:
                print(*lines, sep="\n")
                sys.stdout.flush()
    if arguments.json:
        show_json(results)
    return 0 if all(result["whole"] for result in results) else EXIT_DAMAGED


def _words(damage: Damage) -> str:
    if damage.pages is None:
        return f"its versions and tags (of {damage.npages} pages) were changed"
    shown = ", ".join(map(str, damage.pages[:_MOST_PAGES]))
    more = f" and {len(damage.pages) - _MOST_PAGES} more" if len(damage.pages) > _MOST_PAGES else ""
    return f"{len(damage.pages)} of {damage.npages} pages: {shown}{more}"
