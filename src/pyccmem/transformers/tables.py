# SPDX-License-Identifier: Apache-2.0
"""The encrypted tables that the layers of one cache share, made when the first layer has data."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import torch
from torch import Tensor

from .. import errors, keys
from ..binding import wiped
from ..core.kv_tables import KVTables, Rows
from ..counters import CacheStats
from ..keys import Key

__all__ = ["NATIVE_NAMES", "Tables", "overwrite", "plain_like", "rows_of"]

#: The types of K and V that the tables take, by torch's.
NATIVE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class Tables:
    """A cache's KVTables, and what its layers agree on."""

    __slots__ = ("_said", "_tables", "dtype", "erased", "key", "overwrite", "wipe")

    def __init__(self, dtype: str | None, key: Key | None) -> None:
        self._tables: KVTables | None = None
        self._said = False
        self.dtype = dtype
        self.key = key
        self.erased = False
        #: Keys and values are overwritten where they come from, once they are sealed.
        self.overwrite = False
        #: What the attention returns lies in memory that is wiped.
        self.wipe = False

    def made(self, sequences: int) -> KVTables:
        """The tables, for so many sequences where there are none yet. Raises ClosedError and what
        KVTables() raises."""
        if self._tables is None:
            self._refuse_erased()
            require = None
            if self.key is not None:
                keys.check_open(self.key)
                require = self.key.level if self.key.level == "secretmem" else None
            self._tables = KVTables(sequences, require=require)
        return self._tables

    def open(self) -> KVTables:
        """The tables, which a layer has data in. Raises ClosedError."""
        if self._tables is None:
            self._refuse_erased()
            raise errors.ClosedError("This cache was reset since; its keys and values are gone.")
        return self._tables

    def _refuse_erased(self) -> None:
        if self.erased:
            raise errors.ClosedError(
                "This EncryptedCache was closed or erased, and nothing in it can be opened any "
                "more; make a new one."
            )

    def drop(self, *, for_good: bool, forks: bool) -> None:
        """Gives back what is in the tables; the key is destroyed when no fork needs it, or with
        `forks` at once. The next update makes new tables, unless it is `for_good`."""
        tables, self._tables = self._tables, None
        self.erased = self.erased or for_good
        if tables is not None:
            try:
                if forks:
                    tables.erase()
            finally:
                tables.close()

    def forked(self) -> Tables:
        """Tables with the same contents, for a cache of its own. Raises what KVTables.fork()
        raises."""
        self._refuse_erased()
        new = Tables(self.dtype, self.key)
        new.overwrite, new.wipe = self.overwrite, self.wipe
        if self._tables is not None:
            new._tables = self._tables.fork()
        return new

    def stats(self) -> CacheStats | None:
        """Those of KVTables; None before the first update."""
        return None if self._tables is None else self._tables.stats()

    def say_opened(self) -> None:
        """Warns once that something else than pyccmem's attention reads this cache."""
        if self._said:
            return
        self._said = True
        warnings.warn(
            "Keys and values of an EncryptedCache are opened into memory that is wiped afterwards, "
            "because something computes with them that is not pyccmem's attention: this model does "
            'not use attn_implementation="pyccmem", or works on its cache itself.',
            errors.OpenedCacheWarning,
            stacklevel=2,
        )


def rows_of(tensor: Tensor) -> tuple[Rows, Tensor]:
    """The rows of a tensor of shape (sequences, heads, tokens, size) as the tables take them, and
    the tensor that has to live as long."""
    if tensor.stride(3) != 1 and tensor.shape[3] != 1:
        tensor = tensor.contiguous()
    sequence, head, token, _ = tensor.stride()
    return Rows(tensor.data_ptr(), NATIVE_NAMES[tensor.dtype], sequence, head, token), tensor


def plain_like(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory that is wiped when its last user goes. Raises OutOfMemoryError,
    PlaintextBudgetError."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    _, memory = wiped.block(count * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def overwrite(states: Tensor) -> None:
    """Makes a tensor's own elements zeros, whatever else lies in the same memory. What torch does
    not write to, elements that overlap other than by expand(), stays as it is."""
    if states.is_contiguous():
        wiped.wipe_at(states.data_ptr(), states.nbytes)  # a tenth of the time that torch takes
        return
    with torch.inference_mode():
        once = states.detach()
        for axis, (size, step) in enumerate(zip(once.shape, once.stride(), strict=True)):
            if step == 0 and size > 1:
                once = once.narrow(axis, 0, 1)
        with suppress(RuntimeError):
            once.zero_()
