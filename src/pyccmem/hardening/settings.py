# SPDX-License-Identifier: Apache-2.0
"""The options of guard(), and their text in PYCCMEM_GUARD, by which `pyccmem run` hands them to the
processes that it starts."""

from __future__ import annotations

from dataclasses import dataclass

from .. import errors

__all__ = ["FORK", "SWAP", "VARIABLE", "Settings"]

VARIABLE = "PYCCMEM_GUARD"
SWAP = ("check", "lock", "ignore")
FORK = ("keep", "wipe")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise errors.ArgumentTypeError(f"{name} must be text, not {type(value).__name__}.")
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise errors.ArgumentError(f"{name} is {value!r}; use one of {names}.")


@dataclass(frozen=True)
class Settings:
    """The options of guard(). Raises ArgumentError, ArgumentTypeError."""

    debuggable: bool = False
    swap: str = "check"
    fork: str = "keep"
    strict: bool = False

    def __post_init__(self) -> None:
        _one_of("swap", self.swap, SWAP)
        _one_of("fork", self.fork, FORK)

    def text(self) -> str:
        """Returns the options as PYCCMEM_GUARD has them."""
        words = [f"swap={self.swap}", f"fork={self.fork}"]
        return ",".join(words + [name for name in ("debuggable", "strict") if getattr(self, name)])

    @classmethod
    def of_text(cls, text: str) -> Settings:
        """Returns the options of a text. Raises ConfigError."""
        found: dict[str, str | bool] = {}
        for word in filter(None, text.split(",")):
            name, equals, value = word.partition("=")
            if name not in cls.__dataclass_fields__ or bool(equals) != (name in ("swap", "fork")):
                raise errors.ConfigError(
                    f"{VARIABLE}={text!r}: {word!r} is not an option; `pyccmem run` sets this "
                    f"variable, as in swap=check,fork=keep,debuggable,strict."
                )
            found[name] = value if equals else True
        try:
            return cls(**found)  # type: ignore[arg-type]
        except errors.ArgumentError as error:
            raise errors.ConfigError(f"{VARIABLE}={text!r}: {error}") from None
