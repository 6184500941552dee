# SPDX-License-Identifier: Apache-2.0
"""The context of a wrapped key: texts by name that say what the key is for.

A context is no secret: files and the logs of services show it. Whoever unwraps a key has to name
the same context as whoever wrapped it. Names that begin with "pyccmem." are pyccmem's own; others
are the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .. import errors

__all__ = ["MAX_NAME", "MAX_NAMES", "MAX_VALUE", "OWN", "canonical", "digest", "given", "words"]

#: What the names that pyccmem sets begin with.
OWN = "pyccmem."

#: The most names of a context, and characters of a name and of a value. AWS KMS takes 8192
#: characters in all, which these keep a context of usual size well below.
MAX_NAMES = 32
MAX_NAME = 128
MAX_VALUE = 1024

#: Tells these bytes from all others that pyccmem makes a hash or a tag of.
_LABEL = b"pyccmem-context-1"


def canonical(context: Mapping[str, str]) -> bytes:
    """Returns the one form of a context in bytes: a label, then each name and its value, in the
    order of the names' UTF-8, with the length of each text (4 bytes, big-endian) before it. Two
    contexts have the same bytes only if they are the same. Raises ArgumentTypeError, ArgumentError
    for what is no context."""
    texts = _checked(context)
    parts = [_LABEL, len(texts).to_bytes(4, "big")]
    pairs = sorted((name.encode(), value.encode()) for name, value in texts.items())
    for text in (text for pair in pairs for text in pair):
        parts += [len(text).to_bytes(4, "big"), text]
    return b"".join(parts)


def digest(context: Mapping[str, str]) -> bytes:
    """Returns the SHA-256 of canonical(context), 32 bytes. Raises what canonical() raises."""
    return hashlib.sha256(canonical(context)).digest()


def given(context: Any) -> dict[str, str]:
    """Returns a caller's argument `context`, None for none. Raises ArgumentTypeError; ArgumentError
    for names that are pyccmem's own, and for texts that are too long or too many."""
    if context is None:
        return {}
    found = _checked(context)
    for name in found:
        if name.startswith(OWN):
            raise errors.ArgumentError(
                f"The name {name!a} in context begins with {OWN!r}, as only pyccmem's own do; use "
                f"another name."
            )
    if len(found) > MAX_NAMES // 2:
        raise errors.ArgumentError(
            f"context has {len(found)} names; {MAX_NAMES // 2} are the most, leave some out."
        )
    return found


def words(context: Mapping[str, str] | None) -> str:
    """Returns a context as errors show it: one line of ASCII."""
    if context is None:
        return "unknown"
    return (
        ", ".join(f"{name}={value}" for name, value in sorted(context.items()))
        .encode("ascii", "backslashreplace")
        .decode()
        .translate({code: f"\\x{code:02x}" for code in (*range(32), 127)})
        or "empty"
    )


def _checked(context: Any) -> dict[str, str]:
    if not isinstance(context, Mapping) or not all(
        isinstance(text, str) for pair in context.items() for text in pair
    ):
        raise errors.ArgumentTypeError("context must be a dict of texts by text.")
    found = dict(context)
    if len(found) > MAX_NAMES:
        raise errors.ArgumentError(f"context has {len(found)} names; {MAX_NAMES} are the most.")
    for name, value in found.items():
        if not name or len(name) > MAX_NAME or len(value) > MAX_VALUE:
            raise errors.ArgumentError(
                f"context has the name {name[:60]!a} with a value of {len(value)} characters; a "
                f"name has 1 to {MAX_NAME} characters and a value at most {MAX_VALUE}."
            )
        if any("\ud800" <= c <= "\udfff" for c in name + value):
            raise errors.ArgumentError(
                f"context has a character that UTF-8 cannot encode (a lone surrogate), at the name "
                f"{name[:60]!a}; use whole characters."
            )
    return found
