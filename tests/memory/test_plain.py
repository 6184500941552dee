# SPDX-License-Identifier: Apache-2.0
"""Memory for plaintext that is handed out: zeroed, aligned, wiped, reused, kept to this process."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import sys
import threading

import numpy as np
import pytest
import support
from support import linux_only, not_sanitized

import pyccmem
from pyccmem import errors
from pyccmem.binding import wiped

#: Around every border between classes of blocks, and between pages and huge pages.
SIZES = sorted(
    {1, 2, 15}
    | {n + d for n in (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536) for d in (-1, 0, 1)}
    | {65536 - 4096 + d for d in (-1, 0, 1)}
    | {(4 << 20) + d for d in (-4097, -4096, -1, 0, 1)}
    | {(1 << 20) + 1, (8 << 20) + 12345}
)


def stats() -> dict[str, int]:
    return wiped.stats()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def balanced() -> object:
    """Every test gives back what it took."""
    gc.collect()
    before = stats()
    yield
    gc.collect()
    after = stats()
    assert after["plain_blocks"] == before["plain_blocks"]
    assert after["plain_in_use"] == before["plain_in_use"]


@pytest.mark.parametrize("nbytes", SIZES)
def test_blocks_are_zero_aligned_and_zero_again(nbytes: int) -> None:
    for _ in range(3):
        blocks = [wiped.empty(nbytes, np.uint8) for _ in range(5)]
        for array in blocks:
            assert array.shape == (nbytes,) and array.flags.c_contiguous and array.flags.writeable
            assert address(array) % 64 == 0
            assert not array.any()
        ends = sorted((address(array), address(array) + nbytes) for array in blocks)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
        for array in blocks:
            array[:] = 0xC3
        del array, blocks


@not_sanitized
@pytest.mark.parametrize("nbytes", [3, 64, 1536, 16384, 100_000, 5 << 20])
def test_a_block_is_wiped_when_its_last_view_dies(nbytes: int) -> None:
    array = wiped.empty(nbytes, np.uint8)
    array[:] = 0x5A
    where = address(array)
    view = array[1:][::-1]
    buffer = memoryview(view[:1])
    del array
    assert ctypes.string_at(where, nbytes) == b"\x5a" * nbytes
    del view
    assert ctypes.string_at(where, nbytes) == b"\x5a" * nbytes
    buffer.release()
    del buffer
    assert ctypes.string_at(where, nbytes) == bytes(nbytes)  # the pool keeps the memory


def test_shapes_and_dtypes() -> None:
    array = wiped.empty((3, 4, 5), ">f8")
    assert array.shape == (3, 4, 5) and array.dtype == np.dtype(">f8")
    assert wiped.empty((), "i2").shape == ()
    for shape in ((0,), (3, 0), (0, 10**6)):
        assert wiped.empty(shape, "f4").shape == shape
    with pytest.raises(errors.ArgumentTypeError, match="objects"):
        wiped.empty(3, object)
    with pytest.raises(errors.OutOfMemoryError, match="plaintext"):
        wiped.empty((1 << 62,), "u1")
    with pytest.raises(errors.OutOfMemoryError, match="plaintext"):
        wiped.empty((1 << 40, 1 << 40), "f8")


def test_stats_count_blocks_and_bytes() -> None:
    before = stats()
    assert set(before) == {"plain_blocks", "plain_in_use", "plain_peak", "plain_kept"}
    assert before.items() <= pyccmem.stats().items()
    small, large = wiped.empty(1000, "u1"), wiped.empty(1 << 20, "u1")
    during = stats()
    assert during["plain_blocks"] == before["plain_blocks"] + 2
    taken = during["plain_in_use"] - before["plain_in_use"]
    assert 1000 + (1 << 20) <= taken <= 1024 + (1 << 20)
    assert during["plain_peak"] >= during["plain_in_use"]
    del small, large
    after = stats()
    assert after["plain_in_use"] == before["plain_in_use"]
    assert after["plain_kept"] >= 1 << 20
    assert after["plain_peak"] == during["plain_peak"]


def test_large_blocks_are_reused_and_kept_within_bounds() -> None:
    array = wiped.empty(3 << 20, "u1")
    where = address(array)
    del array
    again = wiped.empty(3 << 20, "u1")
    assert address(again) == where
    del again
    for size in range(1 << 20, 64 << 20, 5 << 20):
        wiped.empty(size, "u1")
        assert stats()["plain_kept"] <= 256 << 20
    held = stats()["plain_kept"]
    huge = wiped.empty(300 << 20, "u1")  # too large to keep: gone at once, and the others stay
    huge[-1] = 1
    del huge
    assert stats()["plain_kept"] == held


def test_many_blocks_of_many_sizes_keep_their_bytes() -> None:
    """Random taking and dropping, each block filled with its own byte: no two may overlap."""
    seed = random.Random(5)
    held: list[tuple[np.ndarray, int]] = []
    for step in range(4000):
        if held and seed.random() < 0.5:
            array, fill = held.pop(seed.randrange(len(held)))
            assert (array == fill).all()
        else:
            size = seed.choice((1, 60, 64, 200, 700, 1500, 4096, 9000, 20_000, 70_000))
            array = wiped.empty(size, "u1")
            assert not array.any()
            fill = step % 255 + 1
            array[:] = fill
            held.append((array, fill))
    for array, fill in held:
        assert (array == fill).all()


def test_threads_share_the_pool() -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        seed = random.Random(number)
        held: list[np.ndarray] = []
        for _ in range(1500):
            if len(held) > 8:
                array = held.pop(seed.randrange(len(held)))
                if not (array == number).all():
                    failures.append("overlap")
            array = wiped.empty(seed.choice((10, 300, 5000, 40_000, 200_000)), "u1")
            if array.any():
                failures.append("not zero")
            array[:] = number
            held.append(array)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@linux_only
@pytest.mark.parametrize("nbytes", [1000, 100_000, 8 << 20])
def test_blocks_are_left_out_of_dumps_and_wiped_on_fork(nbytes: int) -> None:
    """VmFlags dd (not dumped) and wf (a child finds zeros)."""
    array = wiped.empty(nbytes, "u1")
    where, flags = address(array), None
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            head = line.split(maxsplit=1)[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(part, 16) for part in head.split("-"))
                inside = start <= where and where + nbytes <= end
            elif head == "VmFlags:" and inside:
                flags = set(line.split()[1:])
    assert flags is not None and {"dd", "wf"} <= flags


@linux_only
@not_sanitized
def test_a_forked_child_finds_zeros_and_may_drop_them() -> None:
    kept = [wiped.empty(1000, "u1"), wiped.empty(3 << 20, "u1")]  # the only references
    kept[0][:] = 1
    kept[1][:] = 2

    def child() -> None:
        assert not kept[0].any() and not kept[1].any()
        kept[0][:] = 9
        copies = [wiped.empty(n, "u1") for n in (1000, 3 << 20)]
        for array in copies:
            assert not array.any()
            array[:] = 7
        assert stats()["plain_blocks"] == 2
        del array, copies
        kept.clear()
        gc.collect()
        assert stats()["plain_blocks"] == 0
        again = [wiped.empty(1000, "u1") for _ in range(100)]
        for number, array in enumerate(again):
            assert not array.any()
            array[:] = number
        assert [int(array[999]) for array in again] == list(range(100))

    support.in_forked_child(child)
    small, large = kept
    assert (small == 1).all() and (large == 2).all()


@not_sanitized
def test_taking_and_dropping_does_not_grow_the_process() -> None:
    def cycle(times: int) -> None:
        for i in range(times):
            array = wiped.empty(1 << (i % 18), "u1")
            array[:] = 1

    cycle(2000)
    before = support.status_field("VmRSS") if sys.platform == "linux" else 0
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    cycle(20_000)
    if sys.platform == "linux":
        assert support.status_field("VmRSS") - before < 2 << 20
        assert len(os.listdir("/proc/self/fd")) == descriptors


@not_sanitized
def test_out_of_memory_is_an_error_and_loses_nothing() -> None:
    support.check_with_little_memory(
        """
import resource
import numpy as np
from pyccmem import errors
from pyccmem.binding import wiped
kept = wiped.empty(1000, "u1")
kept[:] = 5
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
before = wiped.stats()
for _ in range(3):
    try:
        wiped.empty(1 << 30, "u1")
    except errors.OutOfMemoryError as error:
        assert isinstance(error, MemoryError) and "1073741824 bytes" in str(error)
    else:
        raise AssertionError("more memory than the limit allows")
assert wiped.stats() == before and (kept == 5).all()
assert not wiped.empty(1 << 20, "u1").any()
"""
    )
