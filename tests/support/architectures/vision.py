# SPDX-License-Identifier: Apache-2.0
"""torchvision, which timm and others import. Where it was built for another torch, it lacks its
operators, and importing it fails although no model here needs one."""

from __future__ import annotations

import importlib.util
import sys
import types

_SHAPES = "torchvision._meta_registrations"


def without_operators() -> None:
    """Lets torchvision be imported where it could not be: without what it says of the shapes of
    operators that it lacks."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [one for one in sys.modules if one.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules[_SHAPES] = types.ModuleType(_SHAPES)
