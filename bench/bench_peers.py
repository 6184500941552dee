# SPDX-License-Identifier: Apache-2.0
"""The best of others: the same pages through OpenSSL, libgcrypt and `cryptography`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pyccmem.bench import native, peers
from pyccmem.bench.pages import OPERATIONS, WORKING_SET
from pyccmem.bench.rounds import aligned, random_bytes

#: By the names that peers.find() gives them.
NAMES = ["OpenSSL from C", "libgcrypt from C", "`cryptography`"]


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("place", ["L2", "DRAM"])
@pytest.mark.parametrize("name", NAMES)
def bench_peer(
    measure: Callable[..., Any], name: str, cipher: str, place: str, operation: str
) -> None:
    found = peers.find()
    everyone = (*found.native, *([found.python] if found.python else []))
    peer = next((peer for peer in everyone if peer.name == name), None)
    if peer is None:
        reasons = [reason for reason in found.missing if name.split()[0] in reason]
        pytest.skip(reasons[0] if reasons else f"{name} is not on this machine")
    nbytes, repeats = (WORKING_SET, 4) if place == "L2" else (64 << 20, 1)
    if peer is found.python:
        nbytes, repeats = min(nbytes, 4 << 20), 1
    source = random_bytes(nbytes)
    out = source if place == "L2" else aligned(nbytes, 2 << 20)
    run = peer.cipher(cipher, OPERATIONS[operation], os.urandom(native.KEY_BYTES[cipher]))
    seconds = measure(
        f"peers, {nbytes * repeats >> 10} KiB in {place}, {cipher}",
        lambda: run(source, out, repeats),
        nbytes=nbytes * repeats,
    )
    assert seconds > 0
