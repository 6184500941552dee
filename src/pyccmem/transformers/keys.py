# SPDX-License-Identifier: Apache-2.0
"""Finds the key of a directory: from an argument, a `with` block, or the environment."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .. import errors
from ..key_services.registry import shared
from ..keys import Key

__all__ = [
    "KEY_FILE_VARIABLE",
    "KEY_VARIABLE",
    "encrypts_beside",
    "find_key",
    "given_config",
    "key_named",
    "note_given",
    "recent_config",
    "recent_key",
    "remember",
    "remember_encrypting",
    "using_key",
]

#: The environment variables with the URI of a key, see pyccmem.key_services.from_uri(), and with
#: the name of a key file, see pyccmem.Key.from_file().
KEY_VARIABLE = "PYCCMEM_KEY"
KEY_FILE_VARIABLE = "PYCCMEM_KEY_FILE"

_recent = threading.local()

_current: ContextVar[Any] = ContextVar("pyccmem_key", default=None)


@contextmanager
def using_key(key: Any) -> Iterator[None]:
    """Lets transformers and sentence-transformers load and save with `key` in a `with` block, in
    this thread (or asyncio task). `key` is a pyccmem.Key, or what else
    pyccmem.safetensors.load_file() takes; it is not closed. Or it is the URI of one, such as
    "file:/etc/model.key". Blocks may be nested.

    Raises ArgumentTypeError for None, and for a URI what from_uri() raises.
    """
    if key is None:
        raise errors.ArgumentTypeError("using_key() needs a key, not None; make one with Key.")
    key = key_named(key)
    before = _current.get()
    try:
        _current.set(key)
        yield
    finally:
        _current.set(before)


def find_key(given: Any = None, *, what: str) -> Any:
    """Returns the key to use: `given`, else that of using_key(), else the one whose URI is in
    PYCCMEM_KEY, else the one in the file that PYCCMEM_KEY_FILE names. `what` names its purpose in
    an error.

    Raises InvalidKeyError if there is none, and what from_uri() and Key.from_file() raise.
    """
    if given is not None:
        return given
    key = _current.get()
    if key is not None:
        return key
    uri = os.environ.get(KEY_VARIABLE)
    if uri:
        return shared(uri)
    path = os.environ.get(KEY_FILE_VARIABLE)
    if path:
        return Key.from_file(path)
    raise errors.InvalidKeyError(
        f"There is no key for {what}; pass quantization_config=PyccmemConfig(key=...), use `with "
        f"pyccmem.transformers.using_key(key):`, or set {KEY_VARIABLE} to a key's URI, or "
        f"{KEY_FILE_VARIABLE} to a key file."
    )


def key_named(key: Any) -> Any:
    """Returns the key of a URI, one for each URI in this process; anything else as it is. Raises
    what from_uri() raises."""
    return shared(key) if isinstance(key, str) else key


# ---- what this thread is about to load ---------------------------------------------------------


def note_given(config: Any) -> None:
    """Notes the PyccmemConfig that this thread has made last: from_pretrained() reads metadata of a
    GGUF file before it looks at its quantization_config."""
    _recent.given = weakref.ref(config)


def given_config() -> Any:
    """Returns that config as long as it lives, else None."""
    return _recent.given() if hasattr(_recent, "given") else None


# ---- the model that was loaded last --------------------------------------------------------------


def remember(config: Any) -> None:
    """Notes the PyccmemConfig with which this thread loads a model, for what is read beside it:
    further modules of a sentence model, adapters."""
    _recent.config = weakref.ref(config)


def recent_config() -> Any:
    """Returns that config as long as it lives, else None."""
    return _recent.config() if hasattr(_recent, "config") else None


def remember_encrypting(path: str | None) -> None:
    """Notes the plain file whose tensors this thread encrypts as it loads them, for what lies
    beside it; None: it loads another model."""
    _recent.encrypting = path


def encrypts_beside(path: str) -> bool:
    """Returns True for a file of the sentence model whose first module this thread has encrypted
    while loading it: DIR/2_Dense/model.safetensors beside DIR/model.safetensors, or
    DIR/0_Transformer/model.safetensors."""
    first = getattr(_recent, "encrypting", None)
    if first is None:
        return False
    folder = os.path.dirname(os.path.abspath(first))
    whole = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    return whole in (folder, os.path.dirname(folder))


def recent_key(what: str, *, block_first: bool = False) -> Any:
    """Does find_key() with the key of that config, if it has one; with `block_first` the key of a
    using_key() block goes before it."""
    config = recent_config()
    if config is None or (block_first and _current.get() is not None):
        return find_key(what=what)
    return find_key(config.key, what=what)
