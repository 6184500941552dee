# SPDX-License-Identifier: Apache-2.0
"""A wrapped key in a file of its own: JSON, with the entry that the header of a sealed file has for
its data key.

    {"pyccmem.wrapped-key": 1,
     "key": {"provider": ..., "key_id": ..., "wrapped": ..., "parameters": ..., "bound": ...,
             "context": ...}}
"""

from __future__ import annotations

import json
import os

from .. import errors
from ..files.atomic import AtomicFile
from ..files.safetensors_header import open_file, parse_object
from ..safetensors._format import KeyEntry, key_text, parse_key

__all__ = ["read_wrapped", "write_wrapped"]

_MARK, _VERSION = "pyccmem.wrapped-key", 1

#: More than the largest entry that parse_key() takes.
_MAX_BYTES = 1 << 20


def write_wrapped(path: str, entry: KeyEntry, *, force: bool) -> None:
    """Writes an entry to a new file, or with `force` in the place of another. Nothing in it is
    secret. Raises FileWriteError."""
    text = json.dumps({_MARK: _VERSION, "key": key_text(entry)}, indent=2) + "\n"
    with AtomicFile(path, new_mode=0o644, overwrite=force) as out:
        out.write_at(text.encode(), 0)
        out.commit()


def read_wrapped(path: str) -> KeyEntry:
    """Returns the entry in a file. Raises FileReadError, FileFormatError."""
    with open_file(path, "a wrapped key") as file:
        try:
            data = bytes(file.read(_MAX_BYTES) or b"")
        except OSError as error:
            raise errors.FileReadError(
                f"The wrapped key {path!a} cannot be read: {error.strerror}."
            ).of_system(error.errno, path) from None

    def wrong(what: str) -> errors.FileFormatError:
        return errors.FileFormatError(
            f"{os.fspath(path)!a} holds no wrapped key, as `pyccmem keys wrap` writes it: {what}."
        )

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise wrong("it is not UTF-8") from None
    document = parse_object(text, "it", wrong)
    if set(document) != {_MARK, "key"} or document[_MARK] != _VERSION:
        raise wrong(f"it must have the entries {_MARK!r}, which is {_VERSION}, and 'key'")
    return parse_key(document["key"])
