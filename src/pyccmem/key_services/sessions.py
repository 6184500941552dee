# SPDX-License-Identifier: Apache-2.0
"""Sessions of requests whose answers are read as wire.py does, and which keep a key from the client
library above them: it makes a request with a stand-in, and reads an answer without the key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from .. import errors
from ..binding import wiped
from .clients import taken_base64
from .wire import WipedResponse, no_kept_plaintext

__all__ = ["Carrier", "session", "wired"]


class Carrier(threading.local):
    """The key of the call that a thread is in."""

    _stand_in: bytes | None = None
    _given: bytes | None = None
    _bodies: list[bytes] | None = None
    _field: str | None = None
    _taken: bytearray | None = None

    @contextmanager
    def giving(self, given: bytes, stand_in: bytes) -> Iterator[None]:
        """Puts `given` into the requests of a block where the text `stand_in` is."""
        self._stand_in, self._given, self._bodies = stand_in, given, []
        try:
            yield
        finally:
            for body in self._bodies:
                wiped.wipe_bytes(body)
            self._stand_in = self._given = self._bodies = None

    @contextmanager
    def taking(self, field: str) -> Iterator[list[bytearray]]:
        """Takes what a field of the answers in a block holds in base64. The list that the block is
        given has it at the end. What the block leaves in the list is wiped if it raises."""
        found: list[bytearray] = []
        self._field = field
        try:
            yield found
            if self._taken is not None:
                found.append(self._taken)
        finally:
            if self._taken is not None and not found:
                wiped.wipe(self._taken)
            self._field = self._taken = None

    def sent(self, body: Any) -> Any:
        """Returns the body of a request as it is to be sent."""
        if self._given is None or self._stand_in is None or self._bodies is None:
            return body
        data = body.encode() if isinstance(body, str) else bytes(body or b"")
        before, found, behind = data.partition(self._stand_in)
        if not found:
            raise errors.KeyServiceError(
                "This version of the service's client writes requests in another way than is known "
                "here; use another version."
            )
        self._bodies.append(b"".join((before, self._given, behind)))
        return self._bodies[-1]

    def received(self, body: bytes) -> None:
        """Takes the key out of the body of an answer."""
        if self._field is not None:
            found = taken_base64(body, self._field)
            if found is not None and self._taken is not None:
                wiped.wipe(self._taken)
            self._taken = found if found is not None else self._taken


class _Connection(HTTPConnection):
    response_class = WipedResponse


class _TlsConnection(HTTPSConnection):
    response_class = WipedResponse


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, carrier: Carrier | None) -> None:
        self._carrier = carrier
        super().__init__()

    def send(self, request: Any, *arguments: Any, **named: Any) -> Any:
        if self._carrier is None:
            return super().send(request, *arguments, **named)
        request.body = self._carrier.sent(request.body)
        answer = super().send(request, *arguments, **named)
        self._carrier.received(answer.content)
        return answer

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        named["ssl_context"] = no_kept_plaintext(create_urllib3_context())
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **named: Any) -> Any:
        named["ssl_context"] = no_kept_plaintext(create_urllib3_context())
        manager = super().proxy_manager_for(*arguments, **named)
        manager.pool_classes_by_scheme = _POOLS
        return manager


def wired(made: Any, carrier: Carrier | None = None) -> Any:
    """Has a session of requests send and read that way; returns it."""
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter(carrier))
    return made


def session(verify: bool | str = True, carrier: Carrier | None = None) -> Any:
    """Returns a session that checks certificates with those of the system's, or of a file or a
    directory. It follows the environment's proxies as requests does."""
    made = requests.Session()
    made.verify = verify
    return wired(made, carrier)
