# SPDX-License-Identifier: Apache-2.0
"""Sealed files of thousands of tensors, each with a subkey of its own that is derived when it is
used: in little locked memory, from many threads, and with pages of one tensor in place of
another's."""

from __future__ import annotations

import contextlib
import random
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from support import check_python, not_sanitized

import pyccmem
from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.binding import lib

PAGE = 4096
#: More than there are entries for subkeys, so that each use may be one that derives.
MANY = 700


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "many.safetensors"
    with Key.from_bytes(bytes(range(32))) as key:
        sealed.save_file(
            {f"t{i}": np.full(PAGE, i % 251, "u1") for i in range(MANY)}, path, key=key
        )
    return path


def test_all_tensors_are_read_in_any_order(many: Path, key: Key) -> None:
    slots = lib.ccmem_secret_slots()
    tensors = sealed.load_file(many, key=key)
    assert lib.ccmem_secret_slots() - slots <= 3, "a data key and the table, for all of them"
    order = list(range(MANY)) * 2
    random.Random(1).shuffle(order)
    for i in order:
        assert (tensors[f"t{i}"][...] == i % 251).all()
    assert all(tensor.verify() == [] for tensor in list(tensors.values())[::50])
    for tensor in tensors.values():
        tensor.close()
    assert lib.ccmem_secret_slots() == slots


@pytest.mark.parametrize("seed", range(2))
def test_threads_that_take_each_others_entries(many: Path, key: Key, seed: int) -> None:
    """Each reads what it should, though subkeys come and go under it; and a page of one tensor in
    the place of another's, with that one's tag, is never taken for good."""
    tensors = list(sealed.load_file(many, key=key).values())
    one, other = tensors[:2]
    swapped = bytearray(many.read_bytes())
    first, second = (bytes(tensor.buffer.ciphertext) for tensor in (one, other))
    at, to = swapped.find(first), swapped.find(second)
    assert at > 0 and to > 0
    swapped[at : at + PAGE], swapped[to : to + PAGE] = second, first
    path = many.with_name("swapped.safetensors")
    path.write_bytes(swapped)
    bad = sealed.load_file(path, key=key)
    tensors[:2] = []
    wrong: list[object] = []
    stop = threading.Event()

    def read(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        for _ in range(1500):
            i = rng.randrange(len(tensors))
            try:
                got = tensors[i][...]
            except errors.IntegrityError as error:
                wrong.append(error)
                return
            if not (got == (i + 2) % 251).all():
                wrong.append((i, got))

    def tamper() -> None:
        tried = 0
        while not stop.is_set() or tried < 100:
            tried += 1
            for name in ("t0", "t1"):
                with contextlib.suppress(errors.IntegrityError):
                    wrong.append(bad[name][...])

    readers = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    tampering = threading.Thread(target=tamper)
    for thread in (*readers, tampering):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    tampering.join()
    assert not wrong
    assert [(bad[name].verify()) for name in ("t0", "t1", "t2")] == [[0], [0], []]


def test_products_with_many_tensors(tmp_path: Path, key: Key) -> None:
    rng = np.random.default_rng(5)
    plain = {f"w{i}": rng.standard_normal((64, 64), dtype=np.float32) for i in range(300)}
    sealed.save_file(plain, tmp_path / "w.safetensors", key=key)
    x = rng.standard_normal((1, 64), dtype=np.float32)
    tensors = sealed.load_file(tmp_path / "w.safetensors", key=key)
    for _ in range(2):
        for name, tensor in tensors.items():
            assert np.allclose(pyccmem.linear(x, tensor), x @ plain[name].T, atol=1e-4)


def test_one_tensor_closed_beside_others(many: Path, key: Key) -> None:
    tensors = sealed.load_file(many, key=key)
    kept, gone = tensors["t5"], tensors["t6"]
    assert (gone[...] == 6).all() and (kept[...] == 5).all()
    gone.close()
    with pytest.raises(errors.ClosedError):
        gone[0]
    key.close()
    assert (kept[...] == 5).all(), "the file's data key stays as long as one of its tensors"


@not_sanitized
def test_a_container_with_little_locked_memory(many: Path) -> None:
    """Thousands of tensors, and what they take beside is no more than a few mappings."""
    check_python(
        textwrap.dedent(
            """
            import ctypes, resource, sys, pyccmem
            from pyccmem import Key, safetensors as sealed
            path, number = sys.argv[1], int(sys.argv[2])
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
            capabilities = (ctypes.c_uint32 * 6)()
            assert libc.capget(header, capabilities) == 0
            capabilities[0] &= ~(1 << 14)  # of root: CAP_IPC_LOCK, which knows no limit
            assert libc.capset(header, capabilities) == 0
            def mappings():
                with open("/proc/self/maps") as file:
                    return sum(1 for _ in file)
            buffers = []
            try:
                with Key.from_bytes(bytes(range(32))) as key:
                    for _ in range(1000):
                        buffers.append(pyccmem.EncryptedBuffer(9, key=key))
            except pyccmem.errors.LockedMemoryError:
                buffers.clear()
            else:
                raise SystemExit("there is no limit")
            with Key.from_bytes(bytes(range(32))) as key:
                before = mappings()
                files = [sealed.load_file(path, key=key) for _ in range(5)]
            assert mappings() - before < 400, mappings() - before
            for tensors in files:
                assert all((tensors[f"t{i}"][...] == i % 251).all() for i in range(0, number, 7))
            """
        ),
        str(many),
        str(MANY),
    )
