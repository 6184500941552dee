# SPDX-License-Identifier: Apache-2.0
"""An index as a sealed file: what is saved comes back, is mapped, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_support import METRICS, TYPES, assert_best

from pyccmem import EncryptedTensor, Key, errors, safetensors
from pyccmem.vectors import EncryptedIndex


@pytest.fixture(scope="module")
def key() -> Any:
    with Key.generate() as made:
        yield made


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_saved_comes_back(key: Key, tmp_path: Path, dtype: str, metric: str) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((4000, 33)).astype("f4")
    queries = rng.standard_normal((5, 33)).astype("f4")
    bodies = [b"%d" % i * (i % 7) if i % 3 else None for i in range(4000)]
    path = tmp_path / "index"
    with EncryptedIndex(33, key=key, metric=metric, dtype=dtype) as index:
        index.add(vectors[:3000], payloads=bodies[:3000])
        index.add(vectors[3000:], np.arange(3000, 4000)[::-1] * 2, bodies[3000:])
        gone = rng.permutation(3000)[:700]
        index.remove(gone)
        ids, before = index.ids(), index.search(queries, 20)
        kept, texts = index.get(ids), index.payloads(ids)
        pin = index.save(path)
    with EncryptedIndex.load(path, key=key, expect=pin) as index:
        assert (index.dim, index.metric, index.dtype) == (33, metric, dtype)
        assert np.array_equal(index.ids(), ids) and len(index) == 3300
        assert np.array_equal(index.get(ids), kept) and index.payloads(ids) == texts
        after = index.search(queries, 20)
        assert after[0].tobytes() == before[0].tobytes() and np.array_equal(after[1], before[1])
        assert index.verify() == []
        # It goes on: the file stays as it is.
        whole = path.read_bytes()
        new = index.add(vectors[:10], payloads=[b"new"] * 10)
        assert new.tolist() == list(range(7999, 8009))
        index.update([int(ids[0])], vectors[5:6], [b"other"])
        index.remove(ids[1:2000])
        left = np.concatenate([ids[2000:], new, ids[:1]])
        assert sorted(index.ids().tolist()) == sorted(left.tolist())
        assert index.payloads([int(ids[0]), int(new[0])]) == [b"other", b"new"]
        values = index.get(left)
        assert np.array_equal(values[: len(ids) - 2000], kept[2000:])
        assert_best(*index.search(queries, 9), queries, values, left, metric, 9)
        assert path.read_bytes() == whole
        index.save(tmp_path / "again")
    with EncryptedIndex.load(tmp_path / "again", key=key) as index:
        assert sorted(index.ids().tolist()) == sorted(left.tolist())


def test_an_empty_one(key: Key, tmp_path: Path) -> None:
    with EncryptedIndex(5, key=key) as index:
        index.add(np.ones((2, 5)))
        index.remove([0, 1])
        index.save(tmp_path / "index")
    with EncryptedIndex.load(tmp_path / "index", key=key) as index:
        assert len(index) == 0 and index.ids().tolist() == []
        assert index.add(np.ones((1, 5))).tolist() == [2]


def test_other_files_and_keys(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "index"
    with EncryptedIndex(5, key=key) as index:
        index.add(np.ones((2, 5)))
        index.save(path)
    with Key.generate() as other, pytest.raises(errors.InvalidKeyError):
        EncryptedIndex.load(path, key=other)
    with pytest.raises(errors.IntegrityError):
        EncryptedIndex.load(path, key=key, expect="00" * 16 + ":1")
    with EncryptedTensor.from_numpy(np.ones(3), key=key) as tensor:
        safetensors.save_file({"a": tensor}, tmp_path / "tensors", key=key)
    with pytest.raises(errors.FileFormatError, match="vector index"):
        EncryptedIndex.load(tmp_path / "tensors", key=key)
    metadata = {"format": "pyccmem vector index", "version": "1", "dim": "5", "metric": "ip",
                "dtype": "float32", "count": "9", "next_id": "9", "first_id": "0"}  # fmt: skip
    with EncryptedTensor.from_numpy(np.ones((3, 5), "f4"), key=key) as tensor:
        safetensors.save_file({"rows": tensor}, tmp_path / "odd", metadata, key=key)
        with pytest.raises(errors.FileFormatError, match="no vector index can be"):
            EncryptedIndex.load(tmp_path / "odd", key=key)
        safetensors.save_file(
            {"rows": tensor}, tmp_path / "new", metadata | {"version": "3"}, key=key
        )
        with pytest.raises(errors.FileFormatError, match="version"):
            EncryptedIndex.load(tmp_path / "new", key=key)
    with pytest.raises(errors.MissingFileError):
        EncryptedIndex.load(tmp_path / "none", key=key)


def test_a_passphrase(tmp_path: Path) -> None:
    secret = safetensors.Passphrase("correct horse battery staple")
    with EncryptedIndex(5, key=secret) as index:
        index.add(np.eye(5))
        index.save(tmp_path / "index")
    with EncryptedIndex.load(tmp_path / "index", key=secret) as index:
        assert index.search(np.eye(5)[2], 1)[1].tolist() == [2]


def test_a_changed_file_raises(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "index"
    rng = np.random.default_rng(1)
    with EncryptedIndex(64, key=key, metric="l2") as index:
        index.add(rng.standard_normal((3000, 64)).astype("f4"))
        index.save(path)
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)
    with EncryptedIndex.load(path, key=key) as index:
        bad = index.verify()
        assert bad and len(bad) <= 17
        with pytest.raises(errors.IntegrityError):
            index.search(np.ones(64), 1)
        good = np.setdiff1d(np.arange(3000), bad)
        with pytest.raises(errors.IntegrityError):
            index.get(bad)
        assert len(index.get(good[:100])) == 100
