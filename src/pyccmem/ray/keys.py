# SPDX-License-Identifier: Apache-2.0
"""Which key a process of a cluster has for what comes to it. Keys do not travel: what travels names
one, and each process has been given it, or asks where its environment says.

A key service is asked once by each process that seals, and once by each that reads what it sealed:
it wraps a session key, under which everything else is sealed.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import errors
from ..key_services import KeyProvider, WrappedKey, from_uri
from ..key_services.provider import unwrapped, wrapped_for
from ..keys import Key, is_usable
from ..safetensors.providers import Passphrase, check_key

__all__ = ["Session", "forget_keys", "key_for", "opening_key", "sealing_key", "use_key"]

#: Where a process without use_key() finds its key: a URI of pyccmem.key_services, or a key file.
VARIABLES = ("PYCCMEM_KEY", "PYCCMEM_KEY_FILE")

#: What files call a Key.
_KEY = "key"

#: Session keys of others that are kept, each a page of locked memory at most.
_MOST_SESSIONS = 256

_CONTEXT: Mapping[str, str] = {"pyccmem.format": "2", "pyccmem.purpose": "ray-session"}

AnyKey = Key | KeyProvider


class Session(NamedTuple):
    """A session key as it travels: what a key service made of it."""

    provider: str
    wrapped: WrappedKey
    bound: bytes


class _Keys:
    """The keys of one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.RLock()
        self.used: list[AnyKey] = []  # the last first
        self.found: dict[tuple[str, str], AnyKey] = {}  # by variable ("": none) and its text
        self.own: dict[int, tuple[AnyKey, Key, Session]] = {}  # sessions of ours, by their service
        self.others: OrderedDict[tuple[str, str, bytes, bytes], Key] = OrderedDict()


_keys = _Keys()


def _here() -> _Keys:
    """Returns this process's keys: a forked child has none of its parent's sessions."""
    global _keys
    if _keys.process != os.getpid():
        inherited, _keys = _keys, _Keys()
        _keys.used = inherited.used
    return _keys


def use_key(key: AnyKey | str) -> None:
    """Lets this process seal with a key, and open what was sealed with it. `key` is a pyccmem.Key,
    a KeyProvider, or the URI of one (pyccmem.key_services). It is kept until forget_keys(). The
    last one seals; all of them open. Without any, the environment says: PYCCMEM_KEY has a URI,
    PYCCMEM_KEY_FILE the name of a key file.

    Raises ArgumentTypeError for anything else, ClosedError, and what from_uri() raises."""
    found = from_uri(key) if isinstance(key, str) else key
    _check(found)
    here = _here()
    with here.lock:
        here.used = [found, *(other for other in here.used if other is not found)]


def forget_keys() -> None:
    """Forgets what use_key() was given, what the environment gave, and all session keys of this
    process. Tensors that are open stay so; close those, too."""
    here = _here()
    with here.lock:
        keys = [*here.others.values(), *(session for _, session, _ in here.own.values())]
        keys += [key for key in here.found.values() if isinstance(key, Key)]
        here.used, here.found, here.own = [], {}, {}
        here.others.clear()
        for key in keys:
            key.close()


def _check(key: Any) -> None:
    if isinstance(key, Passphrase):
        raise errors.ArgumentTypeError(
            "A Passphrase is derived anew for each object, which takes a second each time; use "
            "Key.from_passphrase() with a salt of your own, on each node."
        )
    check_key(key)


def _from_environment(here: _Keys) -> list[AnyKey]:
    """Returns the keys that the environment names. Raises what reading them raises."""
    found: list[AnyKey] = []
    for variable in VARIABLES:
        text = os.environ.get(variable)
        if not text:
            continue
        found.append(_named(here, variable, text))
    return found


def _named(here: _Keys, variable: str, text: str) -> AnyKey:
    """Returns the key that a URI or a file's name says, read once."""
    key = here.found.get((variable, text))
    if key is None or (isinstance(key, Key) and not is_usable(key)):
        key = Key.from_file(text) if variable == "PYCCMEM_KEY_FILE" else from_uri(text)
        here.found[variable, text] = key
    return key


def sealing_key(key: AnyKey | str | None) -> tuple[Key, Session | None]:
    """Returns the Key to seal with: `key` itself, else that of use_key(), else the environment's;
    of a key service a session key, and what the service made of it. Raises InvalidKeyError without
    any, and what a key service raises."""
    here = _here()
    with here.lock:
        if isinstance(key, str):
            key = _named(here, "", key)
        if key is None:
            known = here.used or _from_environment(here)
            if not known:
                raise errors.InvalidKeyError(
                    f"This process has no key to seal with; pass key=, call "
                    f"pyccmem.ray.use_key(key), or set {' or '.join(VARIABLES)}."
                )
            key = known[0]
        _check(key)
        return (key, None) if isinstance(key, Key) else _own_session(here, key)


def _own_session(here: _Keys, provider: KeyProvider) -> tuple[Key, Session]:
    known = here.own.get(id(provider))
    if known is None or not is_usable(known[1]):
        made = Key.generate()
        try:
            wrapped, bound = wrapped_for(provider, made, _CONTEXT)
        except BaseException:
            made.close()
            raise
        known = here.own[id(provider)] = provider, made, Session(provider.name, wrapped, bound)
    return known[1], known[2]


def opening_key(session: Session | None, provider: str, key_id: str) -> AnyKey:
    """Returns what opens a sealed file that says it was sealed by `provider`, with the key of this
    id, and came with `session`. Raises InvalidKeyError if this process has no such key, and what a
    key service raises."""
    here = _here()
    with here.lock:
        return _their_session(here, session) if session else key_for(provider, key_id)


def key_for(provider: str, key_id: str) -> AnyKey:
    """Returns the key, or the provider, of this name that this process has. Raises InvalidKeyError,
    and what reading a key raises."""
    here = _here()
    with here.lock:
        for known in (here.used, _from_environment(here)):
            for key in known:
                if isinstance(key, Key):
                    if provider == _KEY and is_usable(key) and key.id == key_id:
                        return key
                elif provider == key.name:
                    return key
        # one key may be in both
        have = dict.fromkeys(map(_called, (*here.used, *_from_environment(here))))
        wanted = f"the key {key_id}" if provider == _KEY else f"the key service {provider!a}"
        raise errors.InvalidKeyError(
            f"What came here is sealed with {wanted}, and this process has "
            f"{', '.join(have) or 'no key'}; on each node call pyccmem.ray.use_key(key), or set "
            f"{' or '.join(VARIABLES)} before `ray start`. Keys do not travel."
        )


def _called(key: AnyKey) -> str:
    if not isinstance(key, Key):
        return f"the key service {key.name!a}"
    return f"the key {key.id}" if is_usable(key) else "a key that is closed"


def _their_session(here: _Keys, session: Session) -> Key:
    name, wrapped, bound = session
    at = (name, wrapped.key_id, wrapped.blob, bound)
    key = here.others.get(at)
    if key is None or not is_usable(key):
        own = [made for _, made, mine in here.own.values() if mine == session and is_usable(made)]
        if own:
            return own[0]
        provider = key_for(name, wrapped.key_id)
        if isinstance(provider, Key):
            raise errors.InvalidKeyError(f"A session key was not wrapped by a service: {name!a}.")
        key = here.others[at] = unwrapped(provider, wrapped, bound, _CONTEXT)
        while len(here.others) > _MOST_SESSIONS:  # not closed: another thread may open with it
            here.others.popitem(last=False)
    here.others.move_to_end(at)
    return key
