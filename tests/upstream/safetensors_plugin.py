# SPDX-License-Identifier: Apache-2.0
"""A plug-in of pytest: puts pyccmem in the place of safetensors, and counts what its tests say.

Loaded by safetensors_suite.py, in a process of its own. PYCCMEM_SUITE_MODE says what saving does:

    sealed      files and bytes stay sealed, and sealed ones are loaded
    decrypted   each is sealed, then decrypted again; plain ones are loaded

Loading gives EncryptedTensors in both.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import pytest
import safetensors_expected as expected

import pyccmem
import pyccmem.safetensors as ours
import pyccmem.torch as ours_torch

MODE = os.environ["PYCCMEM_SUITE_MODE"]

_key = pyccmem.Key.generate()


def _with_key(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(function, key=_key)


def _then_plain(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Returns a function that writes a plain file where `function` writes a sealed one, whose name
    is the argument at `place`."""

    def save_file(*args: Any, **options: Any) -> None:
        name = os.fspath(args[place])
        between = f"{name}.sealed"
        try:
            function(*args[:place], between, *args[place + 1 :], key=_key, **options)
            ours.decrypt_file(between, name, _key, overwrite=True)
        finally:
            if os.path.exists(between):
                os.unlink(between)

    return save_file


def _then_plain_bytes(function: Callable[..., Any]) -> Callable[..., Any]:
    def save(*args: Any, **options: Any) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            sealed, plain = os.path.join(place, "sealed"), os.path.join(place, "plain")
            with open(sealed, "wb") as file:
                file.write(function(*args, key=_key, **options))
            ours.decrypt_file(sealed, plain, _key)
            with open(plain, "rb") as file:
                return file.read()

    return save


def _module(name: str, members: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module


def _saver(function: Callable[..., Any], place: int | None = 1) -> Callable[..., Any]:
    if MODE == "sealed":
        return _with_key(function)
    return _then_plain_bytes(function) if place is None else _then_plain(function, place)


def _install() -> None:
    """Makes `import safetensors` give modules with the same names, and pyccmem's functions."""
    import safetensors.torch as stock

    package = _module(
        "safetensors",
        {
            "SafetensorError": ours.SafetensorError,
            "TensorSpec": ours.TensorSpec,
            "_safe_open_handle": _with_key(ours._safe_open_handle),
            "deserialize": _with_key(ours.deserialize),
            "safe_open": _with_key(ours.safe_open),
            "serialize": _saver(ours.serialize, None),
            "serialize_file": _saver(ours.serialize_file),
            "__path__": [],
        },
    )
    arrays = {
        "load": _with_key(ours.load),
        "load_file": _with_key(ours.load_file),
        "save": _saver(ours.save, None),
        "save_file": _saver(ours.save_file),
    }
    tensors = {
        "load": _with_key(ours_torch.load),
        "load_file": _with_key(ours_torch.load_file),
        "load_model": _with_key(ours_torch.load_model),
        "save": _saver(ours_torch.save, None),
        "save_file": _saver(ours_torch.save_file),
        "save_model": _saver(ours_torch.save_model),
    }
    # What tests of it look with at plain tensors, and what some test for itself.
    for name in expected.HELPERS:
        tensors[name] = getattr(stock, name)
    sys.modules["safetensors"] = package
    for name, members in (("numpy", arrays), ("torch", tensors)):
        module = _module(f"safetensors.{name}", members)
        sys.modules[f"safetensors.{name}"] = module
        setattr(package, name, module)


_install()

_results: dict[str, list[str]] = {}


def _short(item: str) -> str:
    """Returns a test's name without folders: FILE::CLASS::TEST."""
    return item.rsplit("/", 1)[-1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = expected.EXCLUDED | (expected.EXCLUDED_SEALED if MODE == "sealed" else {})
    known = {_short(item.nodeid) for item in items}
    for name in sorted(set(reasons) - known):
        _results[name] = ["absent", "in the list of exclusions, and not in this version"]
    for item in items:
        reason = reasons.get(_short(item.nodeid))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"excluded: {reason}"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    why = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        why = str(report.longrepr[2]).removeprefix("Skipped: ")
    outcome = "excluded" if why.startswith("excluded: ") else report.outcome
    _results[_short(report.nodeid)] = [outcome, why.removeprefix("excluded: ")]


def pytest_sessionfinish() -> None:
    with open(os.environ["PYCCMEM_SUITE_RESULTS"], "w", encoding="utf-8") as file:
        json.dump(_results, file)
