# SPDX-License-Identifier: Apache-2.0
"""What an open file makes of its tensors: EncryptedTensors of pyccmem or of torch. The words for
frameworks, devices and backends are those of safetensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .. import errors
from ..files.safetensors_header import shown
from ..keys import Key
from ..tensor import EncryptedTensor
from ._dtypes import numpy_dtype

__all__ = [
    "NUMPY",
    "Framework",
    "check_device",
    "framework_named",
    "offer",
    "reads_pages",
    "when_offered",
]


class Framework(Protocol):
    """What tensors become."""

    def form(
        self, dtype: str, shape: tuple[int, ...], tensor: str
    ) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Returns the dtype and shape of the array that holds a tensor of this dtype of the format.
        Raises MissingPackageError, ArgumentTypeError."""
        ...

    def made_of(self, core: EncryptedTensor, dtype: str, key: Key | None) -> Any:
        """Returns the framework's tensor over `core`, which has that form; `key` is for copies of
        it."""
        ...

    def part(self, tensor: Any, index: tuple[int | slice, ...], whole: bool) -> Any:
        """Returns what an index names, with an entry for each axis; `whole`: all of the tensor."""
        ...


class _Numpy:
    """EncryptedTensors of pyccmem, whose parts are arrays."""

    def form(
        self, dtype: str, shape: tuple[int, ...], tensor: str
    ) -> tuple[np.dtype[Any], tuple[int, ...]]:
        return numpy_dtype(dtype, tensor), shape

    def made_of(self, core: EncryptedTensor, dtype: str, key: Key | None) -> EncryptedTensor:
        return core

    def part(self, tensor: EncryptedTensor, index: tuple[int | slice, ...], whole: bool) -> Any:
        return tensor[index]


NUMPY: Framework = _Numpy()

_ALIASES = {
    "np": "numpy",
    "numpy": "numpy",
    "pt": "torch",
    "torch": "torch",
    "pytorch": "torch",
}

_KNOWN: dict[str, Framework] = {"numpy": NUMPY}

#: What when_offered() is to call.
_waiting: dict[str, list[Callable[[], None]]] = {}

#: Frameworks of safetensors that have no adapter here.
_OTHERS = frozenset(("tf", "tensorflow", "flax", "jax", "mlx", "paddle"))


def offer(name: str, framework: Framework) -> None:
    """Makes a framework known. Adapters call this when they are imported."""
    _KNOWN[name] = framework
    for call in _waiting.pop(name, ()):
        call()


def when_offered(name: str, call: Callable[[], None]) -> None:
    """Calls a function once a framework's adapter is imported, at once if it is."""
    if name in _KNOWN:
        call()
    else:
        _waiting.setdefault(name, []).append(call)


def framework_named(name: Any) -> Framework:
    """Returns the framework that `name` stands for, and imports its adapter. Raises
    FileRequestError, ArgumentTypeError, MissingPackageError."""
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(
            f"framework must be a text, 'np' or 'pt', not {type(name).__name__}."
        )
    known = _ALIASES.get(name)
    if known is None:
        what = (
            "is not one that encrypted tensors exist for"
            if name in _OTHERS
            else "is none that pyccmem knows"
        )
        raise errors.FileRequestError(
            f"framework {shown(name)} {what}; use framework='np' or framework='pt', and convert "
            f"what is to leave protected memory: np.asarray(tensor), or tensor.decrypt() of torch."
        )
    if known not in _KNOWN:
        # By its name: the adapters lie above this package, and import it.
        importlib.import_module(f"pyccmem.{known}")
    return _KNOWN[known]


def check_device(device: Any) -> None:
    """Raises FileRequestError for any device but the CPU."""
    if device is None or str(device) in ("cpu", "cpu:0"):
        return
    raise errors.FileRequestError(
        f"device is {shown(str(device))}, and encrypted tensors stay in this process's main "
        f"memory; leave it out, and move what is to leave protected memory yourself: "
        f"tensor.decrypt().to(device)."
    )


def reads_pages(backend: Any) -> bool:
    """Returns True for the backend that reads a sealed file's pages into memory instead of mapping
    them. Raises FileRequestError."""
    if backend not in ("mmap", "pread"):
        raise errors.FileRequestError(f"backend is {shown(backend)}; use 'mmap' or 'pread'.")
    return bool(backend == "pread")
