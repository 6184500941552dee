# SPDX-License-Identifier: Apache-2.0
"""What wraps the data keys of files: the protocol, its check, and the calls.

Providers of before contexts, whose methods take no context, still work: they wrap a random key of
32 bytes instead of the data key, and this key wraps the data key for the context (envelope). What
they wrapped for files of format 1, which have no context, they unwrap as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from .. import errors, keys
from ..binding import lib, wiped
from ..keys import Key
from . import envelope
from .events import Told, watched
from .wrapped import MAX_PARAMETERS, MAX_TEXT, MAX_WRAPPED_BYTES, WrappedKey, fits

__all__ = ["KeyProvider", "check_provider", "forget", "takes_context", "unwrapped", "wrapped_for"]

_KEY_BYTES: int = lib.CCMEM_ROOT_KEY_SIZE


@runtime_checkable
class KeyProvider(Protocol):
    """Wraps and unwraps data keys, for example through a key management service."""

    #: The provider's name in files. Opening a file asks for the provider of the same name.
    name: str

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps the 32 bytes of `key`, which are wiped when this returns, so that they open for
        the same `context` alone. Keep no copy."""
        ...

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray | Key:
        """Returns the 32 bytes again, which the caller wipes, or a Key made of them, which the
        caller closes. `wrapped` and `context` come from a file that is not authenticated yet.
        Raise ContextError for another context where that can be told. Any exception ends the
        opening and reaches the caller unchanged.

        A forked child asks again, through its copy of this object. It must not use a connection
        that the parent opened, so open one for each os.getpid()."""
        ...


def check_provider(provider: object, reserved: tuple[str, ...] = ()) -> None:
    """Raises ArgumentTypeError for what is no KeyProvider, ArgumentError for a name that no file
    can hold, or that is one of `reserved`."""
    if isinstance(provider, type) or not isinstance(provider, KeyProvider):
        raise errors.ArgumentTypeError(
            f"key must be a pyccmem.Key, a Passphrase or a KeyProvider, not "
            f"{type(provider).__name__}; for key bytes use Key.from_bytes()."
        )
    name = provider.name
    if not isinstance(name, str) or not name or not fits(name) or name in reserved:
        raise errors.ArgumentError(
            f"The provider's name is {name!r}; it must be a text other than {', '.join(reserved)}."
        )
    if takes_context(provider.wrap_key) != takes_context(provider.unwrap_key):
        raise errors.ArgumentTypeError(
            f"Of provider {name!r} only one of wrap_key() and unwrap_key() takes a context; let "
            f"both take (…, context), or neither."
        )


def takes_context(method: Callable[..., Any]) -> bool:
    """Returns True for a method that can be called with two arguments. One whose signature nobody
    can tell counts as such, too."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def wrapped_for(
    provider: KeyProvider, data_key: Key, context: Mapping[str, str] | None
) -> tuple[WrappedKey, bytes]:
    """Returns what the provider made of the data key, and b"". Of a provider that takes no context:
    what it made of a key-encryption key, and the data key wrapped under that. Raises
    ArgumentTypeError for what the provider returned, and what it raises."""
    if takes_context(provider.wrap_key):
        return _wrapped(provider, data_key, dict(context or {})), b""
    if context is None:
        return _wrapped(provider, data_key), b""
    with Key.generate() as kek:
        return _wrapped(provider, kek), envelope.seal(kek, data_key, context)


def _wrapped(provider: Any, key: Key, *context: Mapping[str, str]) -> WrappedKey:
    _, memory = wiped.block(_KEY_BYTES)
    view = memoryview(memory)
    try:
        keys.copy_into(key, view)
        with _watched("wrap", provider, None, context) as told:
            made = provider.wrap_key(view, *context)
            if isinstance(made, WrappedKey):
                told.key_id = made.key_id
    finally:
        wiped.wipe(memory)
        view.release()
    if not _kept(made):
        raise errors.ArgumentTypeError(
            f"wrap_key() of provider {provider.name!r} must return WrappedKey(str, bytes, dict of "
            f"str), of at most {MAX_WRAPPED_BYTES} bytes and {MAX_PARAMETERS} parameters, and "
            f"texts of at most {MAX_TEXT} characters."
        )
    found: WrappedKey = made
    return found


def _kept(made: Any) -> bool:
    """Returns True for a wrapped key that a file can keep."""
    if not isinstance(made, WrappedKey) or not isinstance(made.parameters, dict):
        return False
    texts = [made.key_id, *(text for pair in made.parameters.items() for text in pair)]
    return (
        all(isinstance(text, str) and fits(text) for text in texts)
        and len(made.parameters) <= MAX_PARAMETERS
        and isinstance(made.blob, bytes)
        and 1 <= len(made.blob) <= MAX_WRAPPED_BYTES
    )


def unwrapped(
    provider: KeyProvider, wrapped: WrappedKey, bound: bytes, context: Mapping[str, str] | None
) -> Key:
    """Returns the data key that wrapped_for() wrapped, in secret memory. `context` is None for a
    file of format 1, which has none. A provider that takes contexts is given an empty one for that,
    and for what it wrapped before it took any.

    Raises ContextError, ArgumentTypeError for what the provider returned, and what it raises."""
    takes = takes_context(provider.unwrap_key)
    if context is not None and takes and not bound:
        return _unwrapped(provider, wrapped, dict(context))
    own = _unwrapped(provider, wrapped, *([{}] if takes else []))
    if context is None:
        return own
    with own:
        return envelope.open(own, bound, context)


def _unwrapped(provider: Any, wrapped: WrappedKey, *context: Mapping[str, str]) -> Key:
    data = None
    try:
        with _watched("unwrap", provider, wrapped.key_id, context):
            data = provider.unwrap_key(wrapped, *context)
        if isinstance(data, Key):
            found, data = data, None
            return found
        if not isinstance(data, bytearray) or len(data) != _KEY_BYTES:
            raise errors.ArgumentTypeError(
                f"unwrap_key() of provider {provider.name!r} must return a bytearray of "
                f"{_KEY_BYTES} bytes."
            )
        return Key.from_bytes(data)
    finally:
        forget(data)


def forget(data: object) -> None:
    """Wipes what unwrap_key() has returned."""
    if isinstance(data, Key):
        data.close()
    elif isinstance(data, bytearray) and data:
        wiped.wipe(data)


def _watched(
    event: str, provider: Any, key_id: str | None, context: tuple[Mapping[str, str], ...]
) -> AbstractContextManager[Told]:
    """Tells the hooks of a call, unless the provider does that itself (Held)."""
    if getattr(provider, "tells", False):
        return nullcontext(Told(None))
    return watched(event, provider.name, key_id, context[0] if context else {})
