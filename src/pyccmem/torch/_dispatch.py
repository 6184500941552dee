# SPDX-License-Identifier: Apache-2.0
"""What each operation of torch's dispatcher does with an EncryptedTensor.

composed of others     taken apart, so that the parts come here
views                  a view of the ciphertext: a step more on the path
products, rows         by tiles, or only the rows asked for
copies, conversions    encrypted
writes                 opened, done, encrypted again
the rest               opened into a temporary
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from .. import errors
from . import _blas
from ._linear import Matrix, columns, rows
from ._open import opened, rewritten, window
from ._rows import gathered
from ._stored import Stored, converted, wiped_like
from ._tensor import (
    DISPATCH,
    EncryptedTensor,
    Step,
    alias,
    device_refused,
    trace_refused,
    traced,
    wrapped,
)

__all__ = ["encrypted", "matrix_of", "planned"]

aten = torch.ops.aten

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))

#: Arguments that an operation writes to though its schema does not say so, when the argument of
#: this number is true.
_HIDDEN_WRITES = {aten.native_batch_norm.default: ((3, 4), 5)}

#: Operations that give a tensor another memory or another shape.
_REFUSED = ("aten::set_", "aten::resize_", "aten::resize_as_", "aten::_resize_output_")


#: Operations whose results are plain weights in another form, which a model then keeps.
_PACKING = re.compile(r"quantize_per_|quantize_weight|prepack|pack_gemm|_pack\b|int4pack|to_mkldnn")


def planned(function: Any) -> Handler:
    """The way for an operation that has none of its own."""
    schema = function._schema
    if _PACKING.search(schema.name):
        return _packing_refused
    if schema.name in _REFUSED or torch.Tag.inplace_view in function.tags:
        return _refused
    if function in _HIDDEN_WRITES or schema.is_mutable:
        return _write
    if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
        return _take_apart
    if function.is_view:
        return _view
    return _open_all


def _take_apart(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function.decompose(*args, **kwargs)


def _plain(value: Any) -> Any:
    return opened(value) if isinstance(value, EncryptedTensor) else value


def _open_all(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """On temporaries, which are wiped when nothing refers to them."""
    args, kwargs = tree_map(_plain, (args, kwargs))
    if torch.compiler.is_compiling():
        return function(*args, **kwargs)
    with _blas.unkept():
        return function(*args, **kwargs)


# ---- views ---------------------------------------------------------------------------------------


def _fixed(value: Any) -> Any:
    """An argument as part of a path: lists become tuples, so that paths compare and hash."""
    return tuple(_fixed(part) for part in value) if isinstance(value, (list, tuple)) else value


def _view(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    base = args[0] if args else None
    if not isinstance(base, EncryptedTensor):
        return _open_all(function, args, kwargs)
    step = Step(function, _fixed(args[1:]), tuple(sorted(_fixed(list(kwargs.items())))), None)
    form = base._layout()
    results = traced(form.shape, form.dtype, (*base._path, step))
    if isinstance(results, Tensor):
        return _viewed(base, step, results)
    return [_viewed(base, step._replace(part=at), seen) for at, seen in enumerate(results)]


def _viewed(base: EncryptedTensor, step: Step, seen: Tensor) -> EncryptedTensor:
    return wrapped(
        base._stored,
        (*base._path, step),
        seen.size(),
        seen.stride(),
        offset=seen.storage_offset(),
        form=base._form,
        fake=base._fake,
        dtype=seen.dtype,
    )


def _alias(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return alias(args[0])


DISPATCH[aten.detach.default] = DISPATCH[aten.alias.default] = _alias


# ---- copies --------------------------------------------------------------------------------------


def _copied(tensor: EncryptedTensor, dtype: torch.dtype) -> Any:
    """The values as another type, or the same: encrypted, but plain while tracing."""
    stored = tensor._stored
    if stored is None:
        return opened(tensor).to(dtype, copy=True)
    if not tensor._path:
        return wrapped(stored.copied(dtype))
    return encrypted(converted(opened(tensor), dtype), stored)


def encrypted(values: Tensor, like: Stored) -> EncryptedTensor:
    """Values with the key, cipher and name of another tensor."""
    values = values.resolve_conj().resolve_neg().contiguous()
    new = Stored.empty(tuple(values.shape), values.dtype, key=like.key, like=like.core)
    new.write_run(new.core, 0, values)
    return wrapped(new)


def _clone(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _copied(args[0], args[0].dtype)


def _to_copy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, device = args[0], kwargs.get("device")
    dtype = kwargs.get("dtype") or tensor.dtype
    if device is not None and torch.device(device).type == "meta":
        return torch.empty(tensor.shape, dtype=dtype, device="meta")
    if device is not None and torch.device(device).type != "cpu":
        device_refused(device)
    return _copied(tensor, dtype)


def _empty_like(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, device = args[0], kwargs.get("device")
    dtype = kwargs.get("dtype") or tensor.dtype
    kind = "cpu" if device is None else torch.device(device).type
    if kind == "meta" or tensor._stored is None:
        return torch.empty(tensor.shape, dtype=dtype, device=kind)
    if kind != "cpu":
        device_refused(device)
    stored = tensor._stored
    return wrapped(Stored.empty(tuple(tensor.shape), dtype, key=stored.key, like=stored.core))


DISPATCH[aten.clone.default] = _clone
DISPATCH[aten._to_copy.default] = _to_copy
DISPATCH[aten.empty_like.default] = _empty_like


# ---- writes --------------------------------------------------------------------------------------


def _refused(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        f"{function._schema.name} would give an EncryptedTensor other memory or another shape; "
        f"make a new one with EncryptedTensor.from_tensor()."
    )


def _packing_refused(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        f"{function._schema.name} would make plain weights of an encrypted tensor, for a model to "
        f"keep; where that is what you want, say so with pyccmem.torch.decrypt_module(model) or "
        f"tensor.decrypt() first."
    )


def _out_refused(function: Any, shape: torch.Size, wanted: torch.Size) -> NoReturn:
    raise errors.ArgumentError(
        f"{function._schema.name} gives a result of shape {tuple(wanted)}, and out is an "
        f"EncryptedTensor of shape {tuple(shape)}, which cannot be resized; give one of that shape "
        f"or leave out= out."
    ) from None


def _copy(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, EncryptedTensor) or target._stored is None or target._path:
        return _write(function, args, kwargs)
    stored, shape = target._stored, tuple(target.shape)
    values = _plain(source)
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


DISPATCH[aten.copy_.default] = _copy


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    """The ids of the encrypted arguments that an operation writes to."""
    found: set[int] = set()
    schema = function._schema
    hidden, switch = _HIDDEN_WRITES.get(function, ((), None))
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


def _write(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Opens all, works on that, encrypts what was written to."""
    targets = _written(function, args, kwargs)
    if not targets:
        return _open_all(function, args, kwargs)
    found: dict[int, EncryptedTensor] = {}

    def note(value: EncryptedTensor) -> EncryptedTensor:
        found.setdefault(id(value), value)
        return value

    tree_map_only(EncryptedTensor, note, (args, kwargs))
    if any(value._stored is None for value in found.values()):
        raise errors.ArgumentError(
            f"{function._schema.name} writes to an EncryptedTensor, which compiled code cannot; do "
            f"that outside of torch.compile."
        )
    stores = [found[at]._real() for at in targets]
    if len({id(stored) for stored in stores}) != len(stores):
        raise errors.ArgumentError(
            f"{function._schema.name} writes to two tensors that share one ciphertext; do one at a "
            f"time."
        )
    plain: dict[int, Tensor] = {
        at: opened(value) for at, value in found.items() if at not in targets
    }
    ordered = sorted(targets, key=lambda at: id(found[at]._stored))
    return _write_next(function, args, kwargs, found, ordered, plain)


def _write_next(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: dict[int, EncryptedTensor],
    targets: list[int],
    plain: dict[int, Tensor],
) -> Any:
    """Opens the next target, in the order of their stores so that no two writers wait for each
    other; runs the operation when all are."""
    if targets:
        at, *others = targets
        with rewritten(found[at]) as values:
            plain[at] = values
            return _write_next(function, args, kwargs, found, others, plain)
    args, kwargs = tree_map_only(EncryptedTensor, lambda value: plain[id(value)], (args, kwargs))
    shapes = {at: values.shape for at, values in plain.items()}
    try:
        with _blas.unkept():
            result = function(*args, **kwargs)
    finally:
        # torch gives `out` its new shape before it finds that the memory cannot grow.
        for at, values in plain.items():
            if values.shape != shapes[at]:
                _out_refused(function, shapes[at], values.shape)
    back = {id(values): found[at] for at, values in plain.items()}
    return tree_map_only(Tensor, lambda value: back.get(id(value), value), result)


# ---- products ------------------------------------------------------------------------------------


def matrix_of(tensor: Any) -> tuple[Matrix, bool] | None:
    """The encrypted matrix that a tensor is or, then with True, is the transpose of; None for any
    other tensor."""
    if not isinstance(tensor, EncryptedTensor):
        return None
    stored = tensor._stored
    if stored is None or stored.dtype not in _FLOATING:
        return None
    core = stored.core
    part = window(core.shape, tensor._path)
    turned = False
    if part.path:
        if len(part.path) != 1 or not _turns(part.path[0]):
            return None
        turned = True
    if len(part.shape) != 2:
        return None
    offset = core._offset + part.first * stored.itemsize
    return Matrix(core, offset, part.shape[0], part.shape[1], stored.dtype), turned


def _turns(step: Step) -> bool:
    if step.function is aten.t.default:
        return True
    if step.function is aten.transpose.int:
        return sorted(at % 2 for at in step.args if -2 <= at < 2) == [0, 1]
    return step.function is aten.permute.default and [at % 2 for at in step.args[0]] == [1, 0]


def _mm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """mm(x, W): by tiles where the right one is encrypted."""
    return _product(function, args, kwargs, args[0], args[1], None)


def _addmm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
        return _open_all(function, args, kwargs)
    return _product(function, args, kwargs, args[1], args[2], args[0])


def _mv(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """mv(W, x) is mm(x, W^T)."""
    weight, x = args
    found = matrix_of(weight)
    if found is None or isinstance(x, EncryptedTensor) or x.dtype != weight.dtype:
        return _open_all(function, args, kwargs)
    if x.dim() != 1 or x.shape[0] != weight.shape[1]:
        return _open_all(function, args, kwargs)
    matrix, turned = found
    return (columns if turned else rows)(x, matrix, None, x.dtype)


def _product(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    x: Any,
    weight: Any,
    bias: Any,
) -> Any:
    if torch.compiler.is_compiling() or _is_traced(weight):
        return _traced_product(function, args, kwargs, x, weight, bias)
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        trace_refused()
    found = matrix_of(weight)
    if found is None:
        return _open_all(function, args, kwargs)
    x, bias = _plain(x), _plain(bias)
    matrix, turned = found
    inputs, outputs = (matrix.width, matrix.height) if turned else (matrix.height, matrix.width)
    if (
        x.dim() != 2
        or x.shape[1] != inputs
        or x.dtype != matrix.dtype
        or (bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype))
    ):
        return _open_all(function, args, kwargs)
    return (rows if turned else columns)(x, matrix, bias, x.dtype)


def _is_traced(tensor: Any) -> bool:
    return isinstance(tensor, EncryptedTensor) and tensor._stored is None


def _traced_product(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    x: Any,
    weight: Any,
    bias: Any,
) -> Any:
    """The product as an operator of pyccmem in the program that is traced."""
    if not _is_traced(weight):
        return _open_all(function, args, kwargs)
    form = weight._layout()
    part = window(form.shape, weight._path)
    turned = len(part.path) == 1 and _turns(part.path[0])
    whole = not part.first and (turned or not part.path)
    if not whole or len(part.shape) != 2 or form.dtype not in _FLOATING:
        return _open_all(function, args, kwargs)
    bias = _plain(bias)
    outputs = part.shape[0] if turned else part.shape[1]
    if bias is not None and tuple(bias.shape) != (outputs,):
        return _open_all(function, args, kwargs)
    product = torch.ops.pyccmem.linear if turned else torch.ops.pyccmem.linear_columns
    return product(_plain(x), weight._ciphertext, form.offset, list(part.shape), form.dtype, bias)


DISPATCH[aten.mm.default] = _mm
DISPATCH[aten.addmm.default] = _addmm
DISPATCH[aten.mv.default] = _mv


# ---- rows ----------------------------------------------------------------------------------------


def _embedding(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _take_rows(function, args, kwargs, args[0], args[1])


def _index_select(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) != 3 or args[1] not in (0, -args[0].dim()) or args[2].dim() != 1:
        return _open_all(function, args, kwargs)
    return _take_rows(function, args, kwargs, args[0], args[2])


def _index(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) != 2 or len(args[1]) != 1 or args[1][0] is None:
        return _open_all(function, args, kwargs)
    return _take_rows(function, args, kwargs, args[0], args[1][0], wrap=True)


def _take_rows(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    table: Any,
    numbers: Any,
    *,
    wrap: bool = False,
) -> Any:
    """Opens the rows asked for alone."""
    numbers = _plain(numbers)
    if not isinstance(table, EncryptedTensor) or numbers.dtype not in (torch.int64, torch.int32):
        return _open_all(function, args, kwargs)
    if table._stored is None:
        form = table._layout()
        if table._path or len(form.shape) != 2 or wrap:
            return _open_all(function, args, kwargs)
        return torch.ops.pyccmem.embedding(
            numbers, table._ciphertext, form.offset, list(form.shape), form.dtype
        )
    stored = table._stored
    core = stored.core
    part = window(core.shape, table._path)
    if part.path or not part.shape:
        return _open_all(function, args, kwargs)
    offset = core._offset + part.first * stored.itemsize
    return gathered(core, offset, part.shape, stored.dtype, numbers, wrap=wrap)


DISPATCH[aten.embedding.default] = _embedding
DISPATCH[aten.index_select.default] = _index_select
DISPATCH[aten.index.Tensor] = _index
