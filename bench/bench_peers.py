# SPDX-License-Identifier: Apache-2.0
"""The best of others: the same pages through OpenSSL, libgcrypt, libaegis and `cryptography`. Where
one of them has no AEGIS, AES-128-GCM stands for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pyccmem.bench import native, peers
from pyccmem.bench.pages import OPERATIONS, memory_for
from pyccmem.bench.rounds import aligned, random_bytes

#: By the names that peers.find() gives them.
NAMES = ["OpenSSL from C", "libgcrypt from C", "libaegis", "`cryptography`"]


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
    if cipher not in peer.does:
        pytest.skip(f"{name} has nothing to set beside {cipher}")
    repeats = 1 if place == "DRAM" or peer is found.python else 4
    if place == "L2":
        source, out = memory_for(cipher)
    else:
        source = random_bytes((4 if peer is found.python else 64) << 20)
        out = aligned(source.nbytes, 2 << 20)
    nbytes = source.nbytes
    work = peer.cipher(cipher, OPERATIONS[operation], os.urandom(native.KEY_BYTES[cipher]))
    work.prepare(source)
    seconds = measure(
        f"peers, {nbytes * repeats >> 10} KiB in {place}, {cipher}",
        lambda: work(source, out, repeats),
        nbytes=nbytes * repeats,
    )
    assert seconds > 0
