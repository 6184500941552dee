# SPDX-License-Identifier: Apache-2.0
"""What EncryptedTensor.from_numpy() and zeros() ask for a block format: the package of quantised
tensors, which lies above, offers it when it is imported, and importing pyccmem imports it."""

from __future__ import annotations

from typing import Any, Protocol

from .block_formats import FORMATS, BlockFormat

__all__ = ["BlockMaker", "block_format_of", "maker", "offer"]


class BlockMaker(Protocol):
    """Makes quantised tensors. Options are those of EncryptedTensor.from_numpy()."""

    def encrypted(self, source: Any, format: BlockFormat, **options: Any) -> Any:
        """Returns a tensor with the contents of an array."""
        ...

    def zeros(self, shape: Any, format: BlockFormat, **options: Any) -> Any:
        """Returns a tensor of zeros."""
        ...


_offered: list[BlockMaker] = []


def offer(made: BlockMaker) -> None:
    """Makes the maker known."""
    _offered[:] = [made]


def maker() -> BlockMaker:
    """Returns what was offered."""
    return _offered[0]


def block_format_of(dtype: Any) -> BlockFormat | None:
    """Returns the block format that a dtype argument names; None for any other dtype."""
    if type(dtype) is str:
        return FORMATS.get(dtype)
    return dtype if isinstance(dtype, BlockFormat) else None
