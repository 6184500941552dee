# SPDX-License-Identifier: Apache-2.0
"""Functions of torch's Python interface that are not left to its dispatcher: those that a forward
pass calls most, for speed, and those that must be refused or mean something else here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import errors
from ._dispatch import matrix_of
from ._linear import rows, rows_of_one_type
from ._open import opened
from ._tensor import FUNCTIONS, EncryptedTensor, device_refused, training_refused

__all__: list[str] = []

_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled

_FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


_dual_level = torch.autograd.forward_ad


def _transformed() -> bool:
    """True while something records or transforms the operations, which native calls would pass by:
    jit.trace, forward-mode gradients, torch.func, a mode of the dispatcher."""
    return (
        torch._C._get_tracing_state() is not None
        or _dual_level._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _default(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **kwargs)


def _linear(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _transformed():
        return _default(function, args, kwargs)
    return _linear_of(*args, **kwargs)


def _linear_of(input: Any, weight: Any, bias: Any = None) -> Any:
    """F.linear, with torch's names of the arguments."""
    x = input
    if type(x) is Tensor and isinstance(weight, EncryptedTensor):
        needs_grad = _is_grad_enabled() and (
            x.requires_grad
            or (type(bias) is not EncryptedTensor and bias is not None and bias.requires_grad)
        )
        if not (
            needs_grad or weight._path or weight._stored is None or _is_autocast_enabled("cpu")
        ):
            encrypted = type(bias) is EncryptedTensor
            if not encrypted or not (bias._path or bias._stored is None):
                product = rows_of_one_type(x, weight._stored, bias._stored if encrypted else bias)
                if product is not None:
                    return product
        found = None if needs_grad else matrix_of(weight)
        if found is not None and not found[1]:
            matrix = found[0]
            kind = x.dtype
            cast = _is_autocast_enabled("cpu") and kind in _FLOATING and kind is not torch.float64
            if cast:
                kind = torch.get_autocast_dtype("cpu")
            if (
                (cast or kind is matrix.dtype)
                and x.dim()
                and x.shape[-1] == matrix.width
                and x.device.type == "cpu"
                and x.layout is torch.strided
                and not x.is_neg()
            ):
                if bias is None:
                    return rows(x, matrix, None, kind)
                if isinstance(bias, EncryptedTensor):
                    bias = opened(bias)
                if (
                    bias.dim() == 1
                    and bias.shape[0] == matrix.height
                    and (cast or bias.dtype is kind)
                    and bias.device.type == "cpu"
                ):
                    return rows(x if x.dtype is kind else x.to(kind), matrix, bias, kind)
    return _checked_linear(x, weight, bias)


def _checked_linear(x: Any, weight: Any, bias: Any) -> Any:
    """The way for all else. torch says what is wrong with arguments before anything is opened."""
    with torch._C.DisableTorchFunctionSubclass():
        if all(isinstance(t, Tensor) for t in (x, weight)) and not _is_autocast_enabled("cpu"):
            with torch.no_grad():
                F.linear(*(_shadow(t) for t in (x, weight, bias)))  # shapes
                F.linear(_tiny(x), _tiny(weight), None if bias is None else _tiny(bias)[0])  # types
        return F.linear(x, weight, bias)


def _shadow(tensor: Any) -> Any:
    """A tensor without data of the same form."""
    if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _tiny(tensor: Tensor) -> Tensor:
    return torch.zeros((1, 1), dtype=tensor.dtype)


FUNCTIONS[F.linear] = _linear


def _opening(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """On temporaries straight away; but where a gradient is wanted the dispatcher sees the
    encrypted tensors, so that autograd keeps these and no plaintext."""
    if "out" in kwargs or _transformed():
        return _default(function, args, kwargs)
    if _is_grad_enabled():
        for value in (*args, *kwargs.values()):
            if (
                isinstance(value, Tensor)
                and type(value) is not EncryptedTensor
                and value.requires_grad
            ):
                return _default(function, args, kwargs)
    args = tuple([opened(a) if type(a) is EncryptedTensor else a for a in args])
    if kwargs:
        kwargs = {k: opened(a) if type(a) is EncryptedTensor else a for k, a in kwargs.items()}
    return function(*args, **kwargs)


for _function in (
    F.layer_norm,
    torch.layer_norm,
    torch.mul,
    torch.add,
    Tensor.mul,
    Tensor.add,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.tolist,
    *(place.rms_norm for place in (F, torch) if hasattr(place, "rms_norm")),
):
    FUNCTIONS[_function] = _opening


# ---- devices and gradients -----------------------------------------------------------------------


def _to(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        device = torch._C._nn._parse_to(*args[1:], **kwargs)[0]
    except (TypeError, RuntimeError):
        device = None  # to(other), or what torch refuses
    if device is not None and device.type not in ("cpu", "meta"):
        device_refused(device)
    return _default(function, args, kwargs)


def _other_device(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = kwargs.get("device", args[1] if len(args) > 1 else None)
    device_refused(function.__name__ if given is None else given)


def _requires_grad(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = kwargs.get("requires_grad", args[1] if len(args) > 1 else True)
    if wanted:
        training_refused()
    return args[0]


FUNCTIONS[Tensor.to] = _to
for _name in ("cuda", "xpu", "ipu", "hpu", "mtia", "pin_memory", "share_memory_"):
    if hasattr(Tensor, _name):
        FUNCTIONS[getattr(Tensor, _name)] = _other_device
FUNCTIONS[Tensor.requires_grad_] = _requires_grad
FUNCTIONS[Tensor.requires_grad.__set__] = _requires_grad  # type: ignore[attr-defined]


# ---- memory --------------------------------------------------------------------------------------


def _numpy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A read-only array: what was written to it would be lost."""
    array = opened(args[0]).numpy()
    array.flags.writeable = False
    return array


def _no_address(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        "An EncryptedTensor has no plain data with an address or a storage; use decrypt(), whose "
        "result has, or core.buffer.ciphertext."
    )


def _data(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0].detach()


def _set_data(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, value = args
    if not isinstance(value, EncryptedTensor) or not isinstance(target, EncryptedTensor):
        raise errors.ArgumentError(
            "The data of an EncryptedTensor cannot be replaced by a plain tensor, nor that of a "
            "plain tensor by an encrypted one; use copy_(), which encrypts."
        )
    with torch._C.DisableTorchFunctionSubclass():
        function(target, value)  # shape, strides and type
    target._stored, target._path = value._stored, value._path
    target._form, target._fake = value._form, value._fake


def _array(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    array = _numpy(function, args, {})
    dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
    return array if dtype is None else array.astype(dtype, copy=False)


for _name in ("apply_", "map_", "map2_", "__dlpack__"):
    FUNCTIONS[getattr(Tensor, _name)] = _no_address
FUNCTIONS[Tensor.numpy] = _numpy
FUNCTIONS[Tensor.__array__] = _array
FUNCTIONS[Tensor.data_ptr] = _no_address
FUNCTIONS[Tensor.data.__get__] = _data  # type: ignore[attr-defined]
FUNCTIONS[Tensor.data.__set__] = _set_data  # type: ignore[attr-defined]


def _is_shared(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return False


FUNCTIONS[Tensor.is_shared] = _is_shared
FUNCTIONS[Tensor.is_pinned] = _is_shared
