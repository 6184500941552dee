# SPDX-License-Identifier: Apache-2.0
"""Mappings: what is refused, and how they end."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import signal
import weakref

import numpy as np
import pytest
from mapping_support import (
    BLOCK,
    LEAST,
    MECHANISMS,
    assert_died,
    check,
    every_mechanism,
    mapping_of,
    random_bytes,
    run,
)
from secret_search import mappings
from support import linux_only

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, errors

# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"mode": "w"}, errors.ArgumentError),
        ({"mode": None}, errors.ArgumentError),
        ({"mode": "R"}, errors.ArgumentError),
        ({"window": 0}, errors.ArgumentError),
        ({"window": -1}, errors.ArgumentError),
        ({"window": LEAST * 4096 - 1}, errors.ArgumentError),
        ({"window": "12 parsecs"}, errors.ArgumentError),
        ({"window": ""}, errors.ArgumentError),
        ({"window": None}, errors.ArgumentTypeError),
        ({"window": 1.5}, errors.ArgumentTypeError),
        ({"window": True}, errors.ArgumentTypeError),
        ({"window": 1 << 70}, errors.PyccmemError),
    ],
    ids=str,
)
def test_wrong_arguments(
    key: pyccmem.Key, arguments: dict[str, object], kind: type[Exception]
) -> None:
    buffer = EncryptedBuffer(100 * 4096, key=key, page_size=4096)
    with pytest.raises(kind):
        buffer.map(**arguments)  # type: ignore[arg-type]


def test_the_least_window(key: pyccmem.Key, page_size: int) -> None:
    buffer = EncryptedBuffer(20 * page_size, key=key, page_size=page_size)
    with pytest.raises(errors.ArgumentError, match=str(LEAST * page_size)):
        buffer.map(window=LEAST * page_size - 1)
    with buffer.map(window=LEAST * page_size) as array:
        assert not array.any()
    small = EncryptedBuffer(2 * page_size, key=key, page_size=page_size)
    with small.map(window=2 * page_size) as array:
        assert not array.any()


def test_used_once(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer(100, key=key)
    mapping = buffer.map()
    with mapping as array, pytest.raises(errors.ClosedError), mapping:
        pass
    del array
    for call in (
        mapping.__enter__,
        mapping.flush,
        mapping.prefault,
        lambda: mapping.pin().__enter__(),
    ):
        with pytest.raises(errors.ClosedError):
            call()
    assert mapping.closed and mapping.stats()["resident"] == 0
    assert "closed" in repr(mapping)


def test_repr_pickle_copy(key: pyccmem.Key) -> None:
    tensor = EncryptedTensor.from_numpy(np.zeros((2, 3), "f4"), key=key, name="layer")
    mapping = tensor.map(mode="r+")
    text = repr(mapping)
    assert "layer" in text and "(2, 3)" in text and "float32" in text and "open" in text
    assert mapping.mode == "r+"
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(errors.NotPicklableError):
            call(mapping)
    mapping.close()


def test_closed_buffer(key: pyccmem.Key) -> None:
    data = random_bytes(10 * BLOCK)
    buffer = EncryptedBuffer.from_data(data, key=key)
    mapping = mapping_of(buffer, mode="r+")
    with mapping as array:
        with contextlib.suppress(errors.PyccmemError):
            buffer.close()
        assert np.array_equal(array, data)
        array[1] = 1
    buffer.close()
    with pytest.raises(errors.ClosedError):
        buffer.map()


def test_conflicts(key: pyccmem.Key) -> None:
    tensor = EncryptedTensor.from_numpy(np.arange(1000), key=key)
    with tensor.map() as one, tensor.map() as two:
        assert np.array_equal(one, two)
        with pytest.raises(errors.MappingConflictError):
            tensor.map(mode="r+")
    with tensor.map(mode="r+") as one:
        for mode in ("r", "r+"):
            with pytest.raises(errors.MappingConflictError):
                tensor.map(mode=mode)
    tensor.map(mode="r+").close()


@linux_only
@every_mechanism
def test_the_range_is_neither_dumped_nor_inherited(key: pyccmem.Key, fault: str) -> None:
    with EncryptedBuffer(4 * LEAST * BLOCK, key=key) as buffer, mapping_of(buffer, fault) as array:
        assert array[0] == 0
        first = array.ctypes.data
        parts = [m for m in mappings(os.getpid()) if first <= m.start < first + array.nbytes]
        assert parts and all({"dd", "dc"} <= part.flags for part in parts), parts


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ("a", errors.IndexingError),
        ([1, 2], errors.IndexingError),
        (None, errors.IndexingError),
        (True, errors.IndexingError),
        (5000, errors.IndexingError),
        ((..., 0, ...), errors.IndexingError),
        ((0, 0, 0), errors.IndexingError),
        (1.5, errors.IndexingError),
    ],
    ids=repr,
)
def test_wrong_indices(key: pyccmem.Key, index: object, kind: type[Exception]) -> None:
    mapping = EncryptedTensor.from_numpy(np.zeros((10, 10)), key=key).map()
    with mapping:
        with pytest.raises(kind):
            mapping.prefault(index)
        with pytest.raises(kind), mapping.pin(index):
            pass


# ---- the end --------------------------------------------------------------------------------


@every_mechanism
def test_objects_go(key: pyccmem.Key, fault: str) -> None:
    buffer = EncryptedBuffer.from_data(random_bytes(9 * BLOCK), key=key)
    reserved = pyccmem.stats()["plaintext_reserved"]
    mapping = mapping_of(buffer, fault, "r+")
    array = mapping.__enter__()
    array[0] = 77
    gone = weakref.ref(mapping)
    del mapping
    gc.collect()
    assert gone() is None
    array[8 * BLOCK] = 78  # the array keeps the addresses and what answers there
    del array
    gc.collect()
    assert buffer.read(0, 1) == b"\x4d" and buffer.read(8 * BLOCK, 1) == b"\x4e"
    assert pyccmem.stats()["plaintext_reserved"] == reserved
    mapping_of(buffer, fault, "r+").close()


@every_mechanism
def test_a_late_use_ends_the_process(fault: str) -> None:
    done = run(
        """
        data = random_bytes(20 * 4096)
        with mapping_of(EncryptedBuffer.from_data(data, key=key), fault) as array:
            part = array[4096:]
            assert array.sum() and part[0] == data[4096]
        keep = [bytearray(b"other" * 20000) for _ in range(50)]
        print("before", flush=True)
        print(part[0], part[-1], flush=True)
        """,
        fault,
    )
    assert_died(done, signal.SIGSEGV)


@every_mechanism
def test_objects_of_a_process_that_ends(fault: str) -> None:
    """Neither an open mapping nor its array keep the interpreter from its end."""
    check(
        """
        mapping = mapping_of(EncryptedBuffer(20 * 4096, key=key), fault, "r+")
        array = mapping.__enter__()
        array[:] = 1
        other = EncryptedBuffer(4096, key=key).map().__enter__()
        """,
        fault,
    )


def test_the_environment_names_the_mechanism(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = EncryptedBuffer(100, key=key)
    for name in MECHANISMS:
        monkeypatch.setenv("PYCCMEM_FAULT", name)
        mapping = buffer.map()
        assert mapping.stats()["mechanism"] == name
        mapping.close()
    monkeypatch.setenv("PYCCMEM_FAULT", "magic")
    with pytest.raises(errors.ConfigError, match="magic"):
        buffer.map()
