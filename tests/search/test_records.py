# SPDX-License-Identifier: Apache-2.0
"""Records find, replace and remove values as a dictionary does, and refuse hashes that collide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyccmem import Key, errors
from pyccmem.vectors import EncryptedIndex, Record, Records, records


@pytest.fixture
def kept() -> Any:
    with Key.generate() as key, EncryptedIndex(16, key=key, metric="cosine") as index:
        yield Records(index)


def vectors_of(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype("f4")


def test_a_dictionary_has_the_same(kept: Records) -> None:
    rng = np.random.default_rng(3)
    wanted: dict[str, tuple[Any, np.ndarray]] = {}
    for step in range(60):
        ids = [f"id {number}" for number in rng.integers(0, 80, 9)]
        if step % 3 == 2:
            kept.remove(ids)
            for id in ids:
                wanted.pop(id, None)
        else:
            vectors, values = vectors_of(9, step), [[step, at] for at in range(9)]
            kept.put(ids, vectors, values)
            wanted.update(zip(ids, zip(values, vectors, strict=True), strict=True))
        assert len(kept.index) == len(wanted)
    names = [f"id {number}" for number in range(80)]
    assert kept.get(names) == [Record(n, wanted[n][0]) if n in wanted else None for n in names]
    assert sorted(kept.all()) == sorted(Record(n, value) for n, (value, _) in wanted.items())
    for name, (value, vector) in wanted.items():
        (found,) = kept.search(vector, 1)
        assert found.record == (name, value) and found.score > 0.999
        np.testing.assert_array_equal(kept.vectors([found])[0], vector)
    kept.clear()
    assert kept.search(vectors_of(1)[0], 3) == [] == [one for one in kept.get(names) if one]


def test_a_filter_looks_on_until_enough_passed(kept: Records) -> None:
    vectors = vectors_of(500)
    kept.put([str(n) for n in range(500)], vectors, list(range(500)))
    order = np.argsort(-(vectors @ vectors[0]) / np.linalg.norm(vectors, axis=1))
    wanted = [int(one) for one in order if one % 50 == 7]
    for k in (1, 4, 10, 99):
        called: list[int] = []

        def passes(record: Record, called: list[int] = called) -> bool:
            called.append(record.value)
            return record.value % 50 == 7

        found = kept.search(vectors[0], k, passes)
        assert [one.record.value for one in found] == wanted[:k]
        assert len(called) == len(set(called)) and called == order[: len(called)].tolist()
    assert len(called) == 500


def test_ids_whose_hashes_are_the_same_are_refused(
    kept: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_NUMBERS", 1)
    kept.put(["a"], vectors_of(1), ["first"])
    with pytest.raises(errors.ArgumentError, match="another record"):
        kept.put(["b"], vectors_of(1), ["second"])
    with pytest.raises(errors.ArgumentError, match="another record"):
        kept.remove(["b"])
    with pytest.raises(errors.ArgumentError, match="the same hash"):
        kept.put(["c", "d"], vectors_of(2), [1, 2])
    assert kept.get(["b"]) == [None] and kept.get(["a"]) == [Record("a", "first")]


def test_what_is_wrong_changes_nothing(kept: Records) -> None:
    kept.put(["a"], vectors_of(1), ["first"])
    for ids, vectors, values, fault in [
        (["a", "b"], vectors_of(1), [1, 2], errors.ArgumentError),
        (["a"], vectors_of(1), [b"bytes"], errors.ArgumentTypeError),
        ([7], vectors_of(1), [1], errors.ArgumentTypeError),
        (["b", "a"], np.full((2, 16), np.nan), [1, 2], errors.ArgumentError),
        (["a"], np.ones((1, 15)), [1], errors.ArgumentError),
    ]:
        with pytest.raises(fault):
            kept.put(ids, vectors, values)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError):
        kept.search(vectors_of(2), 1)
    with pytest.raises(errors.ArgumentTypeError):
        Records({})  # type: ignore[arg-type]
    assert kept.get(["a", "b"]) == [Record("a", "first"), None]
