# SPDX-License-Identifier: Apache-2.0
"""The limit of a file's data key, for a key that is held for a time only."""

from __future__ import annotations

from ..key_services.leases import Lease
from ..key_services.life import Held
from ..keys import Key
from ._format import SealedHeader
from .providers import AnyKey, opened

__all__ = ["lease_of"]


def lease_of(key: AnyKey, data_key: Key, header: SealedHeader, fetched: float) -> Lease | None:
    """Returns the lease of a data key that was asked for at `fetched`, by the clock of leases; None
    for a key without a limit."""
    if not isinstance(key, Held) or key.max_age is None:
        return None
    once, entry = key.once(), header.key
    return Lease(
        data_key,
        lambda: opened(once, entry),
        key.max_age,
        key,
        provider=header.provider,
        key_id=header.wrapped.key_id,
        context=dict(header.context or {}),
        hook=key.on_event,
        fetched=fetched,
    )
