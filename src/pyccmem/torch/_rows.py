# SPDX-License-Identifier: Apache-2.0
"""Takes rows of an encrypted table by their numbers, with one native call that opens only these."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import errors
from ..binding import OK, ffi, lib
from ..core.store import Store, check_open, fail, handle
from ._results import converted, wiped_like
from ._stored import pointer

__all__ = ["gathered"]

_OFFSETS = ffi.typeof("uint64_t *")


def gathered(
    store: Store,
    offset: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    numbers: Tensor,
    *,
    wrap: bool = False,
) -> Tensor:
    """Returns rows of a table of `shape`, which lies from byte `offset` of a store on, as a plain
    tensor of shape (*numbers.shape, *shape[1:]). `wrap`: negative numbers count from the end.

    Raises IndexingError (an IndexError, as torch does) for a number that is not a row's;
    IntegrityError, ClosedError, ForkError, and then returns nothing.
    """
    out = wiped_like((*numbers.shape, *shape[1:]), dtype)
    count = numbers.numel()
    if not count:
        check_open(store, "tensor")
        return out
    lowest, highest = (int(end) for end in torch.aminmax(numbers))
    if lowest < (-shape[0] if wrap else 0) or highest >= shape[0]:
        raise errors.IndexingError(
            f"index out of range: rows {lowest} to {highest} were asked for, and the table has "
            f"{shape[0]} rows."
        )
    row = math.prod(shape[1:]) * dtype.itemsize
    if not row:
        return out
    # Which rows they are is a prompt's contents: in memory that is wiped.
    offsets = converted(numbers, torch.int64)
    if lowest < 0:
        offsets.add_(offsets < 0, alpha=shape[0])
    offsets.mul_(row).add_(offset)
    status = lib.ccmem_store_gather(
        handle(store), ffi.cast(_OFFSETS, offsets.data_ptr()), count, row, pointer(out)
    )
    if status != OK:
        fail(store, status, offset, row)
    return out
