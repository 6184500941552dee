# SPDX-License-Identifier: Apache-2.0
"""Sources of the plaintext of a sealed file: tensors in memory, or a plain file. They are read a
block at a time into memory that is wiped."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..core.dtypes import DTYPES
from ..core.operand import place_of
from ..core.store import handle
from ..files.safetensors_header import Entry
from ..quantized import QuantizedTensor
from ..tensor import EncryptedTensor
from ._blocks import scale_name
from ._dtypes import name_of
from ._format import RESERVED_PREFIX
from ._plain_file import read_part

__all__ = ["ArraySource", "FileSource", "Source", "checked_name", "is_text", "sources_of"]

Block = npt.NDArray[np.uint8]

#: The format's names of torch's dtypes, by their str().
_TORCH = {
    f"torch.{dtype.name}": dtype.safetensors for dtype in DTYPES.values() if dtype.safetensors
}

#: torch's pairs of elements of four bits.
_TORCH["torch.float4_e2m1fn_x2"] = "F4"


class Source(Protocol):
    """The plaintext of one tensor, read in order from its first byte."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...

    def read(self, part: Block, at: int) -> None:
        """Fills `part` with the bytes from `at` on."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A tensor of a plain file. The file's position is at its data when reading begins."""

    file: BinaryIO
    entry: Entry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    def read(self, part: Block, at: int) -> None:
        read_part(self.file, part, self.entry)


@dataclass(frozen=True)
class _Encrypted:
    name: str
    dtype: str
    shape: tuple[int, ...]
    tensor: EncryptedTensor

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self, part: Block, at: int) -> None:
        self.tensor.buffer.read_into(part, place_of(self.tensor)[1] + at)


@dataclass(frozen=True)
class ArraySource:
    """An array, which need not be of the shape that the file gives the tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    array: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def read(self, part: Block, at: int) -> None:
        array, kind = self.array, self.array.dtype
        size = array.itemsize  # divides `at` and the length: multiples of 4096, or up to the end
        first, end = at // size, (at + len(part)) // size
        out = part
        if not kind.isnative or kind.str.startswith(">"):
            out = part.view(kind.newbyteorder("<"))  # copying into it turns the bytes around
        else:
            array = array if not array.flags.c_contiguous else array.reshape(-1).view(np.uint8)
        if array.flags.c_contiguous:
            flat = array.reshape(-1)
            np.copyto(out, flat[at : at + len(part)] if out is part else flat[first:end])
            return
        copied = array.flat[first:end]
        try:
            np.copyto(out, copied.view(np.uint8) if out is part else copied)
        finally:
            wiped.wipe(copied.view(np.uint8))


def sources_of(tensors: Mapping[str, Any]) -> list[Source]:
    """Returns a source for each tensor by name: an EncryptedTensor, a tensor of an adapter, a torch
    tensor on the CPU, or what NumPy turns into an array; two for a QuantizedTensor that has scales
    of rows. An adapter's tensor has an EncryptedTensor
    as its `core`; unless `__pyccmem_core__()` says that the core is all of it, it is decrypted as a
    whole. Raises ArgumentTypeError, ArgumentError for a name that no file can have."""
    if not isinstance(tensors, Mapping):
        raise errors.ArgumentTypeError(
            f"tensors must be a dict of tensors by name, not {type(tensors).__name__}."
        )
    found: list[Source] = []
    for name, value in tensors.items():
        if isinstance(value, QuantizedTensor):
            found.append(_source(name, value.raw))
            if value.scale is not None:
                other = scale_name(name)
                if other in tensors:
                    raise errors.ArgumentError(
                        f"Tensor {name!a} is quantised by row, and its scales are called "
                        f"{other!a}, as another tensor is; give that another name."
                    )
                found.append(_source(other, value.scale))
        else:
            found.append(_source(name, value))
    return found


def checked_name(name: Any) -> str:
    """Returns the name of a tensor. Raises ArgumentTypeError, ArgumentError for one that no file
    can have."""
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(f"A tensor's name must be a str, not {name!a}.")
    if name == "__metadata__" or name.startswith(RESERVED_PREFIX) or not is_text(name):
        raise errors.ArgumentError(
            f"A tensor cannot be called {name!a}; use Unicode text other than '__metadata__' that "
            f"does not begin with {RESERVED_PREFIX!r}."
        )
    return name


def _source(name: Any, value: Any) -> Source:
    checked_name(name)
    if isinstance(value, EncryptedTensor):
        handle(place_of(value)[0])
        return _Encrypted(name, name_of(value.dtype, name), value.shape, value)
    core = getattr(value, "core", None)
    if isinstance(core, EncryptedTensor):
        handle(place_of(core)[0])
        if value.__pyccmem_core__() is core:
            dtype = _TORCH.get(str(value.dtype)) or name_of(core.dtype, name)
            return _Encrypted(name, dtype, _elements(dtype, core.shape), core)
        # A view, such as a transpose or a part: its bytes are not its core's, one after the other.
        value = value.decrypt()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch_source(name, value, torch)
    array = np.asarray(value)
    dtype = name_of(array.dtype.newbyteorder("="), name)
    return ArraySource(name, dtype, array.shape, array)


def _torch_source(name: str, value: Any, torch: Any) -> Source:
    dtype = _TORCH.get(str(value.dtype))
    if dtype is None or value.device.type != "cpu" or value.layout != torch.strided:
        raise errors.ArgumentTypeError(
            f"Tensor {name!a} is of {value.dtype} on {value.device}, layout {value.layout}; move "
            f"it to the CPU and to a dense layout and dtype that safetensors files have."
        )
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy()
    return ArraySource(name, dtype, _elements(dtype, tuple(value.shape)), data)


def _elements(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in elements of the format, for one of torch's."""
    return (*shape[:-1], shape[-1] * 2) if dtype == "F4" and shape else shape


def is_text(name: str) -> bool:
    """Returns False for half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
