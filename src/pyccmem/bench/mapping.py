# SPDX-License-Identifier: Apache-2.0
"""Claim 9: mappings, which give plain pointers over encrypted memory within a window.

A first pass over a mapping, in order, against read_into() of the same bytes by one thread into
memory that has been touched; touches in no order against a bare userfaultfd handler that copies a
block of the same size; a mapping that fits its window against a plain array; and numpy's product
with a mapped matrix that does not fit, against the plain one.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import errors, measure
from ..buffer import EncryptedBuffer
from ..keys import Key
from . import common
from .rounds import CheckError, Figure, Plan, Summary, Target, interleave, random_bytes

MIB = 1 << 20
SOURCE = Path(__file__).with_name("faults.c")

#: The bytes that a pass reads, and the window.
SIZE, QUICK_SIZE = 1024 * MIB, 256 * MIB
WINDOW = 64 * MIB

#: The mechanisms with their names in the table. The first is the one that a process with the
#: permission gets.
MECHANISMS = {
    "uffd": "system calls work",
    "uffd-signal": "system_calls=False",
    "sigsegv": "without userfaultfd",
}

#: Least speed as a share of read_into() by one thread: with a thread that answers, and with both
#: cores opening.
PASS_TARGET, AHEAD_TARGET = 0.80, 1.2

#: Sizes of blocks that are touched in no order, and how many are touched, which is all there are.
BLOCKS = {4096: 4096, 65536: 1024, 2 * MIB: 128}
FRAMES = 16

RESIDENT = 32 * MIB
RESIDENT_TARGET = 0.98

#: The matrix of the product, 64 MiB of float32, its window, and rows of x.
SHAPE = (4096, 4096)
MATRIX_WINDOW = 16 * MIB
ROWS = 512
PRODUCT_TARGET = 0.6


def cores() -> int:
    return len(os.sched_getaffinity(0))


def usable(mechanism: str) -> bool:
    """Returns True if the system offers the mechanism."""
    with Key.generate() as key, EncryptedBuffer(1 << 16, key=key) as buffer:
        try:
            measure.mapped(buffer, 1 << 16, mechanism).close()
        except errors.FaultMechanismError:
            return False
    return True


def filled(plain: Any, nbytes: int, cipher: str) -> EncryptedBuffer:
    """Returns a buffer filled with the bytes of `plain`, repeated."""
    with Key.generate() as key:
        buffer = EncryptedBuffer(nbytes, key=key, cipher=cipher)
    for at in range(0, nbytes, len(plain)):
        buffer.write(plain[: nbytes - at], at)
    return buffer


# ---- in order ------------------------------------------------------------------------------------


def first_pass(buffer: EncryptedBuffer, mechanism: str, threads: int) -> float:
    """Returns the seconds for the first pass over a new mapping, by the widest loads there are."""
    with common.threads(threads), measure.mapped(buffer, WINDOW, mechanism) as array:
        return measure.plain_read(array)


def read_into(buffer: EncryptedBuffer, out: Any) -> float:
    with common.threads(1):
        start = perf_counter()
        buffer.read_into(out)
        return perf_counter() - start


def passes(plan: Plan, mechanisms: list[str]) -> Iterator[Figure]:
    size = QUICK_SIZE if plan.quick else SIZE
    for cipher in common.representatives(plan):
        plan.progress(f"mappings, {cipher}: filling")
        plain = random_bytes(64 * MIB)
        out = np.zeros(size, np.uint8)
        with filled(plain, size, cipher) as buffer:
            for mechanism in mechanisms:
                with measure.mapped(buffer, WINDOW, mechanism) as array:
                    for at in range(0, size, len(plain)):
                        common.must_equal(array[at : at + len(plain)], plain, "a mapping")
            calls: dict[str, Callable[[], float]] = {"read_into": partial(read_into, buffer, out)}
            for mechanism in mechanisms:
                for threads in (1, 2)[: cores()]:
                    calls[f"{mechanism}/{threads}"] = partial(
                        first_pass, buffer, mechanism, threads
                    )
            taken = interleave(
                calls, plan.rounds, tries=1, progress=plan.progress, title=f"mappings, {cipher}"
            )
        for name, seconds in taken.items():
            mechanism, _, number = name.partition("/")
            if not number:
                continue
            ahead = "one thread" if number == "1" else "opened ahead by another thread"
            limit = {"uffd/1": PASS_TARGET, "uffd/2": PASS_TARGET, "uffd-signal/2": AHEAD_TARGET}
            yield Figure(
                id=f"mapping/pass/{cipher}/{name}",
                group=f"mappings: a first pass over {size // MIB} MiB, window of 64 MiB",
                label=f"{cipher}, {MECHANISMS[mechanism]}, {ahead}",
                value=Summary.of(size / 1e9 / seconds),
                unit="GB/s",
                reference=size / 1e9 / float(np.median(taken["read_into"])),
                reference_label="read_into, one thread",
                ratio=Summary.of(taken["read_into"] / seconds),
                target=Target(limit[name]) if name in limit else None,
            )


# ---- in no order ---------------------------------------------------------------------------------


@contextmanager
def bare_handler() -> Iterator[Callable[[int, int], float] | None]:
    """Builds faults.c, and gives a function from the size of a block and a number of faults to the
    seconds for a fault; None if it cannot be built."""
    with tempfile.TemporaryDirectory(prefix="pyccmem-bench-") as scratch:
        program = Path(scratch, "faults")
        compiler = shlex.split(os.environ.get("CC") or "cc")
        try:
            built = subprocess.run(
                [*compiler, "-O2", "-pthread", "-o", str(program), str(SOURCE)],
                capture_output=True,
                check=False,
            )
        except OSError:
            built = None
        if built is None or built.returncode:
            yield None
            return

        def seconds(block: int, count: int) -> float:
            done = subprocess.run(
                [str(program), str(block), str(count)], capture_output=True, check=False
            )
            if done.returncode:
                raise CheckError("The bare userfaultfd handler failed, so it measures nothing.")
            return float(done.stdout)

        yield seconds


def touches(buffer: EncryptedBuffer, mechanism: str, block: int, count: int) -> float:
    """Returns the seconds for a touch of an absent block."""
    with measure.mapped(buffer, FRAMES * block, mechanism, block=block) as array:
        order = np.arange(count, dtype=np.int64) * 2654435761 % count * block
        places = order.tolist()
        start = perf_counter()
        for place in places:
            array[place]
        absent = perf_counter() - start
        start = perf_counter()
        for _ in places:  # the time that Python itself takes
            array[places[-1]]
        return (absent - (perf_counter() - start)) / count


def faults(plan: Plan, mechanisms: list[str]) -> Iterator[Figure]:
    cipher = plan.ciphers[0]
    plain = random_bytes(64 * MIB)
    size = max(block * count for block, count in BLOCKS.items())
    with filled(plain, size, cipher) as buffer, bare_handler() as bare:
        for block, count in BLOCKS.items():
            calls: dict[str, Callable[[], float]] = {
                mechanism: partial(touches, buffer, mechanism, block, count)
                for mechanism in mechanisms
            }
            if bare is not None:
                calls[""] = partial(bare, block, count)
            title = f"mappings, touches of {block >> 10} KiB"
            taken = interleave(calls, plan.rounds, tries=1, progress=plan.progress, title=title)
            for mechanism in mechanisms:
                yield Figure(
                    id=f"mapping/touch/{cipher}/{block}/{mechanism}",
                    group="mappings: a touch in no order, and its block opened",
                    label=f"{cipher}, blocks of {block >> 10} KiB, {MECHANISMS[mechanism]}",
                    value=Summary.of(taken[mechanism] * 1e6),
                    unit="us",
                    reference=float(np.median(taken[""])) * 1e6 if bare else None,
                    reference_label="bare userfaultfd, copied" if bare else "",
                    ratio=Summary.of(taken[""] / taken[mechanism]) if bare else None,
                )


# ---- resident, and a product ---------------------------------------------------------------------


def timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def resident(plan: Plan, mechanisms: list[str]) -> Iterator[Figure]:
    cipher = plan.ciphers[0]
    plain = random_bytes(RESIDENT)
    numbers = (plain.view(np.uint32) >> 9).view(np.float32)  # no NaN, and hardly any slow numbers
    with filled(plain, RESIDENT, cipher) as buffer:
        buffer.write(numbers)
        with measure.mapped(buffer, WINDOW, mechanisms[0]) as array:
            mapped = array.view(np.float32)
            common.must_equal(mapped, numbers, "a mapping that fits its window")
            taken = interleave(
                {"plain": partial(timed, numbers.sum), "mapped": partial(timed, mapped.sum)},
                plan.rounds * 3,
                progress=plan.progress,
                title="mappings, resident",
            )
    yield Figure(
        id=f"mapping/resident/{cipher}",
        group="mappings: resident, and larger than the window",
        label=f"{cipher}, numpy's sum of {RESIDENT // MIB} MiB that are resident",
        value=Summary.of(taken["mapped"] * 1e3),
        unit="ms",
        reference=float(np.median(taken["plain"])) * 1e3,
        reference_label="plain array",
        ratio=Summary.of(taken["plain"] / taken["mapped"]),
        target=Target(RESIDENT_TARGET),
    )


def product(plan: Plan, mechanisms: list[str]) -> Iterator[Figure]:
    cipher = plan.ciphers[0]
    generator = np.random.default_rng(5)
    weight = generator.standard_normal(SHAPE, dtype=np.float32)
    x = generator.standard_normal((ROWS, SHAPE[1]), dtype=np.float32)
    expected = x @ weight.T
    with filled(weight.reshape(-1).view(np.uint8), weight.nbytes, cipher) as buffer:
        for mechanism in mechanisms:
            with measure.mapped(buffer, MATRIX_WINDOW, mechanism) as array:
                mapped = array.view(np.float32).reshape(SHAPE)
                calls = {
                    "plain": partial(timed, partial(np.matmul, x, weight.T)),
                    "mapped": partial(timed, partial(np.matmul, x, mapped.T)),
                }
                common.must_equal(x @ mapped.T, expected, "a product with a mapped matrix")
                taken = interleave(
                    calls,
                    plan.rounds,
                    tries=1,
                    progress=plan.progress,
                    title="mappings, product",
                )
            yield Figure(
                id=f"mapping/product/{cipher}/{mechanism}",
                group="mappings: resident, and larger than the window",
                label=f"{cipher}, numpy's product of {ROWS} rows with 64 MiB, window of "
                f"{MATRIX_WINDOW // MIB} MiB, {MECHANISMS[mechanism]}",
                value=Summary.of(taken["mapped"] * 1e3),
                unit="ms",
                reference=float(np.median(taken["plain"])) * 1e3,
                reference_label="plain array",
                ratio=Summary.of(taken["plain"] / taken["mapped"]),
                target=Target(PRODUCT_TARGET),
            )


def figures(plan: Plan) -> Iterator[Figure]:
    mechanisms = [mechanism for mechanism in MECHANISMS if usable(mechanism)]
    yield from passes(plan, mechanisms)
    yield from faults(plan, mechanisms)
    yield from resident(plan, mechanisms)
    yield from product(plan, mechanisms)
