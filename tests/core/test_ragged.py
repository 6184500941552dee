# SPDX-License-Identifier: Apache-2.0
"""What NumPy makes no array of is refused by an exception of ours wherever arrays are taken; and
searches refuse what they cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyccmem
from pyccmem import EncryptedTensor, Key, KVCache, errors
from pyccmem.quantized import dequantize_blocks, quantize_blocks, quantize_rows
from pyccmem.vectors import EncryptedIndex

RAGGED = [[1], [2, 3]]


@pytest.fixture
def index(key: Key) -> EncryptedIndex:
    made = EncryptedIndex(4, key=key)
    made.add(np.eye(4, dtype=np.float32), payloads=[b"0", b"1", b"2", b"3"])
    return made


TAKES: dict[str, Callable[[Any, Key, EncryptedIndex], Any]] = {
    "from_numpy": lambda a, key, _: EncryptedTensor.from_numpy(a, key=key),
    "a dtype": lambda a, key, _: EncryptedTensor.from_numpy(a, dtype="float32", key=key),
    "a format": lambda a, key, _: EncryptedTensor.from_numpy(a, dtype="q8_0", key=key),
    "quantize_blocks": lambda a, *_: quantize_blocks(a, "q8_0"),
    "quantize_rows": lambda a, *_: quantize_rows(a),
    "dequantize_blocks": lambda a, *_: dequantize_blocks(a, "q8_0"),
    "linear": lambda a, key, _: pyccmem.linear(
        a, EncryptedTensor.from_numpy(np.ones((2, 2), np.float32), key=key)
    ),
    "KVCache": lambda a, *_: KVCache(1, 1, 64).append(0, a, a),
    "vectors": lambda a, _, index: index.add(a),
    "ids": lambda a, _, index: index.add(np.ones((2, 4)), ids=a),
    "queries": lambda a, _, index: index.search(a, 1),
    "filter": lambda a, _, index: index.search(np.ones(4), 1, a),
    "get": lambda a, _, index: index.get(a),
    "payloads": lambda a, _, index: index.payloads(a),
    "remove": lambda a, _, index: index.remove(a),
    "update": lambda a, _, index: index.update(a, np.ones((2, 4))),
}


@pytest.mark.parametrize("what", TAKES)
def test_rows_of_several_lengths(what: str, key: Key, index: EncryptedIndex) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="not an array of numbers"):
        TAKES[what](RAGGED, key, index)
    assert len(index) == 4


def test_ids_of_three_dimensions_have_no_payloads(index: EncryptedIndex) -> None:
    assert index.payloads([[0, -1], [3, 1]]) == [[b"0", None], [b"3", b"1"]]
    with pytest.raises(errors.ArgumentError, match=r"shape \(1, 1, 2\)"):
        index.payloads([[[0, 1]]])


@pytest.mark.parametrize("k", [0, -1, 2**31])
def test_a_number_of_results_says_what_it_may_be(index: EncryptedIndex, k: int) -> None:
    with pytest.raises(errors.ArgumentError, match="from 1 to 2147483647"):
        index.search(np.ones(4), k)


def test_more_results_than_memory(index: EncryptedIndex) -> None:
    with pytest.raises(errors.OutOfMemoryError, match="ask for fewer"):
        index.search(np.ones((1 << 20, 4)), 2**31 - 1)
