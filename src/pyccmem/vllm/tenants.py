# SPDX-License-Identifier: Apache-2.0
"""The names of tenants, made of what their requests carry as `cache_salt`."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

__all__ = ["tenant_of"]

_secret: tuple[int, bytes] | None = None


def tenant_of(salt: str | None) -> str | None:
    """Returns the name of the tenant whose requests have this `cache_salt`: a MAC under a secret of
    this process, so that the salt goes nowhere. None without a salt."""
    global _secret
    if not salt:
        return None
    if _secret is None or _secret[0] != os.getpid():
        _secret = (os.getpid(), secrets.token_bytes(32))
    return hmac.new(_secret[1], salt.encode(), hashlib.sha256).hexdigest()
