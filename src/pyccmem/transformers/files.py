# SPDX-License-Identifier: Apache-2.0
"""Opens and writes sealed files in place of those that transformers would open or write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import safetensors
import torch

from .. import errors
from ..core.dtypes import DTYPES
from ..keys import Key
from ..torch import EncryptedTensor, set_activations
from ..torch._block_files import load_sealed, save_sealed
from .keys import recent_config

__all__ = ["EncryptingFile", "SealedFile", "encrypted", "load", "parameter", "write"]

#: torch's types by the names that a safetensors header has for them.
_NAMES = {
    getattr(torch, dtype.name): dtype.safetensors
    for dtype in DTYPES.values()
    if dtype.safetensors is not None and hasattr(torch, dtype.name)
}


def parameter(tensor: EncryptedTensor) -> torch.nn.Parameter:
    """Returns the tensor as a module's parameter. transformers would make it one that requires a
    gradient, which an encrypted tensor cannot have."""
    return torch.nn.Parameter(tensor, requires_grad=False)


class Slice:
    """The object that transformers takes for a tensor that still lies in its file."""

    def __init__(self, shape: list[int], dtype: str) -> None:
        self._shape, self._dtype = shape, dtype
        #: The type to convert to, if it is not the tensor's own.
        self.wanted: torch.dtype | None = None

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return self._dtype

    def load(self) -> EncryptedTensor:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> torch.nn.Parameter:
        if index is not Ellipsis:
            raise errors.ArgumentError(
                "An encrypted tensor is loaded as a whole, not in parts; load the model without "
                "splitting its weights between devices."
            )
        tensor: Any = self.load()
        if self.wanted is not None and self.wanted != tensor.dtype:
            tensor = tensor.to(self.wanted)  # encrypted again, and no longer in the file
        return parameter(tensor)


class _SealedSlice(Slice):
    def __init__(self, tensor: EncryptedTensor) -> None:
        super().__init__(list(tensor.shape), _NAMES.get(tensor.dtype, str(tensor.dtype)))
        self._tensor = tensor

    def load(self) -> EncryptedTensor:
        return self._tensor


class _PlainSlice(Slice):
    """A tensor of a plain file, which is encrypted when it is loaded."""

    def __init__(self, name: str, source: Any, key: Key) -> None:
        super().__init__(source.get_shape(), source.get_dtype())
        self._name, self._source, self._key = name, source, key

    def load(self) -> EncryptedTensor:
        return EncryptedTensor.from_tensor(self._source[...], key=self._key, name=self._name)


class _File:
    """The part of safetensors.safe_open that transformers uses."""

    def keys(self) -> list[str]:
        raise NotImplementedError

    def get_slice(self, name: str) -> Slice:
        raise NotImplementedError

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.get_slice(name)[...]

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}

    def offset_keys(self) -> list[str]:
        return self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __enter__(self) -> _File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class SealedFile(_File):
    """All tensors of a sealed file, mapped or read. None is opened."""

    def __init__(
        self,
        path: str,
        key: Any,
        *,
        mmap: bool = True,
        activations: str = "plain",
        expect: Any = None,
        context: Any = None,
    ) -> None:
        """Loads them. Raises what pyccmem.safetensors.load_file() raises, with the file's name."""
        with _naming(path):
            self._tensors = load_sealed(
                path, key, mmap=mmap, activations=activations, expect=expect, context=context
            )

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> Slice:
        return _SealedSlice(self._tensors[name])


class EncryptingFile(_File):
    """A plain file whose tensors are encrypted when they are loaded."""

    def __init__(self, path: str, key: Key) -> None:
        self._file: Any = safetensors.safe_open(path, framework="pt", device="cpu")
        self._key = key

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def get_slice(self, name: str) -> Slice:
        return _PlainSlice(name, self._file.get_slice(name), self._key)

    def metadata(self) -> dict[str, str]:
        return dict(self._file.metadata() or {})


class _naming:
    """Puts a file's name before the text of our own errors, which lack it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, errors.PyccmemError) and value.args:
            message = str(value.args[0])
            if os.path.basename(self._path) not in message:
                value.args = (f"{self._path!r}: {message}", *value.args[1:])


def load(path: str, key: Any) -> dict[str, Any]:
    """Returns the tensors of a sealed file that belongs to the model which was loaded last, mapped
    or read, and with activations, as that was. Raises as SealedFile does."""
    config = recent_config()
    options = {} if config is None else {"mmap": config.mmap, "activations": config.activations}
    file = SealedFile(path, key, **options)
    return {name: file.get_tensor(name) for name in file}


def encrypted(path: str) -> dict[str, Any]:
    """Returns the tensors of a plain file, encrypted in memory under a key that is stored nowhere,
    with activations as the model that was loaded last."""
    config = recent_config()
    activations = "plain" if config is None else config.activations
    file = EncryptingFile(path, Key.generate())
    found = {name: file.get_tensor(name) for name in file}
    for tensor in found.values():
        set_activations(tensor, activations)
    return found


def write(
    tensors: dict[str, Any],
    path: str,
    key: Any,
    *,
    seal_names: bool = False,
    context: Any = None,
) -> None:
    """Writes a sealed file of encrypted and plain tensors."""
    save_sealed(tensors, path, key, {"format": "pt"}, seal_names=seal_names, context=context)
