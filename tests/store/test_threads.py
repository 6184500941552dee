# SPDX-License-Identifier: Apache-2.0
"""Several threads on one buffer: no torn page, no lost write, an orderly close."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from support import check_python, linux_only, run_threads

import pyccmem
from pyccmem import EncryptedBuffer, errors

THREADS = 8


@pytest.fixture(params=[1, 3])
def native_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs a test with native threads off and on."""
    before = pyccmem.cpu_info()["threads"]
    pyccmem.set_num_threads(request.param)
    yield request.param
    pyccmem.set_num_threads(before)


def test_no_reader_sees_a_torn_page(
    key: pyccmem.Key, cipher: str, page_size: int, native_threads: int
) -> None:
    """4 writers fill pages with one repeated number, 4 readers find each page uniform. Writers go
    on until the readers are done, however long a loaded machine lets either of them wait."""
    pages, rounds = 4, 200
    words = page_size // 8
    reading = threading.Event()
    reading.set()
    with EncryptedBuffer(pages * page_size, key=key, cipher=cipher, page_size=page_size) as buffer:
        writes, reads = [0] * THREADS, [0] * THREADS

        def writer(index: int) -> None:
            seed, number = random.Random(index), index
            while reading.is_set() or writes[index] < 4:
                number += THREADS
                first = seed.randrange(pages)
                count = seed.randint(1, pages - first)
                buffer.write(np.full(count * words, number, np.uint64), first * page_size)
                writes[index] += 1

        def reader(index: int) -> None:
            seed = random.Random(index)
            out = np.empty(pages * words, np.uint64)
            while reads[index] < rounds:
                first = seed.randrange(pages)
                count = seed.randint(1, pages - first)
                part = out[: count * words]
                buffer.read_into(part, first * page_size)
                for page in part.reshape(count, words):
                    assert (page == page[0]).all(), f"torn: {np.unique(page)}"
                reads[index] += 1
                at, n = seed.randrange(words - 9), seed.randint(1, 8)
                some = np.frombuffer(buffer.read(first * page_size + 8 * at, 8 * n), np.uint64)
                assert (some == some[0]).all(), f"torn inside one read: {some}"

        def readers_last(index: int) -> None:
            try:
                reader(index)
            finally:
                done.append(index)
                if len(done) == THREADS // 2:
                    reading.clear()

        done: list[int] = []
        run_threads(
            [lambda i=i: writer(i) for i in range(THREADS // 2)]
            + [lambda i=i: readers_last(i) for i in range(THREADS // 2, THREADS)]
        )
        assert min(writes[: THREADS // 2]) >= 4 and min(reads[THREADS // 2 :]) == rounds
        total = int(buffer.versions.sum())
        assert total == buffer.stats()["pages_sealed"]
        assert buffer.stats()["writes"] == sum(writes)


def test_partial_writes_of_one_page_are_not_lost(
    key: pyccmem.Key, cipher: str, native_threads: int
) -> None:
    """Each thread owns every eighth 24-byte slot of the same pages: read-modify-write must hold."""
    slots, rounds = 8 * 60, 12
    with EncryptedBuffer(slots * 24, key=key, cipher=cipher) as buffer:

        def work(index: int) -> None:
            for number in range(1, rounds + 1):
                for slot in range(index, slots, THREADS):
                    buffer.write(bytes([index, number]) * 12, slot * 24)
                for slot in range(index, slots, THREADS):
                    assert buffer.read(slot * 24, 24) == bytes([index, number]) * 12

        run_threads([lambda i=i: work(i) for i in range(THREADS)])
        want = b"".join(bytes([slot % THREADS, rounds]) * 12 for slot in range(slots))
        assert buffer.read() == want


def test_disjoint_ranges(key: pyccmem.Key, cipher: str, native_threads: int) -> None:
    """Large unaligned ranges side by side, so that neighbours share their border pages."""
    share = 1_000_003
    with EncryptedBuffer(THREADS * share, key=key, cipher=cipher, page_size=8192) as buffer:

        def work(index: int) -> None:
            seed = random.Random(index)
            for _ in range(3):
                data = seed.randbytes(share)
                buffer.write(data, index * share)
                assert buffer.read(index * share, share) == data
            kept[index] = data

        kept = [b""] * THREADS
        run_threads([lambda i=i: work(i) for i in range(THREADS)])
        assert buffer.read() == b"".join(kept)


def test_close_while_others_use_it(key: pyccmem.Key) -> None:
    """Users get right bytes until they get ClosedError, and nothing else."""
    for attempt in range(20):
        buffer = EncryptedBuffer(300_000, key=key)
        data = random.Random(attempt).randbytes(300_000)
        buffer.write(data)

        def use(index: int, buffer: EncryptedBuffer = buffer, data: bytes = data) -> None:
            try:
                while True:
                    if index % 2:
                        assert buffer.read(1000 * index, 200_000) == data[1000 * index :][:200_000]
                    else:
                        buffer.write(data[5000:9000], 5000)
                    buffer.stats()
                    assert buffer.versions.min() >= 1
            except errors.ClosedError:
                pass

        def close(buffer: EncryptedBuffer = buffer, attempt: int = attempt) -> None:
            time.sleep(0.002 * (attempt % 5))
            buffer.close()

        run_threads([lambda i=i: use(i) for i in range(THREADS - 1)] + [close])
        with pytest.raises(errors.ClosedError):
            buffer.read()


def test_two_threads_may_close(key: pyccmem.Key) -> None:
    for _ in range(200):
        buffer = EncryptedBuffer(4096, key=key)
        other = pyccmem.Key.generate()
        run_threads([buffer.close, buffer.close, other.close, other.close])


def test_buffers_made_while_their_key_is_closed() -> None:
    """Either a working buffer or ClosedError, never a buffer under another key."""
    for _ in range(50):
        root = pyccmem.Key.generate()
        made: list[EncryptedBuffer] = []

        def make(root: pyccmem.Key = root, made: list[EncryptedBuffer] = made) -> None:
            try:
                while True:
                    made.append(EncryptedBuffer(100, key=root))
            except errors.ClosedError:
                pass

        run_threads([make, make, make, root.close])
        for buffer in made:
            buffer.write(b"works")
            assert buffer.read(0, 5) == b"works"
            buffer.close()


def test_the_interpreter_runs_during_a_long_read(key: pyccmem.Key) -> None:
    """The GIL is released: Python code counts on while one native call works."""
    nbytes = 64 << 20
    with EncryptedBuffer(nbytes, key=key) as buffer:
        out = np.empty(nbytes, np.uint8)
        buffer.read_into(out)
        done, ticks = threading.Event(), 0

        def read() -> None:
            for _ in range(3):
                buffer.write(out)
                buffer.read_into(out)
            done.set()

        thread = threading.Thread(target=read)
        interval = 0.0005
        thread.start()
        while not done.is_set():
            time.sleep(interval)
            ticks += 1
        thread.join()
        assert ticks > 5, f"only {ticks} ticks while 6 x 64 MiB were read and written"


def test_number_of_threads_does_not_change_the_result(key: pyccmem.Key, cipher: str) -> None:
    before = pyccmem.cpu_info()["threads"]
    data = random.Random(5).randbytes(9_000_001)
    try:
        with EncryptedBuffer(len(data), key=key, cipher=cipher) as buffer:
            for count in (1, 2, 3, 7, 16):
                pyccmem.set_num_threads(count)
                buffer.write(data)
                for reading in (1, 2, 5):
                    pyccmem.set_num_threads(reading)
                    assert buffer.read() == data
                    assert buffer.read(4095, 8_000_003) == data[4095 : 4095 + 8_000_003]
    finally:
        pyccmem.set_num_threads(before)


@pytest.mark.parametrize("bad", [0, -1, 257, 2**40, 1.5, "two", None, True])
def test_wrong_thread_counts_are_refused(bad: object) -> None:
    before = pyccmem.cpu_info()["threads"]
    with pytest.raises(errors.PyccmemError, match=r"(?i)thread|int"):
        pyccmem.set_num_threads(bad)
    assert pyccmem.cpu_info()["threads"] == before


AWAY = """
import os, sys
import numpy as np, pyccmem
from pyccmem import EncryptedTensor, Key
first, second = sorted(os.sched_getaffinity(0))[:2]
pyccmem.set_num_threads(2)
before = {*os.listdir("/proc/self/task")}
tensor = EncryptedTensor.from_numpy(np.ones(1 << 22, np.uint8), key=Key.generate())
tensor[...]
workers = [int(task) for task in {*os.listdir("/proc/self/task")} - before]
assert workers, "no worker was started"
for here, there in ((first, second), (second, first)):
    os.sched_setaffinity(0, {here})
    for _ in range(3):
        tensor[...]
    places = [os.sched_getaffinity(worker) for worker in workers]
    assert all(here not in place and there in place for place in places), (here, places)
# What somebody else decides stays, as far as it can.
os.sched_setaffinity(workers[0], {second})
os.sched_setaffinity(0, {first})
tensor[...]
assert os.sched_getaffinity(workers[0]) == {second}
os.sched_setaffinity(0, {second})
tensor[...]
assert os.sched_getaffinity(workers[0]) == {second}
"""


@linux_only
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="one processor",
)
def test_workers_keep_off_the_callers_processor() -> None:
    check_python(AWAY)
