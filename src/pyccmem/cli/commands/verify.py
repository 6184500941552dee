# SPDX-License-Identifier: Apache-2.0
"""`pyccmem verify`: checks that sealed files, or all files of a directory, are as they were
sealed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ... import errors
from ...console.command import EXIT_ERROR
from ...safetensors._inspect import Damage, damage_of
from ...safetensors.providers import AnyKey
from ..keys import add_context_option, add_key_options, context_of, key_of
from ..output import safe, show_json
from ..walk import Found

__all__ = ["EXIT_DAMAGED", "EXIT_ERROR", "add_arguments", "run"]

EXIT_DAMAGED = 1

_MOST_PAGES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem verify`."""
    parser.description = (
        "Checks the header, the table and every page of sealed files. Of a directory, every "
        "safetensors and GGUF file is checked; one that is not sealed counts as changed."
    )
    parser.epilog = (
        "Exit status: 0 all is as it was sealed; 1 something was changed; 2 wrong usage or another "
        "error (no such file, another key). Of several files all are checked in any case."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a sealed file, or a directory")
    parser.add_argument(
        "--expect",
        metavar="PIN",
        help="ID:GENERATION, the file and the least generation to accept; or the pin of the "
        "directory, dir:...",
    )
    add_context_option(parser, "--context", "a text that the file's context must have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Checks and prints. Raises what verify_file() raises except IntegrityError; for several files,
    errors of single files are printed instead."""
    found = Found(arguments.files)
    results = []
    width = max(map(len, map(safe, found.paths)))
    context = context_of(arguments.context)
    with key_of(arguments) as key:
        assert key is not None, "argparse asks for one"
        try:
            expected = found.expected(arguments.expect, key, context)
        except (errors.IntegrityError, errors.FileFormatError) as error:
            return _refused(arguments, str(error))
        for path in found.paths:
            try:
                result = _checked(path, key, expected[path], context)
            except errors.PyccmemError as error:
                if not found.several:
                    raise
                result = _result(path, "error", error=str(error))
            results.append(result)
            if not arguments.json:
                for line in _lines(result, width):
                    print(line, flush=True)
    if arguments.json:
        show_json([_public(result) for result in results])
    elif found.several:
        print(_summary(results))
    states = {result["state"] for result in results}
    return EXIT_DAMAGED if "DAMAGED" in states else EXIT_ERROR if "error" in states else 0


def _refused(arguments: argparse.Namespace, why: str) -> int:
    """Prints that a directory is not the one that was expected."""
    result = _result(arguments.files[0], "DAMAGED", error=why)
    if arguments.json:
        show_json([_public(result)])
    else:
        print(f"{safe(result['file'])}  DAMAGED: {why}")
    return EXIT_DAMAGED


def _result(path: str, state: str, **more: Any) -> dict[str, Any]:
    return {"file": path, "state": state, "error": None, "pin": None, "damage": [], **more}


def _checked(
    path: str, key: AnyKey, expect: str | None, context: dict[str, str] | None
) -> dict[str, Any]:
    try:
        opened, damage = damage_of(path, key, expect=expect, context=context)
    except (errors.IntegrityError, errors.FileFormatError) as error:
        return _result(path, "DAMAGED", error=str(error).removeprefix(f"{path!a}: "))
    pin = f"{opened.file_id}:{opened.generation}"
    return _result(path, "DAMAGED" if damage else "whole", pin=pin, damage=damage)


def _public(result: dict[str, Any]) -> dict[str, Any]:
    """Returns what --json prints of a file."""
    public = {
        "file": result["file"],
        "whole": result["state"] == "whole",
        "error": result["error"],
        "damage": [{"tensor": found.tensor, "pages": found.pages} for found in result["damage"]],
    }
    return {**public, "pin": result["pin"]} if result["pin"] else public


def _lines(result: dict[str, Any], width: int) -> Iterator[str]:
    name = f"{safe(result['file']):<{width}}"
    if result["error"] is not None:
        yield f"{name}  {result['state']}: {result['error']}"
        return
    yield f"{name}  {result['state']:<7}  {result['pin']}"
    for found in result["damage"]:
        yield f"  {safe(found.tensor)}: {_words(found)}"


def _summary(results: list[dict[str, Any]]) -> str:
    states = [result["state"] for result in results]
    text = f"{len(states)} file{'s' if len(states) > 1 else ''}: {states.count('whole')} whole"
    for state, words in (("DAMAGED", "damaged"), ("error", "not checked")):
        if state in states:
            text += f", {states.count(state)} {words}"
    return text


def _words(damage: Damage) -> str:
    if damage.pages is None:
        return f"its versions and tags (of {damage.npages} pages) were changed"
    shown = ", ".join(map(str, damage.pages[:_MOST_PAGES]))
    more = f" and {len(damage.pages) - _MOST_PAGES} more" if len(damage.pages) > _MOST_PAGES else ""
    return f"{len(damage.pages)} of {damage.npages} pages: {shown}{more}"
