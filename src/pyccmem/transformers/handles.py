# SPDX-License-Identifier: Apache-2.0
"""Handle: what a layer of an EncryptedCache returns in place of its keys or its values."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import errors
from .deferred import Deferred
from .tables import Tables, plain_like, rows_of

__all__ = ["Handle", "Source", "handle"]

_NAMES = ("keys", "values")


class Source(Protocol):
    """What a handle has to know of its layer."""

    tables: Tables
    number: int
    #: Changes with the contents.
    stamp: int


class Handle(Deferred):
    """The keys (`which` 0) or values (1) of the layer's tokens from `first` on, of all sequences:
    shape (sequences, heads, tokens, size). pyccmem's attention takes the layer. Whatever else
    computes with it gets them opened, in memory that is wiped when its last user goes."""

    layer: Any
    which: int
    first: int
    stamp: int
    _open: weakref.ref[Tensor] | None

    def noun(self) -> str:
        return f"a handle to the {_NAMES[self.which]} in an encrypted cache"

    def check(self) -> None:
        """Raises ClosedError when the layer has changed since."""
        if self.stamp != self.layer.stamp:
            raise errors.ClosedError(
                f"This is {self.noun()} that has changed since, by update(), crop(), reset() or "
                f"the like; use what the last update() has returned."
            )

    def plain(self) -> Tensor:
        """Opened. Raises ClosedError, IntegrityError, OutOfMemoryError, PlaintextBudgetError."""
        self.check()
        opened = self._open() if self._open is not None else None
        if opened is None:
            self.layer.tables.say_opened()
            opened = self._opened()
            self._open = weakref.ref(opened)
        return opened

    def _opened(self) -> Tensor:
        tables = self.layer.tables
        # Values that were rounded to integers come as what they were rounded from.
        kept = torch.float32 if tables.dtype == "int8" else self.dtype
        shape = tuple(self.shape)
        opened = plain_like(shape, kept)
        native = tables.open()
        if opened.numel():
            for sequence in range(shape[0]):
                rows, _ = rows_of(opened[sequence : sequence + 1])
                native.read(
                    self.layer.number, sequence, "kv"[self.which], self.first, shape[2], rows
                )
        if kept != self.dtype:
            converted = plain_like(shape, self.dtype)
            converted.copy_(opened)
            return converted
        return opened


def handle(
    layer: Source, which: int, first: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Handle:
    """A handle to what the layer has now."""
    made: Handle = Handle.standing_for(shape, dtype)
    made.layer = layer
    made.which = which
    made.first = first
    made.stamp = layer.stamp
    made._open = None
    return made
