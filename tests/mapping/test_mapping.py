# SPDX-License-Identifier: Apache-2.0
"""Mappings: what the array shows, and what is written back."""

from __future__ import annotations

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
from pyccmem import EncryptedBuffer, EncryptedTensor, errors
from pyccmem import safetensors as sealed

SIZES = (1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK - 1, 9 * BLOCK, 9 * BLOCK + 1)


# ---- values ---------------------------------------------------------------------------------


@every_mechanism
@pytest.mark.parametrize("size", SIZES)
def test_reads_what_is_stored(key: pyccmem.Key, fault: str, size: int) -> None:
    data = random_bytes(size)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with mapping_of(buffer, fault) as array:
        assert isinstance(array, np.ndarray) and not array.flags.writeable
        assert array[-1] == data[-1] and array[0] == data[0]
        assert np.array_equal(array, data) and np.array_equal(array[::-1], data[::-1])


@every_mechanism
@pytest.mark.parametrize("size", SIZES)
def test_writes_are_there_afterwards(key: pyccmem.Key, fault: str, size: int) -> None:
    data = random_bytes(size)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with mapping_of(buffer, fault, "r+") as array:
        array[...] ^= 0x5A
        array[-1] = 7
    data ^= 0x5A
    data[-1] = 7
    assert buffer.read() == data.tobytes()
    assert buffer.verify() == []


@every_mechanism
def test_ciphers_and_page_sizes(key: pyccmem.Key, fault: str, cipher: str, page_size: int) -> None:
    data = random_bytes(9 * page_size + 17)
    buffer = EncryptedBuffer(data.size, key=key, cipher=cipher, page_size=page_size)
    buffer.write(data)
    with mapping_of(buffer, fault, "r+") as array:
        assert np.array_equal(array, data)
        array[5::4096] += 1
        assert np.array_equal(array[5::4096], data[5::4096] + np.uint8(1))
    data[5::4096] += 1
    assert buffer.read() == data.tobytes()


@every_mechanism
@pytest.mark.parametrize("block", [8192, 1 << 18, 1 << 21])
def test_block_sizes(key: pyccmem.Key, fault: str, block: int) -> None:
    data = random_bytes(7 * block + 99)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with mapping_of(buffer, fault, "r+", block=block) as array:
        array[block - 4 : 5 * block + 3] += 1
        assert array[block - 5] == data[block - 5]
    data[block - 4 : 5 * block + 3] += 1
    assert buffer.read() == data.tobytes()


@every_mechanism
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<u2", ">i4", "f2", "f4", "f8", "c16", "M8[s]", "i4,f8", "bfloat16"]
)
def test_dtypes_and_odd_offsets(key: pyccmem.Key, fault: str, dtype: str) -> None:
    if dtype == "bfloat16":
        kind = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    else:
        kind = np.dtype(dtype)
    count = 3 * BLOCK + 5
    raw = random_bytes(count * kind.itemsize)
    if dtype == "?":
        raw &= 1
    buffer = EncryptedBuffer(raw.size + BLOCK, key=key)
    for offset in (0, 1, BLOCK - 3):
        buffer.write(b"\x11" * buffer.nbytes)
        buffer.write(raw, offset)
        mapping = pyccmem.mapping.Mapping(
            buffer,
            offset,
            (count,),
            kind,
            LEAST * BLOCK,
            "r+",
            _block=BLOCK,
            _fault=pyccmem.binding.FAULTS[fault],
        )
        with mapping as array:
            assert array.dtype == kind and array.tobytes() == raw.tobytes()
            array[3], array[-1] = array[4], array[0]
            want = array.tobytes()
        assert buffer.read(offset, raw.size) == want
        # Neighbours in the same pages are as they were.
        assert buffer.read(0, offset) == b"\x11" * offset
        rest = buffer.nbytes - offset - raw.size
        assert buffer.read(offset + raw.size, rest) == b"\x11" * rest


@every_mechanism
def test_views_and_parts_of_a_tensor(key: pyccmem.Key, fault: str) -> None:
    data = np.arange(64 * 300, dtype="f4").reshape(64, 300)
    tensor = EncryptedTensor.from_numpy(data, key=key)
    cases = [
        (tensor, data),
        (tensor.reshape(300, 64), data.reshape(300, 64)),
        (tensor.reshape(-1), data.reshape(-1)),
        (tensor.view("u2"), data.view("u2")),
    ]
    for part, want in cases:
        with mapping_of(part, fault) as array:
            assert array.shape == want.shape and array.dtype == want.dtype
            assert np.array_equal(array, want)
            assert np.array_equal(array.T[::-1], want.T[::-1])
    with tensor.reshape(300, 64).map(mode="r+", window="1MiB") as array:
        array[::7] = -1
    data.reshape(300, 64)[::7] = -1
    assert np.array_equal(tensor[...], data)


@every_mechanism
@pytest.mark.parametrize("how", ["end", "flush", "exception", "close", "eviction", "interrupt"])
def test_ways_to_be_written_back(key: pyccmem.Key, fault: str, how: str) -> None:
    buffer = EncryptedBuffer(10 * BLOCK, key=key)
    mapping = mapping_of(buffer, fault, "r+")
    raised = {"exception": ValueError, "interrupt": KeyboardInterrupt}.get(how)
    try:
        with mapping as array:
            array[10] = 1
            assert buffer.read(10, 1) == b"\0"
            if how == "flush":
                mapping.flush()
                assert buffer.read(10, 1) == b"\1" and array[10] == 1
                array[10] = 2
                mapping.flush()
                assert buffer.read(10, 1) == b"\2"
                array[10] = 1
            elif how == "eviction":
                assert not array[::BLOCK].any() and not array[::BLOCK].any()
                assert buffer.read(10, 1) == b"\1"
            elif how == "close":
                mapping.close()
                mapping.close()
            elif raised:
                raise raised
    except (ValueError, KeyboardInterrupt):
        assert raised
    assert buffer.read(10, 1) == b"\1" and mapping.closed


@every_mechanism
def test_what_was_only_read_is_not_written(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer.from_data(random_bytes(20 * BLOCK), key=key)
    before = buffer.versions.copy()
    with mapping_of(buffer, fault) as array:
        array.sum()
    assert np.array_equal(buffer.versions, before)
    if fault == "sigsegv":
        with mapping_of(buffer, fault, "r+") as array:
            array.sum()
            array[3 * BLOCK + 1] = 1
        assert list(np.nonzero(buffer.versions != before)[0]) == [3]


def test_default_block_and_window(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer.from_data(random_bytes(5 << 20), key=key)
    mapping = buffer.map(window="2MiB")
    with mapping as array:
        assert array.sum() == np.frombuffer(buffer.read(), np.uint8).sum()
        stats = mapping.stats()
    assert stats["window"] == 2 << 20 and stats["peak"] <= 2 << 20
    assert stats["mechanism"] in MECHANISMS and stats["fills"] >= 5 << 20 >> 21


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_nothing(key: pyccmem.Key, shape: tuple[int, ...]) -> None:
    tensor = EncryptedTensor.from_numpy(np.zeros(shape, "f4"), key=key)
    for mode in ("r", "r+"):
        mapping = tensor.map(mode=mode)
        with mapping as array:
            assert array.shape == shape and array.dtype == "f4"
            mapping.prefault()
            with mapping.pin() as pinned:
                assert pinned.size == 0
            assert mapping.stats()["resident"] == 0
        assert mapping.closed


def test_scalar(key: pyccmem.Key) -> None:
    tensor = EncryptedTensor.from_numpy(np.array(2.5), key=key)
    with tensor.map(mode="r+") as array:
        assert array.shape == () and array[()] == 2.5
        array[...] = 3
    assert tensor[()] == 3


# ---- sealed files ---------------------------------------------------------------------------


@every_mechanism
def test_sealed_files(tmp_path: Path, key: pyccmem.Key, fault: str) -> None:
    data = {"a": np.arange(5000, dtype="f4"), "b": random_bytes(3 * 65536 + 1)}
    path = tmp_path / "sealed.safetensors"
    sealed.save_file(data, path, key=key)
    for name, tensor in sealed.load_file(path, key=key).items():
        with mapping_of(tensor, fault) as array:
            assert np.array_equal(array, data[name])
        with pytest.raises(errors.ReadOnlyError):
            tensor.map(mode="r+")


# ---- parts ----------------------------------------------------------------------------------


@every_mechanism
@pytest.mark.parametrize("frames", [LEAST, LEAST + 1, 8, 20])
def test_prefault(key: pyccmem.Key, fault: str, frames: int) -> None:
    data = random_bytes(20 * BLOCK)
    mapping = mapping_of(EncryptedBuffer.from_data(data, key=key), fault, frames=frames)
    with mapping as array:
        mapping.prefault()
        assert 0 < mapping.stats()["resident"] <= frames * BLOCK
        mapping.prefault(slice(10 * BLOCK, 10 * BLOCK + 1))
        faults = mapping.stats()["faults"]
        assert array[10 * BLOCK] == data[10 * BLOCK]
        assert mapping.stats()["faults"] == faults
        mapping.prefault(-1)
        mapping.prefault(slice(None, None, -3))
        mapping.prefault(slice(5, 5))
        assert np.array_equal(array, data)
        mapping.prefault(slice(7 * BLOCK, None))
        assert np.array_equal(array, data)


@every_mechanism
def test_pin(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(20 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    mapping = mapping_of(buffer, fault, "r+", frames=LEAST + 2)
    with mapping as array:
        with mapping.pin(slice(BLOCK, 3 * BLOCK)) as part:
            assert part.size == 2 * BLOCK
            with mapping.pin(slice(BLOCK, BLOCK + 1)), pytest.raises(errors.PlaintextBudgetError):
                mapping.pin(slice(5 * BLOCK, 6 * BLOCK)).__enter__()
            for _ in range(3):
                assert np.array_equal(array, data)
            faults = mapping.stats()["faults"]
            part[0] = data[BLOCK] = 99
            assert mapping.stats()["faults"] == faults
            mapping.flush()
            assert buffer.read(BLOCK, 1) == b"\x63"
            part[0] = data[BLOCK] = 98
            mapping.prefault()
        with mapping.pin(slice(5 * BLOCK, 7 * BLOCK)) as part:
            assert np.array_equal(part, data[5 * BLOCK : 7 * BLOCK])
        with mapping.pin(slice(0, 2 * BLOCK)):
            mapping.close()
    assert buffer.read() == data.tobytes()


@every_mechanism
def test_everything_pinned(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(6 * BLOCK)
    mapping = mapping_of(EncryptedBuffer.from_data(data, key=key), fault, "r+", frames=6)
    with mapping as array, mapping.pin() as part:
        mapping.prefault()
        mapping.prefault(0)
        assert np.array_equal(part, data) and np.array_equal(array, data)


# ---- arrays handed back to pyccmem ----------------------------------------------------------


@every_mechanism
def test_a_mapped_array_as_source(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(40 * BLOCK + 7)
    one = EncryptedBuffer.from_data(data, key=key)
    two = EncryptedBuffer(data.size, key=key)
    tensor = EncryptedTensor.from_numpy(np.zeros(data.size, np.uint8), key=key)
    with watchdog(), mapping_of(one, fault) as array:
        two.write(array)
        assert two.read() == data.tobytes()
        two.write(array[BLOCK - 1 : -5], 3)
        assert two.read(3, 100) == data[BLOCK - 1 : BLOCK + 99].tobytes()
        tensor[...] = array
        assert np.array_equal(tensor[...], data)
        tensor[::3] = array[::3]
        assert np.array_equal(tensor[...], data)
        one.write(array[BLOCK:], 0)  # its own buffer, other pages than those it reads
        copied = EncryptedTensor.from_numpy(array, key=key)
    assert one.verify() == [] and copied.shape == data.shape


@every_mechanism
def test_a_mapped_array_as_target(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(40 * BLOCK + 7)
    one = EncryptedBuffer.from_data(data, key=key)
    two = EncryptedBuffer(data.size, key=key)
    with watchdog(), mapping_of(two, fault, "r+") as array:
        assert one.read_into(array) == data.size
        assert np.array_equal(array, data)
        one.read_into(array[100:BLOCK], 5)
        two.read_into(array[: 20 * BLOCK], BLOCK)  # of the buffer that it maps
    assert two.verify() == []
    with watchdog(), mapping_of(two, fault, "r+") as array:
        one.read_into(array)
    assert two.read() == data.tobytes()


@every_mechanism
def test_a_buffer_written_from_its_own_mapping(key: pyccmem.Key, fault: str) -> None:
    data = random_bytes(40 * BLOCK + 7)
    buffer = EncryptedBuffer.from_data(data, key=key)
    with watchdog(), mapping_of(buffer, fault, "r+") as array:
        buffer.write(array)
        array[5] = data[5] = 1
        buffer.write(array[:BLOCK])
    assert buffer.read() == data.tobytes()
