# SPDX-License-Identifier: Apache-2.0
"""Sessions of botocore whose answers are read as wire.py does."""

from __future__ import annotations

import os
from typing import Any

from botocore import awsrequest, httpsession, utils

from .wire import WipedResponse, no_kept_plaintext

__all__ = ["http_session"]


class _Connection(awsrequest.AWSHTTPConnection):
    response_class = WipedResponse


class _TlsConnection(awsrequest.AWSHTTPSConnection):
    response_class = WipedResponse


class _Pool(awsrequest.AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(awsrequest.AWSHTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Session(httpsession.URLLib3Session):
    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        self._manager.pool_classes_by_scheme = self._pool_classes_by_scheme

    def _get_ssl_context(self) -> Any:
        return no_kept_plaintext(super()._get_ssl_context())


def http_session(session: Any, address: str, timeout: float) -> Any:
    """Returns what sends the requests of a botocore session to an address, with the certificates
    and proxies of its configuration and the environment, as botocore's own does."""
    verify = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    return _Session(
        verify=verify or True,
        proxies=utils.get_environ_proxies(address),
        timeout=(timeout, timeout),
    )
