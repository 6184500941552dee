# SPDX-License-Identifier: Apache-2.0
"""The key of a sealed directory, which each process of vLLM reads for itself."""

from __future__ import annotations

import os

from .. import errors
from ..keys import Key

__all__ = ["KEY_FILE_VARIABLE", "file_key"]

#: The environment variable with the name of a key file; see pyccmem.Key.from_file().
KEY_FILE_VARIABLE = "PYCCMEM_KEY_FILE"


def file_key(what: str) -> Key:
    """Returns the key in the file that PYCCMEM_KEY_FILE names. `what` says in an error what it is
    for. Raises InvalidKeyError if it names none, and what Key.from_file() raises."""
    path = os.environ.get(KEY_FILE_VARIABLE)
    if not path:
        raise errors.InvalidKeyError(
            f"There is no key for {what}; set {KEY_FILE_VARIABLE} to a key file before vLLM starts."
        )
    return Key.from_file(path)
