# SPDX-License-Identifier: Apache-2.0
"""Wraps a key for a context under a key-encryption key, for services that know no contexts.

A key is derived from the key-encryption key for the context's SHA-256 (SP 800-108, label
"key-context"), and wraps by AES-256 key wrap (RFC 3394) under what is derived from it in turn
(label "key-wrap"). With another context another key is derived, and the check value of the key wrap
does not match: 2 to the 64 forgeries, each tried against the service, are expected for one success.
All of it happens in secret memory. AES-GCM with associated data would need a nonce that never comes
twice, which key-encryption keys of many years and many writers cannot promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import errors, keys
from ..binding import lib
from ..keys import Key
from .context import digest, words

__all__ = ["SEALED_BYTES", "open", "seal"]

#: Bytes of a sealed key.
SEALED_BYTES: int = lib.CCMEM_WRAPPED_KEY_SIZE


@contextmanager
def _as_key(key: Key | Any) -> Iterator[Key]:
    """Gives a Key to a block: `key` itself, or one made of its 32 bytes."""
    if isinstance(key, Key):
        yield key
    else:
        with Key.from_bytes(key) as made:
            yield made


def seal(kek: Key | Any, key: Key | Any, context: Mapping[str, str]) -> bytes:
    """Returns `key` wrapped under `kek` for `context`, 40 bytes. `kek` and `key` are Keys, or
    buffers of 32 bytes, which are left as they are.

    Raises InvalidKeyError for another length, ArgumentError or ArgumentTypeError for what is no
    context, ClosedError, ForkError, LockedMemoryError, OutOfMemoryError.
    """
    purpose = digest(context)
    with _as_key(kek) as outer, _as_key(key) as inner, keys.for_context(outer, purpose) as own:
        return keys.wrap(own, inner)


def open(kek: Key | Any, sealed: Any, context: Mapping[str, str]) -> Key:
    """Returns the key that seal() wrapped, in secret memory. Raises ContextError when it was sealed
    for another context or under another key, or was changed, which nothing tells apart; and what
    seal() raises."""
    if len(sealed) != SEALED_BYTES:
        raise errors.IntegrityError(
            f"The wrapped key has {len(sealed)} bytes, not {SEALED_BYTES}: it was changed; use a "
            f"good copy of the file."
        )
    purpose = digest(context)
    try:
        with _as_key(kek) as outer, keys.for_context(outer, purpose) as own:
            return keys.unwrap(own, sealed)
    except errors.ContextError:
        raise
    except errors.IntegrityError:
        pass
    raise errors.ContextError(
        f"The wrapped key does not open for this context: {words(context)}. The context that it "
        f"was wrapped for is {words(None)}: this or the wrapped key was changed, or is of another "
        f"file; use a good copy of the file, and the context it was sealed with.",
        found=dict(context),
    )
