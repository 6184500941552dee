# SPDX-License-Identifier: Apache-2.0
"""Finds the functions for a model's directory, which an installation may lack."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .. import errors

__all__ = ["directory_function"]


def directory_function(name: str) -> Callable[..., Any]:
    """Returns a function of pyccmem.directories. Raises MissingPackageError."""
    try:
        module = importlib.import_module("pyccmem.directories")
    except ImportError:
        raise errors.MissingPackageError(
            "This installation of pyccmem has no support for directories; name single files."
        ) from None
    function: Callable[..., Any] = getattr(module, name)
    return function
