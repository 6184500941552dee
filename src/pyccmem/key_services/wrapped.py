# SPDX-License-Identifier: Apache-2.0
"""A wrapped key as a file keeps it, and how much of it a file holds."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["MAX_PARAMETERS", "MAX_TEXT", "MAX_WRAPPED_BYTES", "WrappedKey", "fits"]

#: The most that a header holds of a key: characters of a text, bytes of a wrapped key, parameters.
MAX_TEXT = 1 << 12
MAX_WRAPPED_BYTES = 1 << 16
MAX_PARAMETERS = 64


@dataclass(frozen=True)
class WrappedKey:
    """A data key as a file keeps it. Nothing in here is secret."""

    #: The name of the key that wrapped it, of at most 4096 characters.
    key_id: str
    #: The wrapped key, 1 to 65536 bytes.
    blob: bytes
    #: What unwrapping needs besides, at most 64 texts of at most 4096 characters.
    parameters: dict[str, str] = field(default_factory=dict)


def fits(text: str) -> bool:
    """Returns True for a text that a header can hold: not too long, and without lone surrogates."""
    return len(text) <= MAX_TEXT and not any("\ud800" <= c <= "\udfff" for c in text)
