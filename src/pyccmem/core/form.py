# SPDX-License-Identifier: Apache-2.0
"""Form: what tensors of one kind share, that is shape, dtype, and all that follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .indexing import address

__all__ = ["Form", "Shared", "remember"]

#: The most forms kept for reuse. Tensors keep the forms they have.
_MOST = 4096


class Shared:
    """What the tensors of an arena share. Not the arena itself, because it refers to their
    forms."""

    __slots__ = (
        "__weakref__",
        "cipher",
        "fresh",
        "frozen",
        "level",
        "name",
        "native",
        "page_size",
        "thawed",
    )

    def __init__(
        self,
        native: Any,
        cipher: str,
        page_size: int,
        level: str,
        name: str,
        frozen: bool = False,
        fresh: bool = False,
    ) -> None:
        self.native = native  # the native arena, for its counters
        self.cipher, self.page_size, self.level, self.name = cipher, page_size, level, name
        self.frozen = frozen  # its tensors are sealed once
        self.fresh = fresh  # they keep their versions in locked memory, or will when thawed
        self.thawed: Any = None  # the arena for what is thawed, once there is one


class Form:
    """Shape and dtype of a tensor, its place in its buffer, and what index expressions need. Only
    the scratch changes once a form is made."""

    __slots__ = (
        "address",
        "dtype",
        "ghost",
        "itemsize",
        "length",
        "nbytes",
        "ndim",
        "offset",
        "row_nbytes",
        "row_shape",
        "scratch",
        "shape",
        "shared",
        "strides",
    )

    ghost: npt.NDArray[Any]  # the phantom, see indexing
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    itemsize: int
    nbytes: int
    ndim: int
    length: int  # rows along the first axis; 0 where there is no byte to read
    row_shape: tuple[int, ...]
    row_nbytes: int
    offset: int  # of the first element in the buffer
    shared: Shared | None  # of a tensor in an arena
    scratch: list[Any]  # for elements of tensors in an arena, see EncryptedTensor

    def __init__(
        self,
        ghost: npt.NDArray[Any],
        dtype: np.dtype[Any],
        offset: int = 0,
        shared: Shared | None = None,
    ) -> None:
        self.ghost, self.dtype, self.offset, self.shared = ghost, dtype, offset, shared
        self.address, self.scratch = address(ghost), []
        self.shape, self.strides, self.ndim = ghost.shape, ghost.strides, ghost.ndim
        self.itemsize, self.nbytes = dtype.itemsize, ghost.size * dtype.itemsize
        self.length, self.row_shape, self.row_nbytes = 0, (), 0
        if self.ndim and self.nbytes:
            self.length = self.shape[0]
            self.row_shape, self.row_nbytes = self.shape[1:], self.strides[0]


def remember(forms: dict[Any, Form], key: Any, form: Form) -> Form:
    """Keeps a form for the next tensor of this key, and returns it; of two made at once, one."""
    if len(forms) >= _MOST:
        forms.clear()
    return forms.setdefault(key, form)
