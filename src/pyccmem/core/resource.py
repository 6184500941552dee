# SPDX-License-Identifier: Apache-2.0
"""What everything that holds keys has in common: it is closed, and it is never copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import errors
from ..binding.closing import Closing

__all__ = ["Resource"]

_Self = TypeVar("_Self", bound="Resource")


class Resource(Closing):
    """Base of Key, EncryptedBuffer, EncryptedTensor and KVCache: a context manager that closes
    itself, and refuses to be pickled or copied."""

    __slots__ = ("__weakref__",)

    #: The end of the sentence that refuses a copy: what else would be right.
    _instead_of_a_copy: str

    @property
    def closed(self) -> bool:
        """True after close()."""
        raise NotImplementedError

    def _opened(self) -> Any:
        """Returns the native object, for one call; the caller's reference keeps it alive. Raises
        ClosedError."""
        raise NotImplementedError

    def _description(self) -> str:
        """Returns what repr() says beside the class and whether it is open."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        self._opened()
        return self

    def __repr__(self) -> str:
        kind = type(self).__name__
        try:
            state = "closed" if self.closed else "open"
            return f"<pyccmem.{kind} {self._description()}, {state}>"
        except errors.ClosedError:
            return f"<pyccmem.{kind}, never made>"

    if not TYPE_CHECKING:  # it would hide every misspelt attribute from a type checker

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: a field, when __new__() alone made the object or its
            constructor raised."""
            kind = type(self)
            if any(name in vars(base).get("__slots__", ()) for base in kind.__mro__):
                raise errors.ClosedError(
                    f"This {kind.__name__} was never made, because its constructor did not run to "
                    f"its end; make a new one."
                )
            raise AttributeError(
                f"{kind.__name__!r} object has no attribute {name!r}", name=name, obj=self
            )

    def _refuse_copy(self, *_: Any) -> NoReturn:
        kind = type(self).__name__
        article = "An" if kind[0] in "AEIOU" else "A"
        raise errors.NotPicklableError(
            f"{article} {kind} cannot be pickled or copied, or key bytes would leave secret "
            f"memory; share the object itself, or {self._instead_of_a_copy}."
        )

    __reduce__ = _refuse_copy
    __reduce_ex__ = _refuse_copy
    __getstate__ = _refuse_copy
    __copy__ = _refuse_copy
    __deepcopy__ = _refuse_copy
