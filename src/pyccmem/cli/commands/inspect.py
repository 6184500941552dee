# SPDX-License-Identifier: Apache-2.0
"""`pyccmem inspect`: shows what a sealed file, or each file of a directory, says of itself."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator

from ... import errors, gguf
from ...safetensors import FileInfo, inspect_file
from ...safetensors.providers import AnyKey, named
from ..directory import directory_function
from ..keys import add_context_option, add_key_options, context_of, key_of
from ..output import safe, show_json, show_rows, show_table, size
from ..walk import Found
from .verify import EXIT_DAMAGED, EXIT_ERROR

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem inspect`."""
    parser.description = (
        "Prints a sealed file's id and generation (what --expect pins it by), the key it was "
        "sealed for, and its tensors. Without a key nothing of it is authenticated, and sealed "
        "names stay hidden; those of GGUF files always are. Of a directory, a line for each "
        "safetensors or GGUF file."
    )
    parser.epilog = (
        "Exit status: 0 shown; 1 in a directory: a file that is not sealed, or was changed; 2 "
        "wrong usage or another error."
    )
    parser.add_argument("file", metavar="FILE", help="the sealed file, or a directory")
    parser.add_argument(
        "--expect",
        metavar="PIN",
        help="ID:GENERATION, the file and the least generation to accept; or the pin of the "
        "directory, dir:...",
    )
    add_context_option(parser, "--context", "a text that the file's context must have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Prints. Raises what inspect_file() raises; for a directory, errors of single files are
    printed instead."""
    found = Found([arguments.file])
    context = context_of(arguments.context)
    with key_of(arguments) as key:
        if found.several:
            if arguments.expect and key is None:
                raise errors.ArgumentError("--expect means nothing without a key; name it, too.")
            found.expected(arguments.expect, key, context)
            return _directory(found, key, context, arguments)
        info = inspect_file(arguments.file, key, expect=arguments.expect, context=context)
        summary = None
        if key is not None and gguf.is_gguf_content(info.metadata):
            summary = gguf.inspect(arguments.file, key, expect=info)
    if arguments.json:
        show_json(info.as_dict() | ({"gguf": summary.as_dict()} if summary else {}))
        return 0
    rows = list(_rows(info))
    if summary is not None:
        rows = [row for row in rows if not row[0].startswith(("metadata ", "tensors"))]
        rows[-1:-1] = _gguf_rows(summary)
    show_rows(safe(arguments.file), rows)
    if info.tensors is None:
        cells = [[safe(name), str(pages)] for name, pages in info.pages.items()]
        show_table(("blob", "pages"), cells)
        return 0
    described: list[tuple[str, str, tuple[int, ...], int]] = [
        (name, found.dtype, found.shape, found.nbytes) for name, found in info.tensors.items()
    ]
    if summary is not None:
        described = [
            (name, found.type.name, found.shape, found.nbytes)
            for name, found in summary.tensors.items()
        ]
    tensors = [
        [safe(name), kind, " x ".join(map(str, shape)) or "-", size(nbytes)]
        for name, kind, shape, nbytes in described
    ]
    show_table(("tensor", "dtype", "shape", "size"), tensors)
    return 0


def _gguf_rows(summary: gguf.Summary) -> Iterator[tuple[str, str]]:
    yield "contents", f"GGUF version {summary.version}, {size(summary.nbytes)}"
    if summary.part is not None:
        yield "part", f"{summary.part[0]} of {summary.part[1]}"
    for name, value in (("architecture", summary.architecture), ("model", summary.name)):
        if value is not None:
            yield name, safe(value)
    yield "metadata", str(summary.metadata)
    yield "tensors", f"{len(summary.tensors)}, {summary.elements} elements"
    yield "types", ", ".join(f"{name} {count}" for name, count in summary.types.items())


def _directory(
    found: Found,
    key: AnyKey | None,
    context: dict[str, str] | None,
    arguments: argparse.Namespace,
) -> int:
    infos: dict[str, FileInfo | errors.PyccmemError] = {}
    status = 0
    for path in found.paths:
        try:
            infos[path] = inspect_file(path, key, context=context)
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
    pins = {
        os.path.relpath(path, arguments.file): info.pin
        for path, info in infos.items()
        if not isinstance(info, Exception)
    }
    if len(pins) == len(infos):
        print(f"directory  {directory_function('directory_pin')(pins)}")
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
    yield "format", str(info.format)
    for name, value in named(info.context).items():
        yield f"context {safe(name)}", safe(value)
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
