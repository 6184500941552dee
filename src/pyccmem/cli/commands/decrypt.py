# SPDX-License-Identifier: Apache-2.0
"""`pyccmem decrypt`: writes a sealed file, or a directory with sealed files, in the clear."""

from __future__ import annotations

import argparse
import os

from ... import errors
from ...gguf import decrypt
from ..destination import add_force, check_destination
from ..directory import directory_function
from ..keys import add_context_option, add_key_options, context_of, key_of
from ..output import safe, show_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem decrypt`."""
    parser.description = (
        "Writes a sealed file, or a directory with sealed files, as plain ones of mode 0600. "
        "Every weight is in the clear then, on the disk and in its backups; programs that use "
        "pyccmem do not need that."
    )
    parser.add_argument("src", metavar="SRC", help="a sealed file or a directory")
    parser.add_argument("dst", metavar="DST", help="the plain file or directory to make")
    parser.add_argument(
        "--expect", metavar="ID:GENERATION", help="the file and the least generation to accept"
    )
    add_force(parser)
    add_context_option(parser, "--context", "a text that the file's context must have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decrypts. Raises what decrypt() and decrypt_directory() raise."""
    src, dst = arguments.src, arguments.dst
    check_destination(src, dst, force=arguments.force)
    context = context_of(arguments.context)
    with key_of(arguments) as key:
        assert key is not None, "argparse asks for one"
        if os.path.isdir(src):
            if arguments.expect:
                raise errors.ArgumentError("--expect is for a file; leave it out for a directory.")
            directory_function("decrypt_directory")(src, dst, key=key, context=context)
        else:
            decrypt(
                src, dst, key, expect=arguments.expect, overwrite=arguments.force, context=context
            )
    if arguments.json:
        show_json({"directory" if os.path.isdir(dst) else "file": dst})
    else:
        print(f"{safe(dst)}  in the clear")
    return 0
