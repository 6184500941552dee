# SPDX-License-Identifier: Apache-2.0
"""Closing: a context manager that closes itself."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

__all__ = ["Closing"]

_Self = TypeVar("_Self", bound="Closing")


class Closing:
    """Base of objects that a `with` block closes at its end. The block's value is the object
    itself."""

    __slots__ = ()

    def close(self) -> None:
        """Gives up what the object holds. May be repeated."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
