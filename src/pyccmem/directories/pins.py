# SPDX-License-Identifier: Apache-2.0
"""Pins of whole directories: which sealed files there are, and in which state each of them."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from .. import errors
from ..safetensors import inspect_file
from .scan import GGUF_SUFFIX, SEALED_GGUF_SUFFIX, SUFFIX, read_error, source_of

__all__ = ["directory_pin", "expected_pins", "is_directory_pin", "pins_of"]

_PREFIX = "dir:"
_DIGITS = 64
_LABEL = b"pyccmem-directory-pin-1"
_SUFFIXES = (SUFFIX, GGUF_SUFFIX, SEALED_GGUF_SUFFIX)


def directory_pin(pins: Mapping[str, str]) -> str:
    """Returns one pin for the pins of all sealed files by their paths within a directory: "dir:"
    and 64 hexadecimal digits. It is the SHA-256 of a label and, by the order of the paths, of path
    and pin, each with its length before it; '/' parts a path, whatever the system has."""
    state = hashlib.sha256(_LABEL)
    named = {PurePath(path).as_posix(): pin for path, pin in pins.items()}
    for path in sorted(named):
        for text in (path, named[path]):
            data = text.encode("utf-8", "surrogateescape")
            state.update(len(data).to_bytes(8, "little") + data)
    return _PREFIX + state.hexdigest()


def is_directory_pin(value: Any) -> bool:
    """Returns True for the text of a directory's pin, which no file's pin is."""
    if not isinstance(value, str) or not value.startswith(_PREFIX):
        return False
    digits = value[len(_PREFIX) :]
    return len(digits) == _DIGITS and set(digits) <= set("0123456789abcdef")


def pins_of(directory: str | os.PathLike[str], key: Any, *, context: Any = None) -> dict[str, str]:
    """Returns the pins of all weights in a directory, by their paths within it, hidden ones left
    out. Each file's header is authenticated with the key. Raises ArgumentError for an unusable
    directory, FileFormatError for one that is not sealed, and what inspect_file() raises."""
    source = source_of(directory)
    found: dict[str, str] = {}
    for folder, names, files in os.walk(source, onerror=_unreadable):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            if name.endswith(_SUFFIXES) and not name.startswith("."):
                path = Path(folder) / name
                info = inspect_file(path, key, context=context)
                found[path.relative_to(source).as_posix()] = info.pin
    return found


def expected_pins(
    directory: str | os.PathLike[str], key: Any, expect: str, *, context: Any = None
) -> dict[str, str]:
    """Returns pins_of() a directory whose pin is `expect`, to be given on as `expect` of each file
    that is opened, so that none can be exchanged in between. Raises IntegrityError for another
    state of the directory, ArgumentError for a text that is no directory's pin, and what pins_of()
    raises."""
    if not is_directory_pin(expect):
        raise errors.ArgumentError(
            f"expect is {str(expect)[:80]!a}; for a directory it must be 'dir:' and {_DIGITS} "
            f"hexadecimal digits, as `pyccmem encrypt` and `pyccmem inspect` print it."
        )
    pins = pins_of(directory, key, context=context)
    found = directory_pin(pins)
    if not hmac.compare_digest(found, expect):
        raise errors.IntegrityError(
            f"{os.fspath(directory)!r} is not in the state that was expected: its pin is {found}, "
            f"and not {expect}. A file was exchanged, put back, added or removed, or the directory "
            f"was rotated since; pin it anew if that was you.",
            name=str(directory),
        )
    return pins


def _unreadable(error: OSError) -> None:
    raise read_error(error) from None
