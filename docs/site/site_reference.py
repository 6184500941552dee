# SPDX-License-Identifier: Apache-2.0
"""The pages of the reference: for each public module what its `__all__` names, from the docstrings
and with the types."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from site_docstrings import restructured

__all__ = [
    "MISSING",
    "MODULES",
    "comment_of",
    "module_named",
    "page_of",
    "public_names",
    "stops_of",
]

#: The public modules, each with what it is for, in the order of the reference. Where something can
#: be had from two of them, its page is that of the first.
MODULES = {
    "pyccmem": "keys, buffers, tensors, caches, products",
    "pyccmem.errors": "every exception and warning",
    "pyccmem.quantized": "weights of a few bits",
    "pyccmem.key_services": "keys in files, tokens and services",
    "pyccmem.safetensors": "safetensors files, plain and sealed",
    "pyccmem.gguf": "GGUF files, plain and sealed",
    "pyccmem.vectors": "vector search over ciphertext",
    "pyccmem.directories": "models' directories, sealed as a whole",
    "pyccmem.torch": "PyTorch",
    "pyccmem.transformers": "transformers and sentence-transformers",
    "pyccmem.vllm": "vLLM",
    "pyccmem.ray": "Ray",
    "pyccmem.langchain": "LangChain",
    "pyccmem.llama_index": "LlamaIndex",
    "pyccmem.hardening": "what a process leaves behind",
    "pyccmem.assessment": "what protects a process",
    "pyccmem.audit": "what lies in a process's memory",
    "pyccmem.measure": "timed loops",
    "pyccmem.hazmat": "bare primitives, for checking",
}

#: Packages that modules of these stand on and that need not be here: stand-ins take their places.
MISSING = [
    name
    for name in (
        "langchain_core",
        "llama_index",
        "ray",
        "safetensors",
        "sentence_transformers",
        "torch",
        "transformers",
        "vllm",
    )
    if importlib.util.find_spec(name) is None
]


def module_named(name: str) -> ModuleType:
    """A public module, with stand-ins for packages that are not installed."""
    if not MISSING:
        return importlib.import_module(name)
    from sphinx.ext.autodoc.mock import mock

    with mock(MISSING):
        return importlib.import_module(name)


def public_names(module: ModuleType) -> list[tuple[str, Any]]:
    """What a module offers, by name; those that say how far it is (`__version__`) apart."""
    return [
        (name, getattr(module, name))
        for name in module.__all__
        if not name.startswith("__") and not inspect.ismodule(getattr(module, name))
    ]


def stops_of(kind: type) -> list[str]:
    """The first of its bases in each line that are not of pyccmem: what they have is their own
    documentation's business."""
    return sorted(
        {base.__name__ for base in kind.__mro__[1:] if not base.__module__.startswith("pyccmem")}
        or {"object"}
    )


def page_of(name: str, homes: dict[int, str]) -> str:
    """The page of a module, in reStructuredText. `homes` tells, by id(), what has a place already,
    and is told of more."""
    return "\n".join(_lines(name, homes)) + "\n"


def _lines(name: str, homes: dict[int, str]) -> Iterator[str]:
    module = module_named(name)
    yield from (name, "=" * len(name), "", f".. automodule:: {name}", "   :no-members:", "")
    groups: dict[str, list[str]] = {"Classes": [], "Functions": [], "Constants": []}
    for own, thing in public_names(module):
        full = f"{name}.{own}"
        home = homes.setdefault(id(thing), full) if callable(thing) else full
        if inspect.isclass(thing):
            groups["Classes"] += _class(full, thing) if home == full else _other(own, home, "class")
        elif callable(thing):
            directive = [f".. autofunction:: {full}", ""]
            groups["Functions"] += directive if home == full else _other(own, home, "func")
        else:
            groups["Constants"] += _constant(full, module, thing)
    for title, lines in groups.items():
        if lines:
            yield from (title, "-" * len(title), "", *lines)


def comment_of(module: ModuleType, name: str) -> list[str]:
    """The comment before a constant that the module, or one of its package, makes: lines that begin
    with `#:`."""
    file = Path(inspect.getsourcefile(module) or "")
    files = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
    for source in files:
        found = re.search(
            rf"^((?:#:.*\n)+){name}(?:: [^=\n]+)? = ", source.read_text("utf-8"), re.MULTILINE
        )
        if found:
            return [line.removeprefix("#:").strip() for line in found[1].splitlines()]
    return []


def _constant(full: str, module: ModuleType, thing: Any) -> list[str]:
    lines = [f".. py:data:: {full}", f"   :type: {type(thing).__name__}"]
    value = repr(thing)
    if len(value) <= 80:
        lines.append(f"   :value: {value}")
    comment = restructured(comment_of(module, full.rpartition(".")[2]))
    return [*lines, "", *(f"   {line}".rstrip() for line in comment), ""]


def _class(full: str, kind: type) -> list[str]:
    if issubclass(kind, BaseException):
        return [f".. autoexception:: {full}", "   :show-inheritance:", ""]
    stops = ", ".join(stops_of(kind))
    return [
        f".. autoclass:: {full}",
        "   :members:",
        f"   :inherited-members: {stops}",
        "",
    ]


def _other(own: str, home: str, role: str) -> list[str]:
    return [f"``{own}`` is :{role}:`{home}`.", ""]
