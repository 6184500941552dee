# SPDX-License-Identifier: Apache-2.0
"""The level of secret memory that a program asks for: of keys, and of what has a key of its own."""

from __future__ import annotations

import os
from typing import Any

from .. import errors
from ..binding import lib

__all__ = ["native_level", "wanted_level"]

_REQUIRE = {
    None: lib.CCMEM_SECRET_MLOCK,
    "mlock": lib.CCMEM_SECRET_MLOCK,
    "secretmem": lib.CCMEM_SECRET_MEMFD,
    "mlock, and no other": lib.CCMEM_SECRET_MLOCK_ONLY,
}

#: The values of PYCCMEM_SECRET and `level`, as values of `require`.
_EXACTLY = {"mlock": "mlock, and no other", "secretmem": "secretmem"}


def native_level(require: str | None) -> int:
    """Returns the native number of a secret-memory level's name. Raises ArgumentError,
    ArgumentTypeError."""
    if require is not None and not isinstance(require, str):
        raise errors.ArgumentTypeError(
            f"require must be None, 'mlock' or 'secretmem', not {type(require).__name__}."
        )
    if require not in _REQUIRE:
        raise errors.ArgumentError(
            f"require is {require!r}; it must be None, 'mlock' or 'secretmem'."
        )
    return int(_REQUIRE[require])


def wanted_level(require: Any, level: Any) -> str | None:
    """Returns the level that `require` and `level` ask for, or PYCCMEM_SECRET if neither is given.
    Raises ArgumentError, ArgumentTypeError, ConfigError."""
    native_level(require)
    if level is None:
        chosen = os.environ.get("PYCCMEM_SECRET", "")
        if chosen not in ("", "auto", *_EXACTLY):
            raise errors.ConfigError(
                f"PYCCMEM_SECRET={chosen!r} is not a level of secret memory; set mlock or "
                f"secretmem, or leave it unset for the best available."
            )
        wanted: str | None = require if require is not None else _EXACTLY.get(chosen)
        return wanted
    if not isinstance(level, str):
        raise errors.ArgumentTypeError(
            f"level must be None, 'mlock' or 'secretmem', not {type(level).__name__}."
        )
    if level not in _EXACTLY:
        raise errors.ArgumentError(f"level is {level!r}; it must be None, 'mlock' or 'secretmem'.")
    if require == "secretmem" and level == "mlock":
        raise errors.ArgumentError(
            "level='mlock' and require='secretmem' exclude each other; leave one of them out."
        )
    return _EXACTLY[level]
