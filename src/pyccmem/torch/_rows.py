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

__all__ = ["checked_numbers", "gathered"]

_OFFSETS = ffi.typeof("uint64_t *")
_BYTES = ffi.typeof("uint8_t *")


def checked_numbers(count: int, numbers: Tensor, *, wrap: bool) -> Tensor | None:
    """Returns numbers of rows as int64 from 0 on; None if there are none. They are a prompt's
    contents, and lie in memory that is wiped. Raises IndexingError for a number that is not one of
    `count` rows."""
    if not numbers.numel():
        return None
    lowest, highest = (int(end) for end in torch.aminmax(numbers))
    if lowest < (-count if wrap else 0) or highest >= count:
        raise errors.IndexingError(
            f"index out of range: rows {lowest} to {highest} were asked for, and the table has "
            f"{count} rows."
        )
    found = converted(numbers, torch.int64)
    if lowest < 0:
        found.add_(found < 0, alpha=count)
    return found


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
    offsets = checked_numbers(shape[0], numbers, wrap=wrap)
    if offsets is None:
        check_open(store, "tensor")
        return out
    row = math.prod(shape[1:]) * dtype.itemsize
    if not row:
        return out
    offsets.mul_(row).add_(offset)
    status = lib.ccmem_store_gather(
        handle(store),
        ffi.cast(_OFFSETS, offsets.data_ptr()),
        numbers.numel(),
        row,
        ffi.cast(_BYTES, out.data_ptr()),
    )
    if status != OK:
        fail(store, status, offset, row)
    return out
