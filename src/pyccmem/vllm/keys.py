# SPDX-License-Identifier: Apache-2.0
"""The key of a sealed directory, which each process of vLLM reads for itself."""

from __future__ import annotations

import os

from .. import errors
from ..key_services import KeyProvider
from ..key_services.registry import shared
from ..keys import Key

__all__ = ["KEY_FILE_VARIABLE", "KEY_VARIABLE", "file_key"]

#: The environment variables with the URI of a key, see pyccmem.key_services.from_uri(), and with
#: the name of a key file, see pyccmem.Key.from_file().
KEY_VARIABLE = "PYCCMEM_KEY"
KEY_FILE_VARIABLE = "PYCCMEM_KEY_FILE"


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
