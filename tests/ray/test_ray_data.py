# SPDX-License-Identifier: Apache-2.0
"""Batch jobs of Ray Data over a sealed file: every row once, nothing in the clear in the object
store, results as over plain arrays."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray: make test-ray", allow_module_level=True)

import ray
import ray_support
from ray_support import Nodes, found_in_stores, samples

import pyccmem
import pyccmem.ray
import pyccmem.safetensors as st
from pyccmem import Key, errors

ROWS, STEP = 5000, 640


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    with ray_support.nodes(key_file=path, count=1, cpus=2) as nodes:
        pyccmem.ray.forget_keys()
        pyccmem.ray.use_key(Key.from_file(path))
        yield nodes
    pyccmem.ray.forget_keys()


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(8)
    return {"x": rng.standard_normal((ROWS, 96)).astype(np.float32), "id": np.arange(ROWS)}


@pytest.fixture(scope="module")
def file(
    cluster: Nodes, arrays: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    path = tmp_path_factory.mktemp("data") / "rows.sealed"
    key = Key.from_file(os.environ["PYCCMEM_KEY_FILE"])
    return str(path), st.save_file({**arrays, "other": np.zeros(3)}, path, key=key)


def test_a_batch_job(file: tuple[str, str], arrays: dict[str, Any]) -> None:
    from pyccmem.ray import data

    path, pin = file
    items = data.read_sealed(path, columns=["x", "id"], rows=STEP, expect=pin)
    assert items.count() == -(-ROWS // STEP)

    def work(rows: dict[str, Any]) -> dict[str, Any]:
        return {"squares": rows["x"] ** 2, "id": rows["id"]}

    done = data.map_rows(items, work).materialize()
    wanted = [*samples(arrays["x"]), *samples(arrays["x"] ** 2)]
    assert found_in_stores(wanted)[0] == 0
    found = sorted(data.results(done), key=lambda pair: pair[0])
    assert [start for start, _ in found] == list(range(0, ROWS, STEP))
    assert np.array_equal(np.concatenate([part["id"] for _, part in found]), arrays["id"])
    squares = np.concatenate([part["squares"] for _, part in found])
    assert np.array_equal(squares, arrays["x"] ** 2)
    # The control: the same over plain arrays.
    plain = ray.data.from_numpy(arrays["x"]).map_batches(lambda rows: rows).materialize()
    assert plain.count() == ROWS
    assert found_in_stores(samples(arrays["x"]))[0] > 12


def test_what_is_refused(file: tuple[str, str]) -> None:
    from pyccmem.ray import data

    path, pin = file
    for wrong, error in (
        ({"columns": ["none"]}, errors.FileRequestError),
        ({"columns": []}, errors.FileRequestError),
        ({"columns": None}, errors.ArgumentError),  # of two lengths
        ({"rows": 0}, errors.ArgumentError),
        ({"rows": True}, errors.ArgumentError),
        ({"expect": f"{'0' * 32}:1"}, errors.IntegrityError),
    ):
        with pytest.raises(error):
            data.read_sealed(path, **{"columns": ["x"], "expect": pin, **wrong})
    with pytest.raises(errors.MissingFileError):
        data.read_sealed(path + "x")
    items = data.read_sealed(path, columns=["x"])
    with pytest.raises(errors.ArgumentTypeError):
        data.map_rows(items, "work")  # type: ignore[arg-type]
