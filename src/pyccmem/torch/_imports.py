# SPDX-License-Identifier: Apache-2.0
"""Runs a function once a module of others has been imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]


def when_imported(name: str, hook: Callable[[Any], None]) -> None:
    """Calls `hook` with the module of this name: now if it is there, else after its import."""
    if name in sys.modules:
        hook(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, hook))


class _Finder(MetaPathFinder):
    """Notices the import of one module, once, and leaves it to the others."""

    def __init__(self, name: str, hook: Callable[[Any], None]) -> None:
        self._name, self._hook = name, hook

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Hooking(spec.loader, self._hook)
        return spec


class _Hooking(Loader):
    """Loads a module by another loader, and calls the hook then."""

    def __init__(self, loader: Loader, hook: Callable[[Any], None]) -> None:
        self._loader, self._hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._hook(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
