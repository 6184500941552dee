# SPDX-License-Identifier: Apache-2.0
"""`pyccmem keygen`: writes a new key to a file that only its owner can read."""

from __future__ import annotations

import argparse
import os

import numpy as np
import numpy.typing as npt

from ... import errors
from ...binding import lib, wiped
from ...binding.owned import Descriptor
from ...files.atomic import AtomicFile, refused, set_mode, sync_directory, synchronize
from ...keys import Key, copy_into
from ..output import show_json

__all__ = ["add_arguments", "run", "write_key_file"]

_KEY_BYTES: int = lib.CCMEM_ROOT_KEY_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem keygen`."""
    parser.description = (
        "Makes a random key of 32 bytes and writes it to FILE, with mode 0600, as 64 hexadecimal "
        "digits. Prints the key's id, which is no secret."
    )
    parser.epilog = "The file opens everything that is sealed for it, and nothing else does."
    parser.add_argument("file", metavar="FILE", help="the file to make")
    parser.add_argument("--raw", action="store_true", help="write 32 bytes instead of digits")
    parser.add_argument(
        "--force", action="store_true", help="replace FILE: what the old key sealed stays sealed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file. Raises FileWriteError, and what Key.generate() raises."""
    with Key.generate() as key:
        write_key_file(arguments.file, key, raw=arguments.raw, force=arguments.force)
        if arguments.json:
            show_json({"file": arguments.file, "key_id": key.id})
        else:
            print(f"{arguments.file}  key id {key.id}")
    return 0


def write_key_file(
    path: str | os.PathLike[str], key: Key, *, raw: bool = False, force: bool = False
) -> None:
    """Writes a key to a new file of mode 0600, which is on the disk when this returns. The bytes
    pass through memory that is wiped.

    Raises FileWriteError, also for a file that exists, unless `force` is given, which replaces the
    whole file.
    """
    words = [wiped.empty((_KEY_BYTES,), np.uint8), wiped.empty((2 * _KEY_BYTES,), np.uint8)]
    try:
        copy_into(key, words[0])
        _hexadecimal(words[0], words[1])
        data = words[0] if raw else words[1]
        if force:
            with AtomicFile(path, mode=0o600, private=True) as out:
                out.write_at(data, 0)
                out.commit()
        else:
            _write_new(os.fsdecode(path), data)
    finally:
        for word in words:
            word.fill(0)


def _hexadecimal(data: npt.NDArray[np.uint8], digits: npt.NDArray[np.uint8]) -> None:
    """Writes the digits of `data` by arithmetic, so that no address in a table depends on the key
    and no temporary array is left unwiped."""
    high, low = digits[0::2], digits[1::2]
    np.right_shift(data, 4, out=high)
    np.bitwise_and(data, 15, out=low)
    letters = wiped.empty(digits.shape, np.uint8)
    np.add(digits, 6, out=letters)
    np.right_shift(letters, 4, out=letters)  # 1 from ten on
    np.multiply(letters, ord("a") - ord("0") - 10, out=letters)
    np.add(digits, ord("0"), out=digits)
    np.add(digits, letters, out=digits)


def _write_new(path: str, data: npt.NDArray[np.uint8]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        file = Descriptor.open(path, flags, 0o600)
    except FileExistsError as error:
        raise errors.FileWriteError(
            f"{path!r} is there already, and may be the only key to something; name another file, "
            f"or use --force."
        ).of_system(error.errno, path) from None
    except (OSError, ValueError) as error:
        raise refused(path, error) from None
    try:
        with file as descriptor:
            set_mode(descriptor, 0o600, private=True)
            with data.data as view:
                at = 0
                while at < len(view):
                    with view[at:] as rest:
                        at += os.write(descriptor, rest)
            synchronize(descriptor)
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise refused(path, error) from None
        raise
    sync_directory(path)
