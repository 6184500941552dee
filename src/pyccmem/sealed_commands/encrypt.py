# SPDX-License-Identifier: Apache-2.0
"""`pyccmem encrypt`: a safetensors file, or the directory of a model, sealed."""

from __future__ import annotations

import argparse
import os

from .. import errors
from ..safetensors import encrypt_file
from ._destination import add_force, check_destination
from ._directory import directory_function
from ._keys import add_key_options, key_of
from ._output import show_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem encrypt`."""
    parser.description = (
        "Seals a safetensors file, or every safetensors file in a model's directory, whose other "
        "files are copied. Prints what --expect of the other commands pins a file by. SRC stays "
        "as it is: delete it, and mind that this does not overwrite it on the disk."
    )
    parser.add_argument("src", metavar="SRC", help="a safetensors file or a directory")
    parser.add_argument("dst", metavar="DST", help="the sealed file or directory to make")
    parser.add_argument(
        "--seal-names", action="store_true", help="also encrypt names, shapes and metadata"
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="of a directory, leave out files whose name matches (repeatable)",
    )
    add_force(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, "the key to seal it for", sealing=True)


def run(arguments: argparse.Namespace) -> int:
    """Seals. Raises what encrypt_file() and encrypt_directory() raise."""
    src, dst = arguments.src, arguments.dst
    check_destination(src, dst, force=arguments.force)
    with key_of(arguments) as key:
        assert key is not None, "argparse asks for one"
        if os.path.isdir(src):
            directory_function("encrypt_directory")(
                src, dst, key=key, seal_names=arguments.seal_names, exclude=arguments.exclude
            )
            if arguments.json:
                show_json({"directory": dst})
            else:
                print(f"{dst}  sealed")
            return 0
        if arguments.exclude:
            raise errors.ArgumentError("--exclude is for directories; leave it out for a file.")
        pin = encrypt_file(
            src, dst, key, seal_names=arguments.seal_names, overwrite=arguments.force
        )
    if arguments.json:
        show_json({"file": dst, "pin": pin})
    else:
        print(f"{dst}  {pin}")
    return 0
