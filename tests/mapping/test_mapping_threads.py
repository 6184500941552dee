# SPDX-License-Identifier: Apache-2.0
"""Mappings used by many threads at once, and by libraries that know nothing of them.

PYCCMEM_MAPPING_ACCESSES=1000000 sets the accesses of each thread in the stress test."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from mapping_support import (
    BLOCK,
    LEAST,
    MECHANISMS,
    every_mechanism,
    mapping_of,
    random_bytes,
    watchdog,
)

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor

ACCESSES = int(os.environ.get("PYCCMEM_MAPPING_ACCESSES", "2000"))
THREADS = 8
#: Accesses that one call of NumPy makes, without the interpreter's lock.
BATCH = 500
#: Of these in a row lie in one block.
NEAR = 8


class Stress(threading.Thread):
    """Reads and writes the bytes whose number leaves `part`, divided by THREADS."""

    def __init__(self, array: np.ndarray, model: np.ndarray, part: int) -> None:
        super().__init__(daemon=True)
        self.array, self.model, self.part = array, model, part
        self.done = 0
        self.bad: list[int] = []

    def run(self) -> None:
        rng = np.random.default_rng(self.part)
        nblocks = self.array.size // BLOCK
        while self.done < ACCESSES and not self.bad:
            block = np.repeat(rng.integers(0, nblocks, -(-BATCH // NEAR)), NEAR)[:BATCH]
            at = block * BLOCK + rng.integers(0, BLOCK // THREADS, BATCH) * THREADS + self.part
            if rng.random() < 0.5:
                value = rng.integers(0, 256, BATCH, dtype=np.uint8)
                # The same place may come twice: the last one counts, in both.
                self.array[at] = value
                self.model[at] = value
            elif not np.array_equal(self.array[at], self.model[at]):
                self.bad.append(self.done)
            self.done += BATCH


@every_mechanism
@pytest.mark.parametrize("frames", [LEAST, 4 * LEAST])
def test_threads_against_a_model(
    key: pyccmem.Key, fault: str, frames: int, cipher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_bytes(64 * BLOCK)
    buffer = EncryptedBuffer(model.size, key=key, cipher=cipher, page_size=4096)
    buffer.write(model)
    mapping = mapping_of(buffer, fault, "r+", frames=frames)
    with mapping as array:
        threads = [Stress(array, model, part) for part in range(THREADS)]
        for thread in threads:
            thread.start()
        before = -1
        while any(thread.is_alive() for thread in threads):
            threads[-1].join(0.2)
            for thread in threads:
                thread.join(5 if ACCESSES > 10_000 else 1)
            now = sum(thread.done for thread in threads)
            if now == before and any(thread.is_alive() for thread in threads):
                with watchdog(0.1), capsys.disabled():
                    print(f"stalled with {now} accesses done: {mapping.stats()}", flush=True)
                    threading.Event().wait()
            before = now
        counts = mapping.stats()
    assert not [thread.bad for thread in threads if thread.bad]
    assert sum(thread.done for thread in threads) >= THREADS * ACCESSES
    assert counts["peak"] <= frames * BLOCK and counts["evictions"] > 100
    assert buffer.read() == model.tobytes()
    assert not buffer.authenticated or buffer.verify() == []


@every_mechanism
def test_threads_on_one_block(key: pyccmem.Key, fault: str) -> None:
    """All faults at once for the same blocks, in step."""
    buffer = EncryptedBuffer.from_data(random_bytes(32 * BLOCK), key=key)
    data = np.frombuffer(buffer.read(), np.uint8)
    barrier, bad = threading.Barrier(THREADS), []
    with watchdog(), mapping_of(buffer, fault, "r+") as array:

        def work(part: int) -> None:
            for step in range(200):
                barrier.wait()
                at = step * 5 % 32 * BLOCK + part
                if array[at] != data[at]:
                    bad.append((step, part))
                array[at] = data[at]

        threads = [threading.Thread(target=work, args=(part,)) for part in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not bad and buffer.read() == data.tobytes()


@every_mechanism
def test_calls_between_faults(key: pyccmem.Key, fault: str) -> None:
    """flush(), prefault(), pin(), stats(), reads and other mappings, while threads fault."""
    model = random_bytes(64 * BLOCK)
    buffer = EncryptedBuffer.from_data(model, key=key)
    other = EncryptedBuffer.from_data(model, key=key)
    mapping = mapping_of(buffer, fault, "r+", frames=3 * LEAST)
    bad: list[int] = []
    stop = threading.Event()
    with watchdog(), mapping as array:

        def touch(part: int) -> None:
            while not stop.is_set():
                if not np.array_equal(array[part::4], model[part::4]):
                    bad.append(part)
                array[part::4] ^= 1
                model[part::4] ^= 1

        threads = [threading.Thread(target=touch, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for step in range(12):
            mapping.flush()
            mapping.prefault(slice(step % 60 * BLOCK, None))
            at = step * 7 % 60 * BLOCK
            with mapping.pin(slice(at, at + BLOCK)) as part:
                if part.size != BLOCK:
                    bad.append(step)
            mapping.stats()
            buffer.read(at, BLOCK)
            with mapping_of(other, fault) as second:
                second[:: 3 * BLOCK].sum()
        stop.set()
        for thread in threads:
            thread.join()
    assert not bad
    assert buffer.read() == model.tobytes() and buffer.verify() == []


@every_mechanism
def test_closed_while_others_touch(key: pyccmem.Key, fault: str) -> None:
    """close() waits for blocks that are being opened; reads of the buffer go on meanwhile."""
    data = random_bytes(64 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with watchdog():
        for _ in range(50):
            mapping = mapping_of(buffer, fault)
            with mapping as array:
                # Leaves blocks opened ahead under way.
                assert array[: 9 * BLOCK].tobytes() == data[: 9 * BLOCK].tobytes()
    assert pyccmem.stats()["plaintext_resident"] == 0


# ---- libraries ------------------------------------------------------------------------------


@every_mechanism
def test_numpy(key: pyccmem.Key, fault: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    plain = rng.standard_normal((96, 96)) + 20 * np.eye(96)
    tensor = EncryptedTensor.from_numpy(plain, key=key, page_size=4096)
    x = rng.standard_normal((96, 96))
    mapping = mapping_of(tensor, fault)
    with watchdog(), mapping as array:
        assert np.allclose(np.linalg.solve(array, x[0]), np.linalg.solve(plain, x[0]))
        assert np.allclose(np.linalg.inv(array), np.linalg.inv(plain))
        assert np.isclose(np.linalg.norm(array), np.linalg.norm(plain))
        # Far more blocks than the window has are touched by one call of BLAS.
        assert np.allclose(array @ x, plain @ x) and np.allclose(x @ array.T, x @ plain.T)
        assert np.array_equal(np.sort(array, axis=None), np.sort(plain, axis=None))
        if mapping.kernel_access:
            np.save(tmp_path / "saved.npy", array)
            assert np.array_equal(np.load(tmp_path / "saved.npy"), plain)
        else:
            with pytest.raises(OSError):
                np.save(tmp_path / "saved.npy", array)
    with watchdog(), mapping_of(tensor, fault, "r+") as array:
        array.reshape(-1).sort()
        np.add(array, 1, out=array)
        np.matmul(x, x, out=array)
        array[1] = array[0][::-1]
    plain = x @ x
    plain[1] = plain[0][::-1]
    assert np.allclose(tensor[...], plain)


@every_mechanism
def test_torch(key: pyccmem.Key, fault: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    plain = rng.standard_normal((256, 192)).astype("f4")
    x = torch.from_numpy(rng.standard_normal((64, 192)).astype("f4"))
    tensor = EncryptedTensor.from_numpy(plain, key=key, page_size=4096)
    want = torch.nn.functional.linear(x, torch.from_numpy(plain))
    with watchdog(), mapping_of(tensor, fault, "r+") as array:
        weight = torch.from_numpy(array)
        assert torch.allclose(torch.nn.functional.linear(x, weight), want, atol=1e-4)
        weight.mul_(2)
        assert torch.allclose(weight @ x.T, 2 * want.T, atol=1e-3)
        del weight
    assert np.array_equal(tensor[...], 2 * plain)


@every_mechanism
def test_unaligned_loads_and_stores(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(16 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with watchdog(), mapping_of(buffer, fault, "r+", frames=LEAST) as array:
        for skip in (1, 3, 5, 7):
            odd = array[BLOCK - skip : 15 * BLOCK - skip].view("<u8")
            want = data[BLOCK - skip : 15 * BLOCK - skip].view("<u8")
            assert odd.sum() == want.sum()
            odd += 1
            want += 1
            assert np.array_equal(odd, want)
    assert buffer.read() == data.tobytes()


@every_mechanism
def test_moves_within_one_mapping(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(40 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with watchdog(), mapping_of(buffer, fault, "r+") as array:
        base, plain = array.ctypes.data, data.ctypes.data
        for to, source, n in (
            (1, 20 * BLOCK - 7, 15 * BLOCK),
            (BLOCK, 0, 30 * BLOCK + 5),
            (0, BLOCK + 1, 30 * BLOCK),
            (3 * BLOCK - 1, 3 * BLOCK - 9, 100),
        ):
            ctypes.memmove(base + to, base + source, n)
            ctypes.memmove(plain + to, plain + source, n)
        assert np.array_equal(array, data)
    assert buffer.read() == data.tobytes()


def test_two_mappings_at_once(key: pyccmem.Key) -> None:
    """From every mechanism into every other one."""
    data = random_bytes(20 * BLOCK)
    for one in MECHANISMS:
        for two in MECHANISMS:
            source = EncryptedBuffer.from_data(data, key=key)
            target = EncryptedBuffer(data.size, key=key)
            with (
                watchdog(),
                mapping_of(source, one) as read,
                mapping_of(target, two, "r+") as written,
            ):
                written[:] = read
                ctypes.memmove(written.ctypes.data + 5, read.ctypes.data, data.size - 5)
            assert target.read(5, data.size - 5) == data[:-5].tobytes()
