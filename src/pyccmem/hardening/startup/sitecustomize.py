# SPDX-License-Identifier: Apache-2.0
"""Calls guard() when an interpreter starts that `pyccmem run` started, or that one of those did.

Python imports the first module of this name on its path when it starts. The next one, which this
one hides, is run afterwards, and the folder leaves the path: the program finds all as it would
without.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys


def _next() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]
    sys.path_importer_cache.pop(here, None)
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _guard() -> None:
    if not os.environ.get("PYCCMEM_GUARD"):
        return
    try:
        from pyccmem.hardening.launch import begin
    except ImportError as error:
        print(
            f"pyccmem: {sys.executable} cannot import pyccmem ({error}), so NumPy's own lists of "
            f"freed blocks are not overwritten in it; install pyccmem there too.",
            file=sys.stderr,
        )
        return
    begin()


try:
    _guard()
finally:
    _next()
