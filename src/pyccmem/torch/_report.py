# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a model are plain: parameters and buffers, and the copies that modules keep or
make beside these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import errors
from ._tensor import EncryptedTensor

__all__ = ["PlainTensor", "beside", "hidden", "plain_tensors"]


class PlainTensor(NamedTuple):
    """A plain tensor of a model.

    `kind` is "parameter" or "buffer"; "attribute" for a tensor that a module keeps in an attribute
    of its own, as old-style weight_norm, spectral_norm and pruning do; "computed" for a tensor that
    a parametrization computes from encrypted ones at each use; "packed" for the weights of a
    quantized module, which lie in an object that is not a tensor (`nbytes` is 0 if its size is not
    known)."""

    name: str
    kind: str
    nbytes: int


def plain_tensors(model: nn.Module) -> list[PlainTensor]:
    """Returns every tensor that a model keeps or makes and that is not encrypted, by name:
    parameters, buffers, tensors in attributes of modules (also in lists, tuples and dicts), results
    of parametrizations, packed weights of quantized modules.

    It cannot see tensors to which only functions, hooks, optimizers or objects that are not modules
    refer. Raises ArgumentTypeError unless `model` is a module.
    """
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    found: list[PlainTensor] = []
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for named, kind in ((module._parameters, "parameter"), (module._buffers, "buffer")):
            for name, tensor in named.items():
                if tensor is not None and not isinstance(tensor, EncryptedTensor):
                    found.append(PlainTensor(start + name, kind, _nbytes(tensor)))
        found.extend(hidden(module, start))
    return found


def hidden(module: nn.Module, start: str = "") -> Iterator[PlainTensor]:
    """Yields the plain copies that one module keeps or makes besides its parameters and buffers."""
    known = {id(t) for t in (*module._parameters.values(), *module._buffers.values())}
    for name, tensor in beside(module):
        if id(tensor) not in known:
            yield PlainTensor(start + name, "attribute", _nbytes(tensor))
    for name, value in vars(module).items():
        if isinstance(value, torch.ScriptObject):
            yield PlainTensor(start + name, "packed", 0)
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        for name in parametrizations:
            yield PlainTensor(start + name, "computed", 0)


def beside(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the plain tensors in attributes of one module, by the attribute's name: copies, but
    also views of parameters and buffers, and these themselves if an attribute has them too."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules") or name.endswith("_hooks"):
            continue
        if name == "_flat_weights" and isinstance(module, nn.RNNBase):
            continue  # made again from its parameters
        for tensor in _tensors(value):
            if not isinstance(tensor, EncryptedTensor):
                yield name, tensor


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)


def _nbytes(tensor: Tensor) -> int:
    try:
        return tensor.numel() * tensor.element_size()
    except (RuntimeError, ValueError):
        return 0  # it has no shape yet
