# SPDX-License-Identifier: Apache-2.0
"""load(copy=False): tensors over the bytes of a sealed file where they lie, in memory that others
may have and change. Nothing is copied, nothing is written there, the memory is kept, every change
is noticed."""

from __future__ import annotations

import gc
import mmap
import random
from typing import Any

import numpy as np
import pytest
from support import PAGE_SIZES, in_forked_child, linux_only

import pyccmem
import pyccmem.safetensors as st
from pyccmem import EncryptedTensor, Key, errors

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays() -> Arrays:
    rng = np.random.default_rng(3)
    return {
        "weight": rng.standard_normal((700, 257)).astype(np.float32),
        "ids": np.arange(5),
        "none": np.zeros((0, 4), np.float32),
        "one": np.array(7.5),
    }


def in_memory(data: bytes, skip: int = 0) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data) + skip)
    memory[skip:] = data
    return memory


def address(view: Any) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("seal_names", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("skip", [0, 64, 192])
def test_reads_from_the_bytes_themselves(
    key: Key, page_size: int, seal_names: bool, skip: int
) -> None:
    """At addresses that are no multiples of a page, too, as a shared-memory store has them."""
    wanted = arrays()
    data = st.save(wanted, key=key, page_size=page_size, seal_names=seal_names)
    memory = in_memory(data, skip)
    found = st.load(memoryview(memory)[skip:], key=key, copy=False)
    x = np.random.default_rng(4).standard_normal((3, 257)).astype(np.float32)
    assert list(found) == list(wanted)
    begin = address(memory)
    for name, array in wanted.items():
        tensor = found[name]
        assert np.array_equal(tensor[...], array) and tensor.dtype == array.dtype
        assert tensor.verify() == [] and not tensor.writable
        if array.nbytes:
            assert begin <= address(tensor.buffer.ciphertext) < begin + len(memory)
    own = EncryptedTensor.from_numpy(wanted["weight"], key=key, page_size=page_size)
    assert np.array_equal(pyccmem.linear(x, found["weight"]), pyccmem.linear(x, own))
    with found["weight"].map() as plain:
        assert np.array_equal(plain[600:], wanted["weight"][600:])
    with pytest.raises(errors.ReadOnlyError):
        found["ids"][0] = 1
    copy = found["ids"].copy(key=key)
    copy[0] = 9
    assert memory[skip:] == data, "nothing was written there"


def test_quantized_and_torch_tensors(key: Key) -> None:
    wanted = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    made = EncryptedTensor.from_numpy(wanted, dtype="q8_0", key=key)
    found = st.load(in_memory(st.save({"w": made}, key=key)), key=key, copy=False)["w"]
    assert np.array_equal(found[...], made[...])
    torch = pytest.importorskip("torch", reason="needs the [torch] extra")
    import pyccmem.torch

    data = pyccmem.torch.save({"w": torch.from_numpy(wanted)}, key=key)
    memory = in_memory(data)
    tensor = pyccmem.torch.load(memory, key=key, copy=False)["w"]
    assert torch.equal(tensor.decrypt(), torch.from_numpy(wanted))
    memory[data.index(bytes(tensor.core.buffer.ciphertext[:64]))] ^= 1
    with pytest.raises(errors.IntegrityError):
        tensor.decrypt()


def test_every_change_is_noticed(key: Key) -> None:
    """Wherever the bytes are changed: before they are loaded, while they are there, and back."""
    wanted = arrays()
    data = st.save(wanted, key=key)
    memory = in_memory(data)
    seed = random.Random(5)
    held = st.load(memory, key=key, copy=False)
    noticed = 0
    for _ in range(60):
        at, bit = seed.randrange(len(data)), 1 << seed.randrange(8)
        memory[at] ^= bit
        outcomes = set()
        for again in (False, True):
            try:
                found = st.load(memory, key=key, copy=False) if again else held
                assert all(np.array_equal(found[name][...], wanted[name]) for name in wanted)
            except (errors.IntegrityError, errors.FileFormatError, errors.InvalidKeyError) as error:
                outcomes.add(type(error).__name__)
                noticed += 1
        # Records and header were copied: only pages still matter to what was loaded before.
        assert outcomes, f"byte {at}"
        memory[at] ^= bit
        assert all(np.array_equal(held[name][...], wanted[name]) for name in wanted)
    assert noticed >= 60


def test_records_are_ones_own(key: Key) -> None:
    """Header and table may become anything after loading: what was checked is a copy."""
    wanted = arrays()
    data = st.save(wanted, key=key)
    memory = in_memory(data)
    held = st.load(memory, key=key, copy=False)
    pages = set()
    for name, array in wanted.items():
        if array.nbytes:
            view = held[name].buffer.ciphertext
            start = address(view) - address(memory)
            pages.update(range(start, start + len(view)))
    for at in range(len(data)):
        if at not in pages:
            memory[at] = 0xEE
    assert all(np.array_equal(held[name][...], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kept", ["tensor", "view", "call", "nothing", "a copy"])
def test_the_memory_is_kept_as_long_as_it_is_used(key: Key, kept: str) -> None:
    memory = in_memory(st.save(arrays(), key=key))
    found = st.load(memory, key=key, copy=kept == "a copy")
    holder: Any = None
    if kept in ("tensor", "a copy"):
        holder = found["ids"]
    elif kept == "view":
        holder = found["ids"].buffer.ciphertext
        found["ids"].close()
    elif kept == "call":  # what another thread has while the tensor is closed
        holder = found["ids"].buffer._opened()
        found["ids"].close()
    del found
    gc.collect()
    if kept in ("nothing", "a copy"):
        memory.close()
        return
    with pytest.raises(BufferError):
        memory.close()
    del holder
    gc.collect()
    memory.close()


@pytest.mark.parametrize("kept", ["tensor", "view", "all"])
def test_a_cycle_with_everything_in_it_is_collected(key: Key, kept: str) -> None:
    """The collector clears what is in a cycle in any order, a memoryview before its users too."""
    memory = in_memory(st.save(arrays(), key=key))
    for _ in range(20):
        given = memoryview(memory)[:]
        found = st.load(given, key=key, copy=False)
        view = found["ids"].buffer.ciphertext
        cycle: list[Any] = {"tensor": [found], "view": [view], "all": [given, view, found]}[kept]
        cycle.append(cycle)
        del given, found, view, cycle
        gc.collect()
    memory.close()


def test_what_needs_a_copy(key: Key) -> None:
    data = st.save(arrays(), key=key)
    room = np.zeros(len(data) + 128, np.uint8)
    at = -room.ctypes.data % 64
    for skip in (0, 8):
        place = room[at + skip : at + skip + len(data)]
        place[:] = np.frombuffer(data, np.uint8)
        found = st.load(place, key=key, copy=None)
        assert found["ids"][4] == 4
        if skip:
            with pytest.raises(errors.ArgumentError, match="multiple of 64"):
                st.load(place, key=key, copy=False)
            place[:] = 0
            assert found["one"][...] == 7.5, "a copy"
        else:
            place[:] = 0
            with pytest.raises(errors.IntegrityError):
                found["one"][...]
    with pytest.raises(errors.ArgumentTypeError, match="copy"):
        st.load(data, key=key, copy="no")  # type: ignore[arg-type]


@linux_only
def test_not_in_a_forked_child(key: Key) -> None:
    found = st.load(in_memory(st.save(arrays(), key=key)), key=key, copy=False)

    def child() -> None:
        with pytest.raises(errors.ForkError):
            found["ids"][0]
        found["ids"].close()

    in_forked_child(child)
    assert found["ids"][1] == 1


def test_calls_that_the_library_refuses(key: Key) -> None:
    from pyccmem.binding import ffi, lib
    from pyccmem.binding.owned import FILE
    from pyccmem.keys import native_key

    out = FILE.cell()
    cipher = pyccmem.binding.CIPHERS["aegis-128x2"]
    assert lib.ccmem_file_new(native_key(key), cipher, 4096, 0, 0, 0, out) == lib.CCMEM_OK
    file = FILE.own(out)
    memory = mmap.mmap(-1, 8192)
    pages, records, name = ffi.from_buffer(memory), bytes(24), bytes(16)
    store = bytes(1024)

    def add(*changed: Any) -> int:
        given = [file, pages, 4096, name, records, store]
        for at, value in changed:
            given[at] = value
        return int(lib.ccmem_file_add_lent(*given))

    null, refused = ffi.NULL, lib.CCMEM_ERR_ARGUMENT
    for at in (0, 1, 3, 4, 5):
        assert add((at, null)) == refused
    assert add((1, ffi.cast("uint8_t *", pages) + 32)) == refused
    assert add() == refused, "version 0"
    assert add((2, 2**63)) == lib.CCMEM_ERR_NOMEM
