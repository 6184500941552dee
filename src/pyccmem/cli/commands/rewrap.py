# SPDX-License-Identifier: Apache-2.0
"""`pyccmem rewrap`: makes sealed files open with another key."""

from __future__ import annotations

import argparse

from ...safetensors import rewrap_file
from ..keys import add_context_option, add_key_options, context_of, key_of
from ..output import safe, show_json
from ..walk import Found

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem rewrap`."""
    parser.description = (
        "Makes sealed files open with another key, in place. Nothing is decrypted: the file's own "
        "data key is wrapped anew. With the old key, a copy of the old file can still be "
        "read; to keep new contents from that key, use `pyccmem rotate --re-encrypt`. Of a "
        "directory, "
        "every safetensors and GGUF file is rewrapped, one after the other; the first failure "
        "ends the run, and what was printed before it is done."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a sealed file, or a directory")
    add_context_option(parser, "--context", "a text that the file's context must have")
    add_context_option(
        parser, "--new-context", "a text of the new context, which else stays as it is"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, "the key that opens it now")
    add_key_options(parser, "the key that shall open it", prefix="new-", sealing=True)


def run(arguments: argparse.Namespace) -> int:
    """Rewraps and prints. Raises what rewrap_file() raises."""
    pins = {}
    context, new_context = context_of(arguments.context), context_of(arguments.new_context)
    with key_of(arguments) as old, key_of(arguments, "new-") as new:
        assert old is not None and new is not None, "argparse asks for both"
        for path in Found(arguments.files).paths:
            pins[path] = rewrap_file(path, old, new, context=context, new_context=new_context)
            if not arguments.json:
                print(f"{safe(path)}  {pins[path]}", flush=True)
    if arguments.json:
        show_json([{"file": path, "pin": pin} for path, pin in pins.items()])
    return 0
