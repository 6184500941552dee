# SPDX-License-Identifier: Apache-2.0
"""Saves whole models to sealed files, with what their tensors share, and loads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import errors
from ..binding import TENSOR_PAGE_SIZE
from ..safetensors import Progress
from ..safetensors.providers import AnyKey
from ._files import check_savable, load_file, save_file
from ._sharing import groups_of, same_elements
from ._tensor import EncryptedTensor

__all__ = ["load_model", "save_model"]


def save_model(
    model: nn.Module,
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
    *,
    key: AnyKey,
    seal_names: bool = False,
    page_size: int = TENSOR_PAGE_SIZE,
    progress: bool | Progress | None = None,
    context: Any = None,
) -> str:
    """Writes a model's state_dict(), encrypted or plain, into a sealed file, and returns its pin.
    Of tensors that share data the file has one, the first by name that has all of it; the metadata
    name it for each of the others, where they say nothing else. `force_contiguous=False` refuses
    plain tensors that are not contiguous.

    Raises ArgumentTypeError unless `model` is a module, StateDictError if none of the tensors that
    share data has all of it, TensorTypeError for what save_file() cannot write, and what
    pyccmem.safetensors.save_file() raises.
    """
    state = _state_of(model)
    for name, tensor in state.items():  # extra state of a module too, which no file can hold
        check_savable(name, tensor)
    texts = {} if metadata is None else metadata
    dropped: dict[str, str] = {}
    for group in groups_of(state):
        if not group.complete:
            raise errors.StateDictError(
                f"The tensors {', '.join(map(ascii, group.names))} share data, and none of them "
                f"has all of it; make a clone() of each first."
            )
        for name in group.names:
            if name != group.complete[0]:
                dropped[name] = group.complete[0]
                del state[name]
    if not force_contiguous:
        for name, tensor in state.items():
            if not isinstance(tensor, EncryptedTensor) and not tensor.is_contiguous():
                raise errors.TensorTypeError(
                    f"Tensor {name!a} is not contiguous, and would be written as if it were; use "
                    f"save_model(..., force_contiguous=True)."
                )
    if isinstance(texts, Mapping):
        texts = {**dropped, **texts} or None  # type: ignore[assignment]
    return save_file(
        state,
        filename,
        texts,
        key=key,
        seal_names=seal_names,
        page_size=page_size,
        progress=progress,
        context=context,
    )


def load_model(
    model: nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
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
) -> tuple[list[str], list[str]]:
    """Puts the tensors of a file, sealed or plain, into a model, which then is encrypted: its
    parameters and buffers become EncryptedTensors, of a sealed file over the file's pages. Tensors
    that are one tensor in the model stay one. Each keeps the model's dtype: another one in the file
    is converted, and encrypted again. The plain tensors of before are not overwritten.

    Returns the names of the model that the file lacks, and those of the file that the model has not
    used; with `strict`, any of these raise StateDictError, before anything is changed. Other
    arguments are those of load_file().

    Raises ArgumentTypeError unless `model` is a module, StateDictError also for shapes that differ
    and for tensors that are a part of another's data, and what load_file() raises.
    """
    state = {name: value for name, value in _state_of(model).items() if isinstance(value, Tensor)}
    loaded = load_file(
        filename,
        device,
        key=key,
        activations=activations,
        expect=expect,
        sealed=sealed,
        backend=backend,
        mmap=mmap,
        cipher=cipher,
        page_size=page_size,
        progress=progress,
        context=context,
    )
    sources, unexpected = _sources(state, loaded)
    missing = [name for name in state if name not in sources]
    if strict and (missing or unexpected):
        raise errors.StateDictError(
            f"{os.fspath(filename)!r} does not fit {type(model).__name__}: "
            f"Missing key(s) in state_dict: {_quoted(missing)}; "
            f"Unexpected key(s) in state_dict: {_quoted(unexpected)}; load it into its own model, "
            f"or with strict=False."
        )
    for name, source in sources.items():
        if loaded[source].shape != state[name].shape:
            raise errors.StateDictError(
                f"Tensor {source!a} of {os.fspath(filename)!r} has shape "
                f"{tuple(loaded[source].shape)}, and {name!a} of {type(model).__name__} has "
                f"{tuple(state[name].shape)}; load it into its own model."
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    taken: dict[tuple[str, bool], Tensor] = {}
    for name, source in sources.items():
        is_parameter = name in parameters
        if (source, is_parameter) not in taken:
            tensor: Any = loaded[source]
            if tensor.dtype != state[name].dtype:
                tensor = tensor.to(state[name].dtype)
            if is_parameter:
                tensor = nn.Parameter(tensor, requires_grad=False)
            taken[source, is_parameter] = tensor
    values = {name: taken[source, name in parameters] for name, source in sources.items()}
    model.load_state_dict(values, strict=False, assign=True)
    return missing, unexpected


def _sources(
    state: Mapping[str, Tensor], loaded: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Returns which tensor of the file each of the model's gets, and those that none gets."""
    sources = {name: name for name in state if name in loaded}
    unexpected = [name for name in loaded if name not in state]
    for group in groups_of(state):
        there = [name for name in group.names if name in loaded]
        if not there:
            continue
        best = [name for name in there if name in group.complete] or there
        for name in group.names:
            if not same_elements(state[name], state[best[0]]):
                raise errors.StateDictError(
                    f"The model's tensor {name!a} is a part of the data of {best[0]!a}, and could "
                    f"not be that of an encrypted one; make it a clone() before loading."
                )
            sources[name] = best[0]
        unexpected += [name for name in there if name != best[0]]
    return sources, unexpected


def _state_of(model: Any) -> dict[str, Any]:
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    return dict(model.state_dict())


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names)) or "none"
