# SPDX-License-Identifier: Apache-2.0
"""`pyccmem encrypt`: seals a safetensors or GGUF file, or the directory of a model."""

from __future__ import annotations

import argparse
import os
import shlex
import stat
import sys

from ... import errors
from ...gguf import encrypt, split_of
from ..destination import add_force, check_destination
from ..directory import directory_function
from ..keys import add_context_option, add_key_options, context_of, key_of
from ..output import safe, show_json, show_table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem encrypt`."""
    parser.description = (
        "Seals a safetensors or GGUF file, or every one in a model's directory, whose other "
        "files are copied; there NAME.gguf becomes NAME.gguf.sealed. Prints the pin of each sealed "
        "file, and one of the directory as a whole: what --expect of the other commands takes. "
        "Each has the mode of its original, so "
        "the same users can read the ciphertext. SRC stays as it is: delete it, and mind that this "
        "does not overwrite it on the disk."
    )
    parser.add_argument("src", metavar="SRC", help="a safetensors or GGUF file, or a directory")
    parser.add_argument("dst", metavar="DST", help="the sealed file or directory to make")
    parser.add_argument(
        "--seal-names",
        action="store_true",
        help="also encrypt names, shapes and metadata (of GGUF files always)",
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="of a directory, leave out files whose name matches (repeatable)",
    )
    parser.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="of a model's directory, turn the weights into blocks of a few bits, such as q4_k",
    )
    parser.add_argument(
        "--skip",
        metavar="PATTERN",
        action="append",
        default=[],
        help="with --quantize, leave weights or modules whose name matches (repeatable)",
    )
    add_context_option(
        parser, "--context", "a text that the key is bound to, which stands in the file"
    )
    add_force(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_key_options(parser, "the key to seal it for", sealing=True)


def run(arguments: argparse.Namespace) -> int:
    """Seals. Raises what encrypt() and encrypt_directory() raise."""
    src, dst = arguments.src, arguments.dst
    check_destination(src, dst, force=arguments.force)
    context = context_of(arguments.context)
    with key_of(arguments) as key:
        assert key is not None, "argparse asks for one"
        if os.path.isdir(src):
            pins = directory_function("encrypt_directory")(
                src,
                dst,
                key=key,
                seal_names=arguments.seal_names,
                exclude=arguments.exclude,
                quantize=arguments.quantize,
                skip=arguments.skip,
                context=context,
            )
            _show_directory(dst, pins, arguments.json)
            _warn_of_owner(src, dst)
            return 0
        if arguments.quantize or arguments.skip:
            raise errors.ArgumentError("--quantize is for the directory of a model, not a file.")
        if arguments.exclude:
            raise errors.ArgumentError("--exclude is for directories; leave it out for a file.")
        pin = encrypt(
            src,
            dst,
            key,
            seal_names=arguments.seal_names,
            overwrite=arguments.force,
            context=context,
        )
    if arguments.json:
        show_json({"file": dst, "pin": pin, "mode": _mode(dst)})
    else:
        print(f"{safe(dst)}  {pin}")
    _tell_of_other_files(src)
    _warn_of_owner(src, dst)
    return 0


def _mode(path: str) -> str:
    return f"{stat.S_IMODE(os.stat(path).st_mode):04o}"


def _show_directory(dst: str, pins: dict[str, str], as_json: bool) -> None:
    modes = {name: _mode(os.path.join(dst, name)) for name in pins}
    pin = directory_function("directory_pin")(pins)
    others = sum(len(files) for _, _, files in os.walk(dst)) - len(pins)
    if as_json:
        files = [{"file": name, "pin": pin, "mode": modes[name]} for name, pin in pins.items()]
        show_json({"directory": dst, "pin": pin, "files": files, "others": others})
        return
    print(f"{safe(dst)}: {len(pins)} sealed, {others} other file{'' if others == 1 else 's'}")
    rows = [(safe(name), pin, modes[name]) for name, pin in pins.items()]
    show_table(("sealed file", "pin", "mode"), rows)
    print(f"directory  {pin}")


def _tell_of_other_files(src: str) -> None:
    """Says what to do with the other files of a model in several."""
    split = split_of(os.path.basename(src))
    if split is not None and split.files > 1:
        print(
            f"pyccmem: {safe(src)} is file {split.number} of {split.files} of a model; encrypt the "
            f"directory that has all of them, and they open only with each other.",
            file=sys.stderr,
        )


def _warn_of_owner(src: str, dst: str) -> None:
    """Warns if the owner of the model cannot read the copy: when root has sealed files that only
    their owner may read."""
    source, target = os.stat(src), os.stat(dst)
    if source.st_uid != target.st_uid and not target.st_mode & stat.S_IROTH:
        name = shlex.quote(safe(dst))
        print(
            f"pyccmem: {safe(dst)} belongs to user {target.st_uid}, and only its owner can read "
            f"it; to give it to user {source.st_uid}, who has the original: "
            f"chown -R {source.st_uid}:{source.st_gid} {name}",
            file=sys.stderr,
        )
