# SPDX-License-Identifier: Apache-2.0
"""Resource: the base of all objects that hold keys. They are closed, and never copied."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import errors
from ..binding.closing import Closing

__all__ = ["Resource"]

_Self = TypeVar("_Self", bound="Resource")


class Resource(Closing):
    """Base of Key, EncryptedBuffer, EncryptedTensor and KVCache: a context manager that closes
    itself, and refuses to be pickled or copied."""

    __slots__ = ("__weakref__",)

    #: What to do instead of a copy, for the end of the sentence that refuses one.
    _instead_of_a_copy: str

    #: What to do instead of using attributes that there are on purpose not, by their names.
    _instead: Mapping[str, str] = MappingProxyType({})

    @property
    def closed(self) -> bool:
        """True after close()."""
        raise NotImplementedError

    def _opened(self) -> Any:
        """Returns the native object for one call; the caller's reference keeps it alive. Raises
        ClosedError."""
        raise NotImplementedError

    def _description(self) -> str:
        """Returns what repr() says besides the class and whether the object is open."""
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

    if not TYPE_CHECKING:  # or a type checker would miss misspelt attributes

        def __getattr__(self, name: str) -> Any:
            """Raises for an attribute that is not there: a field is missing when only __new__()
            ran, or when the constructor raised."""
            kind = type(self)
            if any(name in vars(base).get("__slots__", ()) for base in kind.__mro__):
                raise errors.ClosedError(
                    f"This {kind.__name__} was never made, because its constructor did not run to "
                    f"its end; make a new one."
                )
            hint = self._instead.get(name)
            raise AttributeError(
                f"{kind.__name__!r} object has no attribute {name!r}"
                + (f"; {hint}." if hint else ""),
                name=name,
                obj=self,
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
