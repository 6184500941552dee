# SPDX-License-Identifier: Apache-2.0
"""Claim 1: pages in L2, many in a call, are nearly as fast as the AES unit allows.

The reference is a loop of nothing but the tier's AES instruction on registers, in the same round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import measure
from ..cpu import cpu_info
from . import algorithms, common, peers
from .report import number
from .rounds import (
    CheckError,
    Figure,
    Plan,
    Samples,
    Summary,
    Target,
    aligned,
    interleave,
    random_bytes,
    repeats_for,
)

GROUP = "pages in L2"

#: 64 pages in place, or 32 from one place to another: half of the smallest L2 of the target
#: processors (512 KiB on Zen 3).
WORKING_SET = 256 * 1024

#: Least share of the ceiling. There is no target for AEGIS: each of its updates waits for the one
#: before, so that the AES unit is never full.
TARGETS = {"aes-128-xts": 0.80, "aes-256-xts": 0.88}

#: Least speed of the tier in use as a multiple of that of each peer with such a name that does the
#: same work.
TARGETS_OVER = {
    "aegis-128x2": {"libaegis": 1.25},
    "aegis-256x2": {"libaegis": 1.25},
    "aes-256-gcm": {"libgcrypt": 1.25, "OpenSSL": 1.25},
    "sm4-xts": {"libgcrypt": 2.5},
    "sm4-gcm": {"libgcrypt": 2.5},
}

#: Tiers that these limits are not for, and beginnings of names of ciphers: the portable tier has no
#: instructions for any, and SM4's is for vectors of 256 bits and more.
UNJUDGED = {"portable": ("",), "aesni": ("sm4-",)}

#: Ciphers that should open about as fast as they seal, and the least and greatest ratio.
EVEN = {"aes-256-gcm": (0.95, 1.05)}

#: Nothing runs faster than the AES unit. A larger ratio than noise explains means that the loop for
#: the ceiling is wrong.
CREDIBLE = 1.05

OPERATIONS = {"seal": True, "open": False}


def memory_for(cipher: str) -> tuple[Any, Any]:
    """Returns source and destination of the working set: the same memory if the cipher can be timed
    in place. With an authenticated cipher, pages opened in place cannot be opened again."""
    if cipher not in common.TAGGED:
        memory = random_bytes(WORKING_SET)
        return memory, memory
    source, out = random_bytes(WORKING_SET // 2), aligned(WORKING_SET // 2)
    out[:] = 0
    return source, out


class Pages:
    """One tier's page kernel on a working set in L2, in place if the cipher allows."""

    def __init__(self, tier: str, cipher: str, operation: str) -> None:
        self.tier, self.cipher, self.operation = tier, cipher, operation
        self.memory, self.out = memory_for(cipher)
        self.nbytes = int(self.memory.nbytes)

    def seconds(self, repeats: int) -> float:
        """Returns the time of `repeats` passes over all pages."""
        seal = OPERATIONS[self.operation]
        return common.pages_seconds(self.tier, self.cipher, seal, self.memory, self.out, repeats)

    def check(self) -> None:
        """Checks that the kernel agrees with an independent implementation (without one, with the
        portable tier), that it opens what it sealed, and that the timed loop reaches every block of
        every page.
        """
        key, page = os.urandom(common.KEY_BYTES[self.cipher]), os.urandom(common.PAGE)
        algorithm, what = algorithms.of(self.cipher), f"{self.tier}, {self.cipher}"
        nonce = os.urandom(algorithm.nonce)
        sealed = algorithm.encrypt(key, nonce, page, tier=self.tier)
        expected = _independent(self.cipher, key, nonce, page)
        parts = zip(sealed, expected, strict=True) if algorithm.tagged else [(sealed, expected)]
        for got, wanted in parts:
            common.must_equal(got, wanted, what)
        opened = algorithm.decrypt(key, nonce, sealed, tier=self.tier)
        common.must_equal(opened, page, f"{what}, opened again")
        if algorithm.tagged:
            self._check_tagged(what)
            return
        # XTS makes equal blocks all different, in either direction and under any key.
        self.memory[:] = 0
        self.seconds(1)
        blocks = self.memory.view("V16")
        if len(np.unique(blocks)) != len(blocks):
            raise CheckError(f"{self.tier}, {self.cipher}: {self.operation} left blocks untouched.")

    def _check_tagged(self, what: str) -> None:
        plain = self.memory.copy()
        self.out[:] = 0
        self.seconds(1)
        if self.operation == "open":
            common.must_equal(self.out, plain, f"{what}, open")
        # Two unrelated words agree once in 2^64.
        ciphertext = self.out if self.operation == "seal" else self.memory
        if np.any(ciphertext.view(np.uint64) == plain.view(np.uint64)):
            raise CheckError(f"{what}: {self.operation} left blocks untouched.")


def _independent(cipher: str, key: bytes, nonce: bytes, page: bytes) -> Any:
    """Returns what the page is when sealed, by `cryptography` if it has the cipher, else by the
    portable tier: peers.find() compares the tier in use with what other libraries do."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, aead, modes
        from cryptography.hazmat.primitives.ciphers import algorithms as of
    except ImportError:
        pass
    else:
        if cipher.startswith("aes-") and cipher.endswith("-xts"):
            sealer = Cipher(of.AES(key), modes.XTS(nonce)).encryptor()
            return bytes(sealer.update(page) + sealer.finalize())
        if cipher.startswith("aes-") and cipher.endswith("-gcm"):
            whole = aead.AESGCM(key).encrypt(nonce, page, None)
            return whole[:-16], whole[-16:]
    return algorithms.of(cipher).encrypt(key, nonce, page, tier="portable")


def figures(plan: Plan) -> Iterator[Figure]:
    for cipher in plan.ciphers:
        yield from _figures(plan, cipher)


def _figures(plan: Plan, cipher: str) -> Iterator[Figure]:
    tiers: list[str] = cpu_info()["tiers"]
    plan.progress(f"{GROUP}, {cipher}: checking")
    # Functions that give seconds for a byte, one for each thing that is timed.
    series: dict[tuple[str, str], Callable[[], float]] = {}
    for tier in tiers:
        if measure.ceiling(tier, cipher, 1) > 0:
            series["ceiling", tier] = _ceiling_time(plan, tier, cipher)
        for operation in OPERATIONS:
            pages = Pages(tier, cipher, operation)
            pages.check()
            series[operation, tier] = _time(plan, pages.seconds, pages.nbytes)
    others = peers.find().natives(cipher)
    for peer in others:
        for operation, seal in OPERATIONS.items():
            work = peer.cipher(cipher, seal, os.urandom(common.KEY_BYTES[cipher]))
            source, out = memory_for(cipher)
            work.prepare(source)
            series[operation, peer.name] = _time(plan, partial(work, source, out), source.nbytes)

    times = interleave(series, plan.rounds, progress=plan.progress, title=f"{GROUP}, {cipher}")
    rates = {name: 1 / taken for name, taken in times.items()}

    active = cpu_info()["tier"]
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
        for name, does in (*((tier, cipher) for tier in tiers), *_names(others, cipher)):
            ours = name in tiers
            # A tier is compared with its own ceiling, a peer for the same cipher with the best one.
            same = does == cipher and name != "portable"
            against = name if name in ceilings else best if same else None
            rate = rates[operation, name]
            note = ""
            if does != cipher:
                faster = number(float(np.median(rates[operation, active] / rate)))
                note = f"pyccmem is {faster} x as fast"
            if ours and against is not None and np.median(rate / ceilings[against]) > CREDIBLE:
                note = "above the ceiling, so the ceiling is wrong"
            elif ours and best is not None and name != best:
                note = f"{np.median(rate / ceilings[best]):.2f} of the best ceiling"
            yield Figure(
                id=f"pages/{cipher}/{operation}/{name}",
                group=GROUP,
                label=f"{does} {operation}, {name}",
                value=Summary.of(rate / 1e9),
                unit="GB/s",
                reference=None if against is None else float(np.median(ceilings[against])) / 1e9,
                reference_label="" if against is None else f"ceiling, {against}",
                ratio=None if against is None else Summary.of(rate / ceilings[against]),
                target=Target(TARGETS[cipher], credible=CREDIBLE)
                if ours and against is not None and cipher in TARGETS
                else None,
                kind="ours" if ours else "peer",
                note=note,
            )
        yield from _over_peers(cipher, operation, rates, others)
    if cipher in EVEN:
        yield _evenness(cipher, rates)


def _over_peers(
    cipher: str,
    operation: str,
    rates: Mapping[tuple[str, str], Samples],
    others: Sequence[peers.Peer],
) -> Iterator[Figure]:
    """Yields figures of the tier in use against each peer that has a limit and does the same."""
    tier = cpu_info()["tier"]
    judged = not any(cipher.startswith(start) for start in UNJUDGED.get(tier, ()))
    for name, does in _names(others, cipher):
        limits = TARGETS_OVER.get(cipher, {})
        limit = next((limits[start] for start in limits if name.startswith(start)), None)
        same = does == cipher or (cipher, does) in algorithms.SAME_WORK
        if limit is None or not same:
            continue
        ours, theirs = rates[operation, tier], rates[operation, name]
        yield Figure(
            id=f"pages/{cipher}/{operation}/over {name}/{tier}",
            group=GROUP,
            label=f"{cipher} {operation}, {tier} over {name}",
            value=Summary.of(ours / 1e9),
            unit="GB/s",
            reference=float(np.median(theirs)) / 1e9,
            reference_label=name,
            ratio=Summary.of(ours / theirs),
            target=Target(limit) if judged else None,
        )


def _evenness(cipher: str, rates: Mapping[tuple[str, str], Samples]) -> Figure:
    """Returns the figure of opening against sealing, by the tier in use."""
    tier = cpu_info()["tier"]
    opening, sealing = rates["open", tier], rates["seal", tier]
    least, most = EVEN[cipher]
    return Figure(
        id=f"pages/{cipher}/open over seal/{tier}",
        group=GROUP,
        label=f"{cipher} open over seal, {tier}",
        value=Summary.of(opening / 1e9),
        unit="GB/s",
        reference=float(np.median(sealing)) / 1e9,
        reference_label="seal",
        ratio=Summary.of(opening / sealing),
        target=None if tier == "portable" else Target(least, credible=most),
    )


def _names(others: Sequence[peers.Peer], cipher: str) -> list[tuple[str, str]]:
    return [(peer.name, peer.does[cipher]) for peer in others]


def _time(plan: Plan, seconds: Callable[[int], float], nbytes: int) -> Callable[[], float]:
    repeats = repeats_for(seconds, plan.slice_seconds)
    return lambda: seconds(repeats) / (nbytes * repeats)


def _ceiling_time(plan: Plan, tier: str, cipher: str) -> Callable[[], float]:
    repeats = repeats_for(partial(common.ceiling_wall, tier, cipher), plan.slice_seconds)
    return lambda: 1 / measure.ceiling(tier, cipher, repeats)
