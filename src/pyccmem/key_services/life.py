# SPDX-License-Identifier: Apache-2.0
"""The life of a key from a service: how long a start waits for it, and how long it may be used.

    key = Held(from_uri("vault:transit/models"), max_age=3600)

A start fails closed: after `deadline` seconds without an answer it ends with KeyUnavailableError.
A key that was fetched is fetched again before it is `max_age` seconds old, as proof that it is
still granted. While the service is away, what runs goes on until then. Then its key is wiped, and
every read is refused, until the service gives the key again. A service that answers, and refuses,
has its way at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from .. import errors
from ..keys import Key
from .events import Hook, watched
from .leases import clock
from .provider import KeyProvider, check_provider, forget, takes_context
from .wrapped import WrappedKey

__all__ = ["DEADLINE", "Held"]

#: Seconds for which a start goes on trying, if nothing else is said.
DEADLINE = 30.0

#: Seconds before the first and before later retries of a call; each wait is up to twice the last.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0

_Made = TypeVar("_Made")


class Held:
    """A provider whose calls are repeated while its service is away, and whose keys have a limit.

    `max_age`: seconds for which a key may be used without being fetched again; None: no limit.
    `deadline`: seconds for which wrap_key() and unwrap_key() go on trying while the service is not
    reached. `on_event`: a function that is called with the events of this object, besides those of
    pyccmem.key_services.on_event().

    It is a KeyProvider itself, of the same name: files that it sealed open with the provider alone,
    and the other way round. Calls are repeated after KeyUnavailableError and the system's errors of
    connections (ConnectionError, TimeoutError); any other exception ends them at once. A forked
    child fetches keys of its own.
    """

    def __init__(
        self,
        provider: KeyProvider,
        *,
        max_age: float | None = None,
        deadline: float = DEADLINE,
        on_event: Hook | None = None,
    ) -> None:
        """Asks for nothing yet. Raises ArgumentTypeError for what is no provider, or one that takes
        no context; ArgumentError for times that cannot be."""
        if isinstance(provider, (Key, Held)):
            raise errors.ArgumentTypeError(
                f"Held() takes the provider of a key service, not a {type(provider).__name__}."
            )
        check_provider(provider)
        if not takes_context(provider.unwrap_key):
            raise errors.ArgumentTypeError(
                f"The provider {provider.name!r} takes no context; let its methods take "
                f"(…, context)."
            )
        for name, value in (("max_age", max_age), ("deadline", deadline)):
            if value is None and name == "max_age":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise errors.ArgumentTypeError(
                    f"{name} must be a number of seconds, not {type(value).__name__}."
                )
            if not 0 <= value < 2**31 or (name == "max_age" and not value):
                raise errors.ArgumentError(
                    f"{name} is {value!r}; it must be a number of seconds below 2**31."
                )
        if on_event is not None and not callable(on_event):
            raise errors.ArgumentTypeError(
                f"on_event must be a function of one Event, not {type(on_event).__name__}."
            )
        #: The provider's name.
        self.name = provider.name
        self.provider, self.max_age, self.deadline = provider, max_age, float(deadline)
        self.on_event = on_event

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.Held, {self.name!r}, max_age={self.max_age}>"

    #: It tells the hooks of each call itself.
    tells = True

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Does the provider's wrap_key(). Raises KeyUnavailableError when the service was not
        reached until the deadline, and what the provider raises."""
        return self._repeated(lambda: self._wrapped(key, context))

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray | Key:
        """Does the provider's unwrap_key(). Raises KeyUnavailableError when the service was not
        reached until the deadline, and what the provider raises."""
        return self._repeated(lambda: self._unwrapped(wrapped, context))

    def close(self) -> None:
        """Closes the provider, if it can be closed. What was opened stays so until its limit."""
        if hasattr(self.provider, "close"):
            self.provider.close()

    def _wrapped(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        with watched("wrap", self.name, None, context, self.on_event) as told:
            made = self.provider.wrap_key(key, context)
            told.key_id = getattr(made, "key_id", None)
            return made

    def _unwrapped(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray | Key:
        found: bytearray | Key | None = None
        try:
            with watched("unwrap", self.name, wrapped.key_id, context, self.on_event):
                found = self.provider.unwrap_key(wrapped, context)
            made, found = found, None
            return made
        finally:
            forget(found)  # what a hook has kept from being handed out

    def once(self) -> Held:
        """Returns the same without repetition, for a caller that repeats by itself."""
        return Held(self.provider, deadline=0, on_event=self.on_event)

    def _repeated(self, call: Callable[[], _Made]) -> _Made:
        begin, wait = clock(), _FIRST_WAIT
        while True:
            try:
                return call()
            except (errors.KeyUnavailableError, ConnectionError, TimeoutError) as problem:
                left = self.deadline - (clock() - begin)
                why = str(problem) or type(problem).__name__
            if left <= 0:
                raise errors.KeyUnavailableError(
                    f"The key service {self.name!r} was not reached within {self.deadline:g} "
                    f"seconds: {why.rstrip('.')}."
                )
            time.sleep(min(wait * random.uniform(0.5, 1.0), left))
            wait = min(2 * wait, _LONGEST_WAIT)
