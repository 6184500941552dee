# SPDX-License-Identifier: Apache-2.0
"""The memory that plain results lie in: torch's own, or pyccmem's pool for plaintext if a model's
activations are to be wiped.

Memory of the pool is wiped when its last user goes, is left out of core dumps, and reads as zeros
in a forked child. pyccmem's own operators write their results there. Results that torch computes in
its own memory are copied there, and what torch had them in is overwritten.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves, tree_map_only

from .. import errors
from ..binding import ffi, lib, wiped

__all__ = [
    "activations_of",
    "as_type",
    "converted",
    "in_order",
    "new_result",
    "pooled",
    "wiped_like",
    "wipes",
]

_PLAIN, _WIPED = "plain", "wiped"

_cast = ffi.cast
_BYTES = ffi.typeof("uint8_t *")


def wipes(activations: Any) -> bool:
    """Returns True for "wiped" and False for "plain". Raises ArgumentError for anything else."""
    if isinstance(activations, str) and activations in (_PLAIN, _WIPED):
        return activations == _WIPED
    raise errors.ArgumentError(
        f"activations is {activations!r}; use 'plain' for results in ordinary memory, or 'wiped' "
        f"for results in memory that is wiped when it is freed."
    )


def activations_of(wipe: bool) -> str:
    """Returns the word that wipes() takes."""
    return _WIPED if wipe else _PLAIN


# ---- new tensors ---------------------------------------------------------------------------------


def wiped_like(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a contiguous tensor of zeros in memory that is wiped when its last user goes. Raises
    OutOfMemoryError, PlaintextBudgetError."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    _, memory = wiped.block(count * dtype.itemsize)
    # Not view(): torch refuses to change a view in place with gradients if it was made without.
    return torch.frombuffer(memory, dtype=dtype).resize_(shape)


def new_result(shape: tuple[int, ...], dtype: torch.dtype, wipe: bool) -> Tensor:
    """Returns a contiguous tensor for a result, with any contents. Raises as wiped_like() does."""
    return wiped_like(shape, dtype) if wipe else torch.empty(shape, dtype=dtype)


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `values` as another type, in memory that is wiped. Raises as wiped_like() does."""
    new = wiped_like(tuple(values.shape), dtype)
    if values.dim() == 2 and not values.is_contiguous():
        # With two dimensions torch would copy a transpose through a block that it does not wipe.
        new.unsqueeze(0).copy_(values.unsqueeze(0))
    else:
        new.copy_(values)
    return new


def as_type(values: Tensor, dtype: torch.dtype, wipe: bool) -> Tensor:
    """Returns `values.to(dtype)`, with `wipe` in memory that is wiped. Raises as wiped_like()
    does."""
    if values.dtype is dtype or not wipe:
        return values.to(dtype)
    return converted(values, dtype)


def in_order(values: Tensor, wipe: bool) -> Tensor:
    """Returns `values.contiguous()`, with `wipe` in memory that is wiped. Raises as wiped_like()
    does."""
    if values.is_contiguous() or not wipe:
        return values.contiguous()
    return converted(values, values.dtype)


# ---- results that torch has made -----------------------------------------------------------------


def pooled(result: Any, given: Any) -> Any:
    """Returns the results of an operation of torch with their tensors moved to memory that is
    wiped, and overwrites torch's memory. Tensors in the memory of one in `given`, the operation's
    arguments, stay where they are, and so do tensors that are sparse or not on the CPU.

    Raises as wiped_like() does; the results are overwritten then, too.
    """
    known = {_place(value) for value in tree_leaves(given) if isinstance(value, Tensor)}
    fresh: dict[int, UntypedStorage] = {}
    for value in tree_leaves(result):
        if isinstance(value, Tensor) and _place(value) not in known:
            fresh[_place(value)] = value.untyped_storage()
    fresh.pop(0, None)
    try:
        memory = {place: _copy(storage) for place, storage in fresh.items()}
        return tree_map_only(Tensor, lambda value: _moved(value, memory.get(_place(value))), result)
    finally:
        for place, storage in fresh.items():
            lib.ccmem_wipe(_cast(_BYTES, place), storage.nbytes())


def _place(value: Tensor) -> int:
    """Returns the address of the memory that a plain tensor lies in; 0 if it has none."""
    if value.device.type != "cpu" or value.layout is not torch.strided:
        return 0
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return 0
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0  # of a subclass that has none


def _copy(storage: UntypedStorage) -> Any:
    """Returns a copy of torch's memory, in a buffer that is wiped. Raises as wiped_like() does."""
    _, memory = wiped.block(storage.nbytes())
    source = torch.empty(0, dtype=torch.uint8).set_(storage)
    torch.frombuffer(memory, dtype=torch.uint8).copy_(source)
    return memory


def _moved(value: Tensor, memory: Any) -> Tensor:
    """Returns the same tensor over a copy of its memory; the tensor itself without one."""
    if memory is None:
        return value
    if value.is_conj() or value.is_neg():
        return converted(value, value.dtype)
    new = torch.frombuffer(memory, dtype=value.dtype)
    return new.as_strided_(value.size(), value.stride(), value.storage_offset())
