# SPDX-License-Identifier: Apache-2.0
"""The key of a sealed directory, which each process of vLLM reads for itself."""

from __future__ import annotations

import json
import os

from .. import errors
from ..key_services import KeyProvider
from ..key_services.context import given
from ..key_services.registry import shared
from ..keys import Key

__all__ = [
    "CONTEXT_VARIABLE",
    "KEY_FILE_VARIABLE",
    "KEY_VARIABLE",
    "file_context",
    "file_key",
]

#: The environment variables with the URI of a key, see pyccmem.key_services.from_uri(), and with
#: the name of a key file, see pyccmem.Key.from_file().
KEY_VARIABLE = "PYCCMEM_KEY"
KEY_FILE_VARIABLE = "PYCCMEM_KEY_FILE"

#: The environment variable with the context that sealed files must have.
CONTEXT_VARIABLE = "PYCCMEM_CONTEXT"


def file_context() -> dict[str, str] | None:
    """Returns the texts that the contexts of sealed files must have: the JSON object of texts in
    PYCCMEM_CONTEXT. None without that variable. Raises ArgumentError for anything else in it."""
    text = os.environ.get(CONTEXT_VARIABLE)
    if not text:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise errors.ArgumentError(
            f"{CONTEXT_VARIABLE} must be a JSON object of texts, such as "
            f'{{"model": "MiniLM"}}; correct it before vLLM starts.'
        )
    return given(found)


def file_key(what: str) -> Key | KeyProvider:
    """Returns the key whose URI is in PYCCMEM_KEY, or else the one in the file that
    PYCCMEM_KEY_FILE names. `what` says in an error what it is for. Raises InvalidKeyError if there
    is neither, and what from_uri() and Key.from_file() raise."""
    uri = os.environ.get(KEY_VARIABLE)
    if uri:
        return shared(uri)
    path = os.environ.get(KEY_FILE_VARIABLE)
    if not path:
        raise errors.InvalidKeyError(
            f"There is no key for {what}; set {KEY_VARIABLE} to a key's URI, or "
            f"{KEY_FILE_VARIABLE} to a key file, before vLLM starts."
        )
    return Key.from_file(path)
