# SPDX-License-Identifier: Apache-2.0
"""Claim 2: reading and writing a large array is nearly as fast as copying it plain.

One thread, DRAM to DRAM, in that thread's own time. The reference is one memcpy of the same bytes
into memory that has been touched, in the same round.

The same bytes are also opened a piece at a time into one scratch that stays in the cache, as a
kernel that multiplies by them does. The reference for that is a plain read of as many bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from time import thread_time
from typing import Any

import numpy as np

from .. import measure
from ..buffer import EncryptedBuffer
from ..cpu import cpu_info
from ..keys import Key
from . import common, peers
from .report import number
from .rounds import (
    CheckError,
    Figure,
    Plan,
    Summary,
    Target,
    aligned,
    interleave,
    random_bytes,
)

GROUP = "bulk from DRAM"

#: Least speed as a share of memcpy's.
TARGETS = {"aes-128-xts": 0.85, "aes-256-xts": 0.75, "aegis-128x2": 0.95}

#: Least speed through a scratch as a share of a plain read's.
TARGETS_SCRATCH = {"aegis-128x2": 0.85}

#: Bytes of the scratch: a page, and what fits an L2 beside other things.
SCRATCHES = (common.PAGE, 64 << 10, 256 << 10)

#: Bytes that are enough to measure the slow ways.
SAMPLE = 4 << 20

#: A read into memory that does not begin on a cache line, like the memory that numpy allocates.
OFF_LINE = "numpy's alignment"

_HUGE = 2 << 20


def size(plan: Plan) -> int:
    """Returns the bytes to read and write: fewer if a pass would take seconds."""
    short = plan.quick or cpu_info()["tier"] == "portable"
    return (64 if short else 256) << 20


class Bulk:
    """A buffer of `nbytes` bytes, a source and a destination, all touched and checked."""

    def __init__(self, cipher: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self.source = random_bytes(nbytes)
        memory = aligned(nbytes + 64, _HUGE)
        memory[:] = 0
        self.out = memory[:nbytes]
        # numpy's own large arrays begin here: after malloc's header at the start of a page.
        self.out_off_line = memory[16 : 16 + nbytes]
        self.scratches = {size: aligned(size) for size in SCRATCHES}
        with Key.generate() as key:
            self.buffer = EncryptedBuffer(nbytes, key=key, cipher=cipher)

    def write(self) -> None:
        self.buffer.write(self.source)

    def read_into(self) -> None:
        self.buffer.read_into(self.out)

    def read_off_line(self) -> None:
        """Reads into an array that begins where numpy's own arrays do."""
        self.buffer.read_into(self.out_off_line)

    def memcpy(self) -> None:
        measure.memcpy(self.out, self.source)

    def scratch(self, size: int) -> None:
        """Opens everything, `size` bytes at a time, into the same `size` bytes."""
        measure.open_to_scratch(self.buffer, self.scratches[size])

    def plain_read(self) -> None:
        measure.plain_read(self.source)

    def check(self) -> None:
        """Checks that what was written is read back, through scratch too, and that memory holds
        something else."""
        self.write()
        self.out[:] = 0
        self.read_into()
        common.must_equal(self.out, self.source, "read_into after write")
        self.read_off_line()
        common.must_equal(self.out_off_line, self.source, OFF_LINE)
        for size, scratch in self.scratches.items():
            scratch[:] = 0
            self.scratch(size)
            common.must_equal(scratch, self.source[-size:], f"through a scratch of {size} bytes")
        stored = np.frombuffer(self.buffer.ciphertext, dtype=np.uint8)[: self.nbytes]
        # Two unrelated bytes agree once in 256.
        if np.mean(stored[: 1 << 20] == self.source[: 1 << 20]) > 0.01:
            raise CheckError("The stored bytes look like the plaintext.")

    def close(self) -> None:
        self.buffer.close()


def figures(plan: Plan) -> Iterator[Figure]:
    with common.threads(1):
        for cipher in plan.ciphers:
            bulk = Bulk(cipher, size(plan))
            try:
                yield from _figures(plan, cipher, bulk)
            finally:
                bulk.close()


def _figures(plan: Plan, cipher: str, bulk: Bulk) -> Iterator[Figure]:
    title = f"{GROUP}, {cipher}"
    plan.progress(f"{title}: checking")
    bulk.check()
    found = peers.find()
    others = found.natives(cipher)
    # Seconds for a byte, so that samples of different sizes compare.
    series: dict[tuple[str, str], Callable[[], float]] = {
        ("memcpy", ""): _per_byte(bulk.memcpy, bulk.nbytes),
        ("seal", ""): _per_byte(bulk.write, bulk.nbytes),
        ("open", ""): _per_byte(bulk.read_into, bulk.nbytes),
        ("open", OFF_LINE): _per_byte(bulk.read_off_line, bulk.nbytes),
        ("plain read", ""): _per_byte(bulk.plain_read, bulk.nbytes),
    }
    for step in SCRATCHES:
        series["scratch", str(step)] = _per_byte(partial(bulk.scratch, step), bulk.nbytes)
    if found.python and cipher in found.python.does:
        others.append(found.python)
    for peer in others:
        nbytes = min(SAMPLE, bulk.nbytes) if peer is found.python else bulk.nbytes
        for operation, seal in (("seal", True), ("open", False)):
            work = peer.cipher(cipher, seal, os.urandom(common.KEY_BYTES[cipher]))
            source = bulk.source[:nbytes]
            if cipher in common.TAGGED and not seal:
                source = _copy(source)  # to be sealed
            work.prepare(source)
            call = partial(work, source, bulk.out[:nbytes], 1)
            series[operation, peer.name] = _per_byte(call, nbytes)

    times = interleave(series, plan.rounds, tries=1, progress=plan.progress, title=title)
    copy = times["memcpy", ""]
    gigabytes = float(np.median(1e-9 / copy))
    mebibytes = bulk.nbytes >> 20
    yield Figure(
        id=f"bulk/{cipher}/memcpy",
        group=GROUP,
        label=f"memcpy of {mebibytes} MiB, beside {cipher}",
        value=Summary.of(1e-9 / copy),
        unit="GB/s",
        kind="machine",
    )
    does = {peer.name: peer.does[cipher] for peer in others}
    for (operation, name), taken in times.items():
        if operation not in ("seal", "open"):
            continue
        ours = name in ("", OFF_LINE)
        verb = {"seal": "write", "open": "read_into"}[operation]
        yield Figure(
            id=f"bulk/{cipher}/{verb}" + (f"/{name}" if name else ""),
            group=GROUP,
            label=(f"{cipher} {verb}" if ours else f"{does[name]} {operation}")
            + (f", {name}" if name else ""),
            value=Summary.of(1e-9 / taken),
            unit="GB/s",
            reference=gigabytes,
            reference_label="memcpy",
            ratio=Summary.of(copy / taken),
            target=Target(TARGETS[cipher]) if ours and cipher in TARGETS else None,
            kind="ours" if ours else "peer",
            note="" if ours else _times_faster(times[operation, ""], taken),
        )
    read = times["plain read", ""]
    yield Figure(
        id=f"bulk/{cipher}/plain-read",
        group=GROUP,
        label=f"plain read of {mebibytes} MiB, beside {cipher}",
        value=Summary.of(1e-9 / read),
        unit="GB/s",
        kind="machine",
    )
    for step in SCRATCHES:
        taken = times["scratch", str(step)]
        yield Figure(
            id=f"bulk/{cipher}/scratch/{step}",
            group=GROUP,
            label=f"{cipher} into a scratch of {step >> 10} KiB",
            value=Summary.of(1e-9 / taken),
            unit="GB/s",
            reference=float(np.median(1e-9 / read)),
            reference_label="plain read",
            ratio=Summary.of(read / taken),
            target=Target(TARGETS_SCRATCH[cipher]) if cipher in TARGETS_SCRATCH else None,
        )


def _copy(source: Any) -> Any:
    """Returns a copy of the bytes, in memory of the same kind."""
    out = aligned(source.nbytes, _HUGE)
    out[:] = source
    return out


def _times_faster(ours: Any, theirs: Any) -> str:
    return f"pyccmem is {number(float(np.median(theirs / ours)))} x as fast"


def _per_byte(call: Callable[[], object], nbytes: int) -> Callable[[], float]:
    """Returns a function that gives the calling thread's own time for one byte. A pass is longer
    than the scheduler's time slice, so on a busy machine wall-clock time would include other
    programs."""

    def seconds() -> float:
        start = thread_time()
        call()
        return (thread_time() - start) / nbytes

    return seconds
