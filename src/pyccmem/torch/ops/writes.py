# SPDX-License-Identifier: Apache-2.0
"""Operations that write to their arguments: the tensors are opened, changed, and encrypted
again."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ... import errors
from .._blas import BLAS
from .._blocks import Blocks
from .._results import pooled, wiped_like
from .._tensor import EncryptedTensor, asks_wiping, opened, real, rewritten, stored_of, whole
from ..registry import implements, overrides
from .common import default, open_all, plain

__all__ = ["HIDDEN_WRITES", "write"]

aten = torch.ops.aten

#: Arguments that an operation writes to although its schema does not say so, if the argument of the
#: number given is true.
HIDDEN_WRITES = {aten.native_batch_norm.default: ((3, 4), 5)}

_IN_THE_CLEAR = (
    "Encrypted tensors were copied into plain parameters, where they now lie in the clear. To keep "
    "them encrypted use load_state_dict(..., assign=True), or call encrypt_module(model, key=...) "
    "before; if they are meant to be plain, fill this model from decrypt()."
)


def _out_refused(function: Any, shape: torch.Size, wanted: torch.Size) -> NoReturn:
    raise errors.ArgumentError(
        f"{function._schema.name} gives a result of shape {tuple(wanted)}, and out is an "
        f"EncryptedTensor of shape {tuple(shape)}, which cannot be resized; give one of that shape "
        f"or leave out= out."
    ) from None


@overrides(Tensor.copy_)
def _copy_into(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Warns of a plain parameter that is filled from an encrypted tensor, as load_state_dict() does
    without assign=True."""
    target = args[0]
    if isinstance(target, torch.nn.Parameter) and not isinstance(target, EncryptedTensor):
        warnings.warn(_IN_THE_CLEAR, errors.PlainTensorsWarning, stacklevel=4)
    return default(function, args, kwargs)


@implements(aten.copy_.default)
def _copy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    stored = whole(target) if isinstance(target, EncryptedTensor) else None
    if stored is None:
        return write(function, args, kwargs)
    shape = tuple(target.shape)
    other = whole(source) if isinstance(source, EncryptedTensor) else None
    if isinstance(stored, Blocks):
        if source is not target:
            stored.take(other)
        return target
    values = plain(source)
    if source is target or not target.numel():
        return target
    if (
        tuple(values.shape) != shape
        or values.dtype != stored.dtype
        or not values.is_contiguous()
        or values.is_conj()
        or values.is_neg()
        or values.device.type != "cpu"
    ):
        staged = wiped_like(shape, stored.dtype)
        staged.copy_(values)
        values = staged
    stored.replace(values)
    return target


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    """Returns the ids of the encrypted arguments that an operation writes to."""
    found: set[int] = set()
    schema = function._schema
    hidden, switch = HIDDEN_WRITES.get(function, ((), None))
    if switch is not None and not args[switch]:
        hidden = ()
    for at, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if at in hidden or (info is not None and info.is_write):
            value = args[at] if at < len(args) else kwargs.get(argument.name)
            for part in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(part, EncryptedTensor):
                    found.add(id(part))
    return found


def write(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Opens all arguments, runs the operation on them, and encrypts those that were written to."""
    targets = _written(function, args, kwargs)
    if not targets:
        return open_all(function, args, kwargs)
    found: dict[int, EncryptedTensor] = {}

    def note(value: EncryptedTensor) -> EncryptedTensor:
        found.setdefault(id(value), value)
        return value

    tree_map_only(EncryptedTensor, note, (args, kwargs))
    if any(stored_of(value) is None for value in found.values()):
        raise errors.ArgumentError(
            f"{function._schema.name} writes to an EncryptedTensor, which compiled code cannot; do "
            f"that outside of torch.compile."
        )
    wipe = any(asks_wiping(value) for value in found.values())
    stores = [real(found[at]) for at in targets]
    if len({id(stored) for stored in stores}) != len(stores):
        raise errors.ArgumentError(
            f"{function._schema.name} writes to two tensors that share one ciphertext; do one at a "
            f"time."
        )
    plain: dict[int, Tensor] = {
        at: opened(value) for at, value in found.items() if at not in targets
    }
    ordered = sorted(targets, key=lambda at: id(stored_of(found[at])))
    return _write_next(function, args, kwargs, found, ordered, plain, wipe)


def _write_next(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: dict[int, EncryptedTensor],
    targets: list[int],
    plain: dict[int, Tensor],
    wipe: bool,
) -> Any:
    """Opens the next target, in the order of their stores, so that no two writers wait for each
    other. Runs the operation when all are open."""
    if targets:
        at, *others = targets
        with rewritten(found[at]) as values:
            plain[at] = values
            return _write_next(function, args, kwargs, found, others, plain, wipe)
    args, kwargs = tree_map_only(EncryptedTensor, lambda value: plain[id(value)], (args, kwargs))
    shapes = {at: values.shape for at, values in plain.items()}
    try:
        with BLAS.unkept():
            result = function(*args, **kwargs)
            if wipe:
                result = pooled(result, (args, kwargs))
    finally:
        # torch gives `out` its new shape before it notices that the memory cannot grow.
        for at, values in plain.items():
            if values.shape != shapes[at]:
                _out_refused(function, shapes[at], values.shape)
    back = {id(values): found[at] for at, values in plain.items()}
    return tree_map_only(Tensor, lambda value: back.get(id(value), value), result)
