# SPDX-License-Identifier: Apache-2.0
"""The proof in docs/design/sequence-lock.md, looked at from two sides: a model of the protocol, in
which every order is tried that a processor or compiler may make of it; and the library under
readers and writers that are stopped and continued at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import support
from support import not_sanitized

# ---- the model -----------------------------------------------------------------------------------

LOCK = 100


class Step(NamedTuple):
    """One access or fence of a thread. `swap` needs the word to be `expected`."""

    kind: str  # load, store, swap, fence
    place: str = ""
    value: int = 0
    order: str = "relaxed"
    expected: int = 0


def reader(without: str) -> list[Step]:
    """R1, R2, R3, R4."""
    steps = [
        Step("load", "word", order="relaxed" if without == "R1" else "acquire"),
        Step("load", "a"),
        Step("load", "b"),
        Step("fence", order="acquire"),
        Step("load", "word"),
    ]
    if without == "R3":
        del steps[3]
    return steps[:3] if without == "R4" else steps


def writer(without: str) -> list[Step]:
    """W2, W3, W4, W6, twice: a version after the other."""
    steps = []
    for version in (2, 3):
        steps += [
            Step("swap", "word", LOCK + version - 1, "acquire", expected=version - 1),
            Step("fence", order="release"),
            Step("store", "a", version),
            Step("store", "b", version),
            Step("store", "word", version, "relaxed" if without == "W6" else "release"),
        ]
    if without == "W2":
        steps = [step for step in steps if step.kind != "swap"]
    return [step for step in steps if not (without == "W3" and step.kind == "fence")]


def keeps_order(steps: list[Step], i: int, j: int, machine: str) -> bool:
    """Whether step i < j of one thread is always seen before step j."""
    a, b = steps[i], steps[j]
    if "fence" in (a.kind, b.kind) or (a.place and a.place == b.place):
        return True  # fences are taken in order with all; they are only there for what follows
    if machine == "x86":
        # Only a load may pass a store.
        return not (a.kind == "store" and b.kind == "load")
    if (
        a.kind in ("load", "swap")
        and a.order == "acquire"
        and not (
            a.kind == "swap" and b.kind == "store"  # seen before the swap's own store, on some
        )
    ):
        return True
    if b.kind == "store" and b.order == "release":
        return True
    for fence in steps[i + 1 : j]:
        if fence.kind == "fence" and fence.order == "acquire" and a.kind != "store":
            return True
        if fence.kind == "fence" and fence.order == "release" and b.kind == "store":
            return True
    return False


def outcomes(without: str, machine: str) -> Iterator[tuple[int, ...]]:
    """What the reader loaded, in every execution: word, a, b, and the word again."""
    threads = [
        [step for step in program if step.kind != "fence"]
        for program in (reader(without), writer(without))
    ]
    before = []
    for program in (reader(without), writer(without)):
        real = [i for i, step in enumerate(program) if step.kind != "fence"]
        before.append(
            [
                sum(
                    1 << real.index(i)
                    for i in real
                    if i < j and keeps_order(program, i, j, machine)
                )
                for j in real
            ]
        )
    start = (0, 0, (("a", 1), ("b", 1), ("word", 1)), ())
    seen, waiting = {start}, [start]
    while waiting:
        done0, done1, memory, loaded = waiting.pop()
        done, values = (done0, done1), dict(memory)
        if done0 == (1 << len(threads[0])) - 1:
            yield tuple(value for _, value in sorted(loaded))
        for number, steps in enumerate(threads):
            for at, step in enumerate(steps):
                if done[number] >> at & 1 or before[number][at] & ~done[number]:
                    continue
                if step.kind == "swap" and values["word"] != step.expected:
                    continue  # it waits
                after = dict(values)
                if step.kind != "load":
                    after[step.place] = step.value
                found = loaded + (((at, values[step.place]),) if step.kind == "load" else ())
                marks = [done0, done1]
                marks[number] |= 1 << at
                state = (*marks, tuple(sorted(after.items())), tuple(sorted(found)))
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)


def torn(without: str, machine: str) -> set[tuple[int, ...]]:
    """The executions in which the reader takes for good what is not of one version."""
    found = set()
    for values in outcomes(without, machine):
        first, a, b = values[:3]
        last = values[3] if len(values) > 3 else first
        if first < LOCK and first == last and not a == b == first:
            found.add(values)
    return found


@pytest.mark.parametrize("machine", ["x86", "weak"])
def test_the_protocol_in_every_order(machine: str) -> None:
    """No page is torn; and the reader does take pages of all three versions."""
    assert torn("", machine) == set()
    taken = {v[0] for v in outcomes("", machine) if v[0] == v[3] < LOCK}
    assert taken == {1, 2, 3}


@pytest.mark.parametrize("part", ["R1", "R3", "R4", "W2", "W3", "W6"])
def test_each_part_is_needed(part: str) -> None:
    """Without any one of them the search finds a torn page: it could find one."""
    assert torn(part, "weak")


def test_what_x86_does_by_itself() -> None:
    """Fences and orders hold the compiler only; the second look and the lock are needed."""
    assert {part for part in ("R1", "R3", "R4", "W2", "W3", "W6") if torn(part, "x86")} == {
        "R4",
        "W2",
    }


# ---- the library, stopped and continued ---------------------------------------------------------

STRESS = """
import sys, threading, time
import numpy as np
import pyccmem
from pyccmem import EncryptedBuffer, Key

cipher, page_size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
pages, words = 3, page_size // 8
pyccmem.set_num_threads(1)
done, failures, reads = threading.Event(), [], [0]
with Key.generate() as key, EncryptedBuffer(
    pages * page_size, key=key, cipher=cipher, page_size=page_size, tweak_cache=4
) as buffer:
    def write(number):
        while not done.is_set():
            number += 4
            whole = np.full(pages * words, number, np.uint64)
            buffer.write(whole)
            buffer.write(whole[:words], number % pages * page_size)

    def read():
        out = np.empty(pages * words, np.uint64)
        try:
            while not done.is_set():
                for first, count in ((0, pages), (1, 1), (0, 2)):
                    part = out[: count * words]
                    buffer.read_into(part, first * page_size)
                    for page in part.reshape(count, words):
                        if (page != page[0]).any():
                            raise AssertionError(f"torn: {np.unique(page)}")
                some = np.frombuffer(buffer.read(8, page_size - 16), np.uint64)
                if (some != some[0]).any():
                    raise AssertionError(f"torn inside a page: {np.unique(some)}")
                reads[0] += 4
        except BaseException as error:
            failures.append(error)
            done.set()

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    threads += [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    # Time that passes while it is stopped is time, too: counted is what was done.
    end = time.process_time() + seconds
    while time.process_time() < end and not done.wait(0.01):
        pass
    done.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert buffer.stats()["retries"] > 0 and reads[0] > 0
    print(reads[0], buffer.stats()["retries"], buffer.stats()["integrity_failures"])
"""


def stress(cipher: str, page_size: int, seconds: float) -> tuple[int, int, int]:
    """Reads, reads repeated, and alarms of a child that is stopped and continued all the time
    beside programs that burn the processors at different priorities."""
    burn = [
        subprocess.Popen([sys.executable, "-c", f"import os\nos.nice({n})\nwhile True: pass"])
        for n in (0, 5, 10)
    ]
    seed = random.Random(page_size)
    child = subprocess.Popen(
        [sys.executable, "-c", STRESS, cipher, str(page_size), str(seconds)],
        env=support.child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        deadline = time.monotonic() + 60 + 60 * seconds
        while child.poll() is None:
            assert time.monotonic() < deadline, "no end"
            time.sleep(seed.choice((0.0003, 0.003, 0.03)))
            child.send_signal(signal.SIGSTOP)
            time.sleep(seed.choice((0.0001, 0.002)))
            child.send_signal(signal.SIGCONT)
        assert child.returncode == 0
        reads, retries, alarms = map(int, child.stdout.read().split())
        return reads, retries, alarms
    finally:
        for process in (child, *burn):
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@not_sanitized
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals that stop a process")
def test_stopped_and_continued() -> None:
    """In the configuration in which a test of torn pages once failed."""
    reads, retries, alarms = stress("aes-256-xts", 8192, 0.3)
    assert reads > 0 and retries > 0 and alarms == 0


@pytest.mark.full
@not_sanitized
@pytest.mark.parametrize("page_size", support.PAGE_SIZES)
@pytest.mark.parametrize("cipher", support.CIPHERS)
def test_stopped_and_continued_for_long(cipher: str, page_size: int) -> None:
    reads, retries, alarms = stress(cipher, page_size, 8)
    assert reads > 100 and retries > 20 and alarms == 0
