# SPDX-License-Identifier: Apache-2.0
"""Keys in use that have a limit: fetched again before it, withheld at it, restored when the service
gives them again.

One thread of the process watches all leases, and withholds keys in time. A service may take long to
answer, so the keys of each are fetched in a thread of their own.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from .. import errors
from ..core.registry import Registry
from ..keys import Key
from .events import Event, Hook, emit

__all__ = ["Holder", "Lease", "clock"]

#: A key is fetched again at this part of its max_age; a failure is repeated after this part of it,
#: and then after twice that, up to these seconds.
_RENEWED_AT, _FIRST_RETRY, _LONGEST_RETRY = 0.5, 1 / 32, 60.0

#: Seconds after which the watcher looks at the clock in any case: it goes on while the machine
#: sleeps, and a thread's waiting does not.
_LOOK = 10.0


def clock() -> float:
    """Returns seconds that go on while the machine sleeps, unlike those of time.monotonic()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Holder(Protocol):
    """What uses a key, and can do without it for a while."""

    def withhold(self) -> None:
        """Wipes the key. From now on all that needs it raises KeyUnavailableError."""

    def restore(self, key: Key) -> None:
        """Goes on with the same key, which the caller may close."""


class Lease:
    """The right to use one key for `max_age` seconds, and what uses it. Lives as long as one of
    these keeps it.

    `fetch` asks the service once for the key; `provider`, `key_id` and `context` are for events.
    """

    def __init__(
        self,
        key: Key,
        fetch: Callable[[], Key],
        max_age: float,
        group: object,
        *,
        provider: str,
        key_id: str,
        context: dict[str, str],
        hook: Hook | None,
        fetched: float,
    ) -> None:
        """Begins with a key that was asked for at `fetched`, by clock(). Leases of one `group` are
        renewed one after the other."""
        self._identity, self._fetch, self._max_age = key.id, fetch, max_age
        self._event = (provider, key_id, context)
        self._hook, self.group = hook, group
        self._holders: Registry[Any] = Registry(16)
        self._lock = threading.RLock()
        self._fetched, self._next, self._wait = fetched, 0.0, 0.0
        self._why: str | None = None
        self._plan(0.0)
        _watcher.add(self)

    def add(self, holder: Holder) -> None:
        """Lets `holder`, which is kept weakly, have no key while this one is withheld."""
        with self._lock:
            self._holders.add(holder)
            if self._why is not None:
                holder.withhold()

    def check(self) -> None:
        """Raises KeyUnavailableError while the key is withheld."""
        why = self._why
        if why is not None:
            raise errors.KeyUnavailableError(
                f"{why} What is open works again when the key is there."
            )

    @property
    def withheld(self) -> bool:
        """True while the key may not be used."""
        return self._why is not None

    # ---- for the watcher ----

    @property
    def limit(self) -> float:
        """When the key is to be withheld, by clock()."""
        return self._fetched + self._max_age if self._why is None else math.inf

    @property
    def next(self) -> float:
        """When the key is to be fetched, by clock()."""
        return self._next

    def expire(self) -> None:
        """Withholds the key if its limit has passed."""
        age = clock() - self._fetched
        if age >= self._max_age:
            self._withhold(
                f"The key service {self._event[0]!r} was not reached for {age:.0f} seconds, and a "
                f"key may be used for {self._max_age:g}."
            )

    def renew(self) -> None:
        """Fetches the key once. A service that refuses it, or gives another, has it withheld at
        once; any other failure is repeated."""
        begin = clock()
        try:
            with self._fetch() as key:
                if key.id != self._identity:
                    raise errors.KeyAccessError("The service gives another key than before.")
                self._renewed(key, begin)
            return
        except (errors.KeyAccessError, errors.InvalidKeyError) as problem:
            self._withhold(
                f"The key service {self._event[0]!r} does not give the key any more: "
                f"{str(problem).rstrip('.')}."
            )
        except BaseException:  # a provider may raise anything; the hook was told
            pass
        self._plan(clock())

    def put_off(self) -> None:
        """Plans the next fetching after one that could not begin."""
        self._plan(clock())

    def _renewed(self, key: Key, begin: float) -> None:
        with self._lock:
            was, self._fetched, self._wait = self._why, begin, 0.0
            self._plan(0.0)
            if was is not None:
                try:
                    for holder in list(self._holders):
                        with contextlib.suppress(errors.ClosedError):
                            holder.restore(key)
                except BaseException:
                    # A part of them would have the key, and no limit: none has it then.
                    self._withhold_all()
                    raise
                self._why = None
        if was is not None:
            self._tell("restored")

    def _withhold(self, why: str) -> None:
        with self._lock:
            was, self._why = self._why, why
            self._withhold_all()
        if was is None:
            self._tell("withheld")

    def _withhold_all(self) -> None:
        for holder in list(self._holders):
            # What fails for one of them keeps the key of no other.
            with contextlib.suppress(BaseException):
                holder.withhold()

    def _plan(self, now: float) -> None:
        """Plans the next fetching: half a life after the last, or after a failure at `now`."""
        if not now:
            self._next = self._fetched + _RENEWED_AT * self._max_age
            return
        first = min(_FIRST_RETRY * self._max_age, _LONGEST_RETRY)
        self._wait = min(2 * self._wait, _LONGEST_RETRY) if self._wait else first
        self._next = now + self._wait * random.uniform(0.75, 1.0)

    def _tell(self, what: str) -> None:
        provider, key_id, context = self._event
        event = Event(what, provider, key_id, dict(context), time.time(), 0.0, None)
        # Nobody is there to be told of a hook's failure; what happened has happened.
        with contextlib.suppress(BaseException):
            emit(event, self._hook)


def _started(thread: threading.Thread) -> bool:
    """Starts a thread. Returns False if the system gives none."""
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        return False
    return True


class _Watcher:
    """The thread that looks after leases. It starts with the first and ends after the last."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._leases: Registry[Lease] = Registry(16)
        self._thread: threading.Thread | None = None
        self._news = False  # something has changed since the last look
        self._busy: set[int] = set()  # groups that are being renewed, by id()

    def add(self, lease: Lease) -> None:
        """Watches a lease. Raises KeyServiceError if there is no thread to do it, since a limit
        that nobody watches would be none."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="pyccmem key limits", daemon=True)
                if not _started(thread):
                    raise errors.KeyServiceError(
                        "The system gives this process no further thread, and a key with a limit "
                        "needs one that watches it; raise the limit of threads (ulimit -u, "
                        "TasksMax), or end some."
                    )
                self._thread = thread
            self._leases.add(lease)
            self._news = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            wait = self._look()
            with self._changed:
                if not list(self._leases):
                    self._thread = None
                    return
                if not self._news:  # none came since the look began
                    self._changed.wait(wait)

    def _look(self) -> float:
        """Does what is due, and returns how long nothing will be. Keeps no lease alive."""
        now, wait = clock(), _LOOK
        groups: dict[int, list[Lease]] = {}
        with self._changed:
            self._news = False
            leases = list(self._leases)
        for lease in leases:
            if lease.limit <= now:
                lease.expire()
            if lease.next <= now:
                groups.setdefault(id(lease.group), []).append(lease)
            else:
                wait = min(wait, lease.next - now)
            wait = min(wait, lease.limit - now)
        for group, due in groups.items():
            with self._changed:
                if group in self._busy:
                    continue
                self._busy.add(group)
            if not _started(
                threading.Thread(
                    target=self._renew, args=(group, due), name="pyccmem key renewal", daemon=True
                )
            ):
                with self._changed:
                    self._busy.discard(group)
                for lease in due:
                    lease.put_off()
        return max(wait, 0.0)

    def _renew(self, group: int, leases: list[Lease]) -> None:
        try:
            for lease in leases:
                lease.renew()
        finally:
            with self._changed:
                self._busy.discard(group)
                self._news = True
                self._changed.notify()


_watcher = _Watcher()


def _in_child() -> None:
    """Leases stay with the parent; what the child opens anew has leases of its own."""
    global _watcher
    _watcher = _Watcher()


os.register_at_fork(after_in_child=_in_child)
