# SPDX-License-Identifier: Apache-2.0
"""Sessions of requests whose answers are read as wire.py does."""

from __future__ import annotations

from typing import Any

import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from .wire import WipedResponse, no_kept_plaintext

__all__ = ["session"]


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
    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        named["ssl_context"] = no_kept_plaintext(create_urllib3_context())
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **named: Any) -> Any:
        named["ssl_context"] = no_kept_plaintext(create_urllib3_context())
        manager = super().proxy_manager_for(*arguments, **named)
        manager.pool_classes_by_scheme = _POOLS
        return manager


def session(verify: bool | str = True) -> requests.Session:
    """Returns a session that checks certificates with those of the system's, or of a file or a
    directory. It follows the environment's proxies as requests does."""
    made = requests.Session()
    made.verify = verify
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter())
    return made
