# SPDX-License-Identifier: Apache-2.0
"""`pyccmem inspect`: what a sealed file says of itself, with the key and without."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

from ..safetensors import FileInfo, inspect_file
from ._keys import add_key_options, key_of
from ._output import safe, show_json, show_rows, show_table, size

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem inspect`."""
    parser.description = (
        "Prints a sealed file's id and generation (what --expect pins it by), the key it was "
        "sealed for, and its tensors. Without a key nothing of it is authenticated, and sealed "
        "names stay hidden."
    )
    parser.add_argument("file", metavar="FILE", help="the sealed file")
    parser.add_argument(
        "--expect", metavar="ID:GENERATION", help="the file and the least generation to accept"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Prints. Raises what inspect_file() raises."""
    with key_of(arguments) as key:
        info = inspect_file(arguments.file, key, expect=arguments.expect)
    if arguments.json:
        show_json(info.as_dict())
        return 0
    show_rows(safe(arguments.file), list(_rows(info)))
    if info.tensors is None:
        cells = [[safe(name), str(pages)] for name, pages in info.pages.items()]
        show_table(("blob", "pages"), cells)
        return 0
    tensors = [
        [safe(name), found.dtype, " x ".join(map(str, found.shape)) or "-", size(found.nbytes)]
        for name, found in info.tensors.items()
    ]
    show_table(("tensor", "dtype", "shape", "size"), tensors)
    return 0


def _rows(info: FileInfo) -> Iterator[tuple[str, str]]:
    yield "pin", info.pin
    yield "file id", info.file_id
    yield "generation", str(info.generation)
    yield "cipher", f"{info.cipher}, pages of {info.page_size} bytes"
    parameters = ", ".join(f"{name} {value}" for name, value in info.parameters.items())
    yield "sealed by", safe(info.provider + (f" ({parameters})" if parameters else ""))
    yield "key id", safe(info.key_id)
    yield "names", "sealed" if info.names_sealed else "in the clear"
    yield "size", size(info.nbytes)
    if info.tensors is None:
        yield "tensors", str(len(info.pages))
    else:
        elements = sum(math.prod(found.shape) for found in info.tensors.values())
        yield "tensors", f"{len(info.tensors)}, {elements} elements"
    for name, value in (info.metadata or {}).items():
        yield f"metadata {safe(name)}", safe(value)
    yield (
        "authenticated",
        "yes: the header matches its tag"
        if info.authenticated
        else "no: without the key, anybody can have written this",
    )
