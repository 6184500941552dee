# SPDX-License-Identifier: Apache-2.0
"""Keys that this machine hands to the process: in a file."""

from __future__ import annotations

from urllib.parse import unquote

from .. import errors
from ..keys import Key

__all__ = ["File"]


def _rest(uri: str, what: str) -> str:
    """Returns what follows the scheme, decoded. Raises ArgumentError if that is nothing."""
    rest = uri.partition(":")[2]
    if not rest:
        raise errors.ArgumentError(f"The URI {uri!a} names no {what}; write it after the colon.")
    return unquote(rest)


class File:
    """file:PATH, a key file as `pyccmem keygen` makes it. PATH is as it stands, with %25 for a
    percent sign; it may begin with //, as in file:///etc/model.key."""

    @staticmethod
    def from_uri(uri: str) -> Key:
        """Returns the key. Raises what Key.from_file() raises."""
        path = _rest(uri, "file")
        if path.startswith("//"):
            host, slash, path = path[2:].partition("/")
            if host not in ("", "localhost") or not slash:
                raise errors.ArgumentError(
                    f"The URI {uri!a} names a file of the host {host!a}; write file:PATH, or "
                    f"file:///PATH."
                )
            path = slash + path
        return Key.from_file(path)
