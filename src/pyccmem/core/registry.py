# SPDX-License-Identifier: Apache-2.0
"""What of a kind is open in this process, for as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Registry"]

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """Objects that are open, without keeping them. The references have no callbacks, because an
    interrupt could come in a callback. Operations of a set of references are atomic, so that
    neither a thread nor a fork can find a lock held."""

    __slots__ = ("_least", "_references", "_sweep_at")

    def __init__(self, least: int) -> None:
        """`least`: from how many references on those to objects that are gone are removed."""
        self._references: set[weakref.ref[_T]] = set()
        self._least = self._sweep_at = least

    def add(self, one: _T) -> None:
        """Adds an object."""
        references = self._references
        references.add(weakref.ref(one))
        if len(references) >= self._sweep_at:
            references.difference_update([gone for gone in list(references) if gone() is None])
            self._sweep_at = max(self._least, 2 * len(references))

    def discard(self, one: _T) -> None:
        """Removes an object, if it is there."""
        self._references.discard(weakref.ref(one))

    def __iter__(self) -> Iterator[_T]:
        """Yields the objects that are not gone."""
        for reference in list(self._references):
            one = reference()
            if one is not None:
                yield one
