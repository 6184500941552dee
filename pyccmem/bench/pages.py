# SPDX-License-Identifier: Apache-2.0
"""Claim 1: pages in L2, many a call, at the AES unit's own speed.

The reference is a loop of nothing but the tier's AES instruction on registers, in the same round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from .. import _lib, hazmat
from . import native, peers
from .rounds import (
    CheckError,
    Figure,
    Plan,
    Summary,
    Target,
    interleave,
    random_bytes,
    repeats_for,
)

GROUP = "pages in L2"

#: 64 pages in place: half of the smallest L2 of the processors aimed at (512 KiB on Zen 3).
WORKING_SET = 256 * 1024

#: Least share of the ceiling.
TARGETS = {"aes-128-xts": 0.80, "aes-256-xts": 0.88}

#: Nothing runs faster than the AES unit; beyond the noise, such a ratio would mean that the loop
#: which measures the ceiling is not what it should be.
CREDIBLE = 1.05

OPERATIONS = {"seal": True, "open": False}


class Pages:
    """One tier's page kernel on a working set in L2, in place."""

    def __init__(self, tier: str, cipher: str, operation: str) -> None:
        self.tier, self.cipher, self.operation = tier, cipher, operation
        self.memory = random_bytes(WORKING_SET)

    def seconds(self, repeats: int) -> float:
        """Time of `repeats` calls for all pages."""
        seal = OPERATIONS[self.operation]
        return native.pages_seconds(self.tier, self.cipher, seal, self.memory, self.memory, repeats)

    def check(self) -> None:
        """The kernel agrees with an independent implementation where there is one (else with the
        portable tier), opens what it sealed, and the timed loop reaches every block of every page.
        """
        key, page = os.urandom(native.KEY_BYTES[self.cipher]), os.urandom(native.PAGE)
        tweak = os.urandom(16)
        sealed = hazmat.xts_encrypt(key, tweak, page, tier=self.tier)
        native.must_equal(sealed, _independent(key, tweak, page), f"{self.tier}, {self.cipher}")
        opened = hazmat.xts_decrypt(key, tweak, sealed, tier=self.tier)
        native.must_equal(opened, page, f"{self.tier}, {self.cipher}, opened again")
        # Equal blocks come out all different under XTS, in either direction and under any key.
        self.memory[:] = 0
        self.seconds(1)
        blocks = self.memory.view("V16")
        if len(np.unique(blocks)) != len(blocks):
            raise CheckError(f"{self.tier}, {self.cipher}: {self.operation} left blocks untouched.")


def _independent(key: bytes, tweak: bytes, page: bytes) -> bytes:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError:
        return hazmat.xts_encrypt(key, tweak, page, tier="portable")
    sealer = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor()
    return bytes(sealer.update(page) + sealer.finalize())


def figures(plan: Plan) -> Iterator[Figure]:
    for cipher in plan.ciphers:
        yield from _figures(plan, cipher)


def _figures(plan: Plan, cipher: str) -> Iterator[Figure]:
    tiers = _lib.usable_tiers()
    plan.progress(f"{GROUP}, {cipher}: checking")
    # Seconds for a byte, one function for each thing that is timed.
    series: dict[tuple[str, str], Callable[[], float]] = {}
    for tier in tiers:
        if native.ceiling(tier, cipher, 1) > 0:
            series["ceiling", tier] = _ceiling_time(plan, tier, cipher)
        for operation in OPERATIONS:
            pages = Pages(tier, cipher, operation)
            pages.check()
            series[operation, tier] = _time(plan, pages.seconds)
    found = peers.find()
    for peer in found.native:
        for operation, seal in OPERATIONS.items():
            key = os.urandom(native.KEY_BYTES[cipher])
            memory = random_bytes(WORKING_SET)
            run = partial(peer.cipher(cipher, seal, key), memory, memory)
            series[operation, peer.name] = _time(plan, run)

    times = interleave(series, plan.rounds, progress=plan.progress, title=f"{GROUP}, {cipher}")
    rates = {name: 1 / taken for name, taken in times.items()}

    ceilings = {tier: rates["ceiling", tier] for tier in tiers if ("ceiling", tier) in rates}
    best = max(ceilings, key=lambda tier: float(np.median(ceilings[tier])), default=None)
    for tier, rate in ceilings.items():
        yield Figure(
            id=f"pages/{cipher}/ceiling/{tier}",
            group=GROUP,
            label=f"{cipher} AES unit's ceiling, {tier}",
            value=Summary.of(rate / 1e9),
            unit="GB/s",
            kind="machine",
            note="best" if tier == best else "",
        )
    for operation in OPERATIONS:
        for name in (*tiers, *(peer.name for peer in found.native)):
            ours = name in tiers
            # A tier is held to its own ceiling, the others to the machine's best.
            against = name if name in ceilings else None if name == "portable" else best
            rate = rates[operation, name]
            note = ""
            if ours and against is not None and np.median(rate / ceilings[against]) > CREDIBLE:
                note = "above the ceiling, so the ceiling is wrong"
            elif ours and best is not None and name != best:
                note = f"{np.median(rate / ceilings[best]):.2f} of the best ceiling"
            yield Figure(
                id=f"pages/{cipher}/{operation}/{name}",
                group=GROUP,
                label=f"{cipher} {operation}, {name}",
                value=Summary.of(rate / 1e9),
                unit="GB/s",
                reference=None if against is None else float(np.median(ceilings[against])) / 1e9,
                reference_label="" if against is None else f"ceiling, {against}",
                ratio=None if against is None else Summary.of(rate / ceilings[against]),
                target=Target(TARGETS[cipher], credible=CREDIBLE)
                if ours and against is not None
                else None,
                kind="ours" if ours else "peer",
                note=note,
            )


def _time(plan: Plan, seconds: Callable[[int], float]) -> Callable[[], float]:
    repeats = repeats_for(seconds, plan.slice_seconds)
    return lambda: seconds(repeats) / (WORKING_SET * repeats)


def _ceiling_time(plan: Plan, tier: str, cipher: str) -> Callable[[], float]:
    repeats = repeats_for(partial(native.ceiling_wall, tier, cipher), plan.slice_seconds)
    return lambda: 1 / native.ceiling(tier, cipher, repeats)
