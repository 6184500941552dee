# SPDX-License-Identifier: Apache-2.0
"""Whole models: every parameter and buffer that is chosen becomes ciphertext, and back."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import errors
from .._lib import DEFAULT_CIPHER, ffi
from .._owned import Descriptor
from ..keys import Key
from ._open import opened
from ._stored import pointer
from ._tensor import EncryptedTensor

__all__ = ["decrypt_module", "encrypt_module"]

Choice = Iterable[str] | str | Callable[[str, Tensor], object] | None
Progress = Callable[[int, int], object]


class _Place(NamedTuple):
    """A parameter or buffer of a model."""

    module: nn.Module
    name: str
    full_name: str
    tensor: Tensor
    is_parameter: bool


def _places(model: nn.Module) -> Iterator[_Place]:
    """Every place that holds a tensor, shared ones as often as they occur."""
    for prefix, module in model.named_modules(remove_duplicate=True):
        start = f"{prefix}." if prefix else ""
        for named, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in list(named.items()):
                if tensor is not None:
                    yield _Place(module, name, start + name, tensor, is_parameter)


def _predicate(name: str, choice: Choice) -> Callable[[str, Tensor], object]:
    if callable(choice):
        return choice
    patterns = [choice] if isinstance(choice, str) else list(choice or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise errors.ArgumentTypeError(
                f"{name} must hold patterns of names, or be a function of name and tensor, and "
                f"{type(pattern).__name__} is neither."
            )
    return lambda full_name, _: any(fnmatch.fnmatchcase(full_name, p) for p in patterns)


def _identity(tensor: Tensor) -> Any:
    """Equal for tensors that are one, or lie in the same memory in the same way."""
    if isinstance(tensor, EncryptedTensor) or tensor.device.type != "cpu" or not tensor.numel():
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def encrypt_module(
    model: nn.Module,
    *,
    key: Key,
    include: Choice = None,
    exclude: Choice = (),
    cipher: str = DEFAULT_CIPHER,
    progress: Progress | None = None,
    wipe: bool = True,
) -> nn.Module:
    """Encrypts a model in place and returns it: every parameter and buffer becomes an
    EncryptedTensor of the same name, tied ones the same one.

    `include` and `exclude` are patterns of qualified names as fnmatch has them
    ("encoder.*.weight"), or a function of name and tensor; without `include` all are chosen.
    `progress` is called with the bytes done and the bytes there are. The plain tensors are
    overwritten with zeros, unless `wipe` is False or a tensor that is not chosen lies in the same
    memory: who holds another reference to one finds zeros. An encrypted parameter takes no
    gradient.

    Raises ArgumentTypeError for what is no module, key, or dense CPU tensor, and what
    pyccmem.EncryptedTensor raises; the model is unchanged then.
    """
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    included = _predicate("include", include)
    excluded = _predicate("exclude", exclude)
    chosen: list[_Place] = []
    others: list[Tensor] = []
    for place in _places(model):
        if isinstance(place.tensor, EncryptedTensor):
            continue
        name, tensor = place.full_name, place.tensor
        wanted = (include is None or included(name, tensor)) and not excluded(name, tensor)
        if wanted and isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise errors.ArgumentTypeError(
                f"{name} has no shape yet; run the model once before it is encrypted."
            )
        if wanted:
            chosen.append(place)
        else:
            others.append(tensor)
    total = sum({_identity(p.tensor): p.tensor.nbytes for p in chosen}.values())
    made: dict[Any, EncryptedTensor] = {}
    done = 0
    try:
        for place in chosen:
            identity = _identity(place.tensor)
            if identity in made:
                continue
            made[identity] = EncryptedTensor.from_tensor(
                place.tensor, key=key, cipher=cipher, name=place.full_name
            )
            done += place.tensor.nbytes
            if progress is not None:
                progress(done, total)
    except BaseException:
        for tensor in made.values():
            tensor.core.close()
        raise
    parameters: dict[Any, EncryptedTensor] = {}
    for place in chosen:
        identity = _identity(place.tensor)
        new = made[identity]
        if place.is_parameter:
            if identity not in parameters:
                parameters[identity] = nn.Parameter(new, requires_grad=False)  # type: ignore[assignment]
            new = parameters[identity]
        _put(place, new)
    if wipe:
        kept = {_memory(tensor) for tensor in others} - {None}
        for place in chosen:
            if _memory(place.tensor) not in kept:
                _overwrite(place.tensor)
    return model


def decrypt_module(model: nn.Module) -> nn.Module:
    """The inverse, in place: every EncryptedTensor of the model becomes a plain tensor in ordinary
    memory, tied ones the same one; parameters take no gradient until requires_grad_() says so.
    Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError; the model is unchanged then."""
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    places = [p for p in _places(model) if isinstance(p.tensor, EncryptedTensor)]
    made: dict[int, Tensor] = {}
    for place in places:
        tensor = place.tensor
        assert isinstance(tensor, EncryptedTensor)
        if id(tensor) not in made:
            plain = opened(tensor).clone()
            made[id(tensor)] = nn.Parameter(plain, False) if place.is_parameter else plain
    for place in places:
        _put(place, made[id(place.tensor)])
    return model


def _put(place: _Place, tensor: Tensor) -> None:
    # Not by the dict of parameters alone: nn.RNN keeps a list of its own.
    setattr(place.module, place.name, tensor)


def _memory(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return None


def _overwrite(tensor: Tensor) -> None:
    """Zeros over a plain tensor's elements. The kernel writes them, which fails where the memory is
    read-only and this process would be killed."""
    nbytes = tensor.nbytes
    if not nbytes:
        return
    if not (tensor.is_contiguous() or _dense(tensor)):
        with torch.no_grad():
            tensor.detach().zero_()
        return
    memory = ffi.buffer(pointer(tensor), nbytes)
    try:
        with Descriptor.open("/dev/zero", os.O_RDONLY) as zero:
            view, at = memoryview(memory), 0
            while at < nbytes:
                at += os.readv(zero, [view[at : at + (1 << 28)]])
    except OSError:
        return  # read-only memory, such as a mapped file's


def _dense(tensor: Tensor) -> bool:
    """True when the elements fill a run of memory without a gap, in whatever order."""
    expected = 1
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n != 1:
            if stride != expected:
                return False
            expected *= n
    return True
