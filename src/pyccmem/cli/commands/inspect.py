# SPDX-License-Identifier: Apache-2.0
"""`pyccmem inspect`: shows what a sealed file, or each file of a directory, says of itself."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator

from ... import errors
from ...safetensors import FileInfo, inspect_file
from ...safetensors.providers import AnyKey
from ..keys import add_key_options, key_of
from ..output import safe, show_json, show_rows, show_table, size
from ..walk import Found
from .verify import EXIT_DAMAGED, EXIT_ERROR

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem inspect`."""
    parser.description = (
        "Prints a sealed file's id and generation (what --expect pins it by), the key it was "
        "sealed for, and its tensors. Without a key nothing of it is authenticated, and sealed "
        "names stay hidden. Of a directory, a line for each safetensors file."
    )
    parser.epilog = (
        "Exit status: 0 shown; 1 in a directory: a file that is not sealed, or was changed; 2 "
        "wrong usage or another error."
    )
    parser.add_argument("file", metavar="FILE", help="the sealed file, or a directory")
    parser.add_argument(
        "--expect", metavar="ID:GENERATION", help="the file and the least generation to accept"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Prints. Raises what inspect_file() raises; for a directory, errors of single files are
    printed instead."""
    found = Found([arguments.file])
    if arguments.expect:
        found.refuse("--expect")
    with key_of(arguments) as key:
        if found.several:
            return _directory(found, key, arguments)
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


def _directory(found: Found, key: AnyKey | None, arguments: argparse.Namespace) -> int:
    infos: dict[str, FileInfo | errors.PyccmemError] = {}
    status = 0
    for path in found.paths:
        try:
            infos[path] = inspect_file(path, key)
        except (errors.FileFormatError, errors.IntegrityError) as error:
            infos[path] = error.with_traceback(None)
            status = EXIT_DAMAGED
        except errors.PyccmemError as error:
            infos[path] = error.with_traceback(None)
            status = status or EXIT_ERROR
    if arguments.json:
        show_json(
            [
                {"file": path, "error": str(info)}
                if isinstance(info, Exception)
                else {"file": path, "error": None, **info.as_dict()}
                for path, info in infos.items()
            ]
        )
        return status
    cells = [
        [
            safe(os.path.relpath(path, arguments.file)),
            info.pin,
            safe(f"{info.provider} {info.key_id}"),
            str(len(info.pages if info.tensors is None else info.tensors)),
            size(info.nbytes),
            "yes" if info.authenticated else "no key",
        ]
        for path, info in infos.items()
        if not isinstance(info, Exception)
    ]
    print(safe(arguments.file))
    if cells:
        show_table(("file", "pin", "sealed by", "tensors", "size", "authenticated"), cells)
    for path, info in infos.items():
        if isinstance(info, Exception):
            text = str(info).removeprefix(f"{path!a}: ")
            print(f"  {safe(os.path.relpath(path, arguments.file))}: {text}")
    return status


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
        else "no: without the key, this may be forged",
    )
