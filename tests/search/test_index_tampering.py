# SPDX-License-Identifier: Apache-2.0
"""A row, a norm or a payload that was changed in memory raises, and nothing of the call's result is
returned; what is left can be found out, and no version comes twice."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from pyccmem import Key, errors
from pyccmem.vectors import EncryptedIndex


@pytest.fixture(scope="module")
def key() -> Any:
    with Key.generate() as made:
        yield made


def flip(buffer: Any, at: int) -> None:
    """Changes a bit of a buffer's ciphertext."""
    view = np.frombuffer(buffer.ciphertext, np.uint8)
    ctypes.c_uint8.from_address(view.ctypes.data + at).value ^= 4


def buffers(index: EncryptedIndex) -> list[Any]:
    return [one for view in index._state.views for one in view.segment.buffers()]


@pytest.mark.parametrize("queries", [1, 5, 64])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_a_changed_row_raises(key: Key, metric: str, dtype: str, queries: int) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3000, 100)).astype("f4")
    asked = rng.standard_normal((queries, 100)).astype("f4")
    with EncryptedIndex(100, key=key, metric=metric, dtype=dtype) as index:
        index.add(vectors)
        before = index.search(asked, 5)
        for buffer in buffers(index):
            flip(buffer, 5000)
            with pytest.raises(errors.IntegrityError) as caught:
                index.search(asked, 5)
            assert caught.value.name == buffer.name and caught.value.page == 1
            bad = index.verify()
            assert bad
            if buffer is index._state.views[0].segment.buffer:
                size = 100 * (1 if dtype == "int8" else 4)
                assert bad == list(range(4096 // size, -(-8192 // size)))
                with pytest.raises(errors.IntegrityError):
                    index.get(bad[:1])
            # A removed row counts no more for verify(), but its page is still opened.
            flip(buffer, 5000)
            after = index.search(asked, 5)
            assert after[0].tobytes() == before[0].tobytes()
            assert index.verify() == []


def test_a_changed_payload_raises(key: Key) -> None:
    with EncryptedIndex(8, key=key) as index:
        index.add(np.ones((100, 8)), payloads=[bytes([i]) * 100 for i in range(100)])
        flip(index._state.chunks[0].buffer, 4500)
        assert index.verify() == list(range(40, 82))
        with pytest.raises(errors.IntegrityError):
            index.payloads([50])
        assert index.payloads([3, 99]) == [b"\x03" * 100, b"\x63" * 100]
        assert index.search(np.ones(8), 3)[1].tolist() == [0, 1, 2]


def test_a_failed_addition_changes_nothing(key: Key) -> None:
    """The page that the first new row shares with others was changed."""
    with EncryptedIndex(10, key=key) as index:
        index.add(np.ones((50, 10)))
        buffer = buffers(index)[0]
        flip(buffer, 100)
        with pytest.raises(errors.IntegrityError):
            index.add(np.zeros((3000, 10)), payloads=[b"x"] * 3000)
        flip(buffer, 100)
        assert len(index) == 50 and index.ids().tolist() == list(range(50))
        index.add(np.full((20, 10), 2.0), payloads=[b"%d" % i for i in range(20)])
        assert index.payloads([50, 69]) == [b"0", b"19"] and index.payloads([3]) == [None]
        assert index.search(np.ones(10), 1)[1].tolist() == [50]


def test_no_version_comes_twice(key: Key) -> None:
    """Equal rows in the same place are sealed under another version or key each time."""
    seen: set[bytes] = set()
    with EncryptedIndex(1024, key=key) as index:
        for _ in range(30):
            ids = index.add(np.ones((4, 1024)))
            segment = index._state.views[-1].segment
            page = int(index._state.views[-1].total) - 4
            for at in range(page, page + 4):
                cipher = bytes(segment.buffer.ciphertext[at * 4096 : (at + 1) * 4096])
                assert cipher not in seen
                seen.add(cipher)
            index.remove(ids)
            index.compact()
