# SPDX-License-Identifier: Apache-2.0
"""Loads and saves sealed files with torch's tensors, by pyccmem.safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, strided

from .. import errors
from ..binding import TENSOR_PAGE_SIZE
from ..safetensors import Progress
from ..safetensors import save as _save
from ..safetensors import save_file as _save_file
from ..safetensors._frameworks import check_device, reads_pages
from ..safetensors._load import load_from, load_from_bytes
from ..safetensors._open import Options
from ..safetensors.providers import AnyKey
from ._framework import Torch
from ._sharing import groups_of
from ._stored import spare_key
from ._tensor import EncryptedTensor, opened, path_of, real
from .ops.copies import encrypted

__all__ = ["check_savable", "load", "load_file", "save", "save_file"]


def load_file(
    filename: str | os.PathLike[str],
    device: Any = "cpu",
    *,
    key: AnyKey,
    activations: str = "plain",
    expect: Any = None,
    sealed: bool | None = None,
    backend: str = "mmap",
    mmap: bool = True,
    cipher: str | None = None,
    page_size: int | None = None,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> dict[str, EncryptedTensor]:
    """Returns every tensor of a safetensors file by name. The tensors of a sealed file are not
    decrypted; those of a plain file are encrypted on the way. `device` is "cpu". `activations` is
    "plain" or "wiped", see set_activations(), and anything else an ArgumentError. Other arguments
    and errors are those of pyccmem.safetensors.load_file(), with FileRequestError for another
    device. Loads torch.float4_e2m1fn_x2, too."""
    made_of = Torch(activations)
    check_device(device)
    anonymous = reads_pages(backend) or not mmap
    options = Options(key, expect, sealed, not anonymous, cipher, page_size, made_of, context)
    return load_from(filename, options, progress)


def load(
    data: Any,
    *,
    key: AnyKey,
    activations: str = "plain",
    expect: Any = None,
    sealed: bool | None = None,
    cipher: str | None = None,
    page_size: int | None = None,
    copy: bool | None = True,
    context: Any = None,
) -> dict[str, EncryptedTensor]:
    """Does load_file() for the bytes of a file; see pyccmem.safetensors.load(), for `copy` too."""
    options = Options(
        key, expect, sealed, True, cipher, page_size, Torch(activations), context, copy
    )
    return load_from_bytes(data, options)


def save_file(
    tensors: Mapping[str, Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> str:
    """Writes encrypted or plain tensors into a sealed file, and returns its pin. Those that are not
    contiguous are written in order, 1 MiB at a time.

    Raises TensorTypeError for what is not a dense tensor on the CPU, StateDictError for tensors
    that share data (save_model() saves such a model) or have none (the meta device), and what
    pyccmem.safetensors.save_file() raises.
    """
    return _save_file(
        writable_tensors(tensors),
        filename,
        metadata,
        key=key,
        seal_names=seal_names,
        page_size=page_size,
        progress=progress,
        context=context,
    )


def save(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    context: Any = None,
) -> bytes:
    """Returns the bytes of the sealed file that save_file() would write, for load(). Raises what
    save_file() raises, but for FileWriteError."""
    return _save(
        writable_tensors(tensors),
        metadata,
        key=key,
        seal_names=seal_names,
        page_size=page_size,
        context=context,
    )


def writable_tensors(tensors: Any) -> dict[str, Any]:
    """Returns tensors by name as pyccmem.safetensors writes them without plain copies. Raises
    TensorTypeError, StateDictError."""
    if not isinstance(tensors, Mapping):
        raise errors.TensorTypeError(
            f"tensors must be a dict of tensors by name, not {type(tensors).__name__}."
        )
    for name, tensor in tensors.items():
        check_savable(name, tensor)
    shared = [group.names for group in groups_of(tensors)]
    if shared:
        which = "; ".join(", ".join(map(ascii, names)) for names in shared)
        raise errors.StateDictError(
            f"These tensors share data, which a file would have twice, and which would no longer "
            f"be shared after loading: {which}. Save the model with pyccmem.torch.save_model(), or "
            f"a clone() of each."
        )
    return {name: _writable(name, tensor) for name, tensor in tensors.items()}


def check_savable(name: Any, tensor: Any) -> None:
    """Raises TensorTypeError for what is not a dense tensor on the CPU, StateDictError for one
    without data."""
    if not isinstance(tensor, Tensor):
        raise errors.TensorTypeError(
            f"Tensor {name!a} is a {type(tensor).__name__}; it must be a torch.Tensor."
        )
    if tensor.layout is not strided or tensor.is_quantized:
        raise errors.TensorTypeError(
            f"Tensor {name!a} is not dense ({tensor.layout}, {tensor.dtype}); convert it with "
            f"to_dense() or dequantize() first."
        )
    if tensor.device.type == "meta":
        raise errors.StateDictError(
            f"Tensor {name!a} is on the meta device and has no data; load it first."
        )
    if tensor.device.type != "cpu":
        raise errors.TensorTypeError(
            f"Tensor {name!a} lies on {str(tensor.device)!r}; bring it to the CPU with cpu() first."
        )


def _writable(name: Any, tensor: Tensor) -> Any:
    if isinstance(tensor, EncryptedTensor):
        return encrypted(opened(tensor), real(tensor)) if path_of(tensor) else tensor
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return EncryptedTensor.from_tensor(tensor, key=spare_key(), name=str(name))
